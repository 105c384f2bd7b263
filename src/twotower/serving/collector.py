"""`POST /v1/events` as plain ASGI: an answer means that every accepted row is on the disk.

Bodies are decoded and written by a few threads, because an fsync must not hold up the event loop;
requests that wait while one is written share the next write. What would wait too long is refused
at once with 429, so that memory is bounded and a producer knows to come again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from twotower.data.event_log.intake import Intake
from twotower.errors import DataError, NotReady
from twotower.serving.messages import RefusedRequest
from twotower.serving.settings import CollectorSettings

__all__ = ["Collector"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

_LOGGER: Final = logging.getLogger("twotower")
_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"
_TYPES: Final = (_JSON, b"application/x-ndjson", b"application/ndjson", b"application/jsonl")
_AGAIN: Final = ((b"retry-after", b"1"),)
_CLOSE: Final = ((b"connection", b"close"),)
_PROBLEM_S: Final = 5.0
"""How long a failure of the disk makes `/readyz` fail, unless an append succeeds before."""
_TITLES: Final = {
    400: ("bad-request", "The body holds no rows"),
    404: ("not-found", "There is nothing at this path"),
    405: ("method-not-allowed", "The path does not take this method"),
    408: ("request-timeout", "The body did not arrive in time"),
    413: ("body-too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is not declared as JSON"),
    422: ("invalid-request", "The IDs are not of the log's kind"),
    429: ("too-many-events", "More events are waiting than may wait"),
    500: ("internal-error", "The collector failed; nothing was acknowledged"),
    503: ("not-ready", "The events cannot be stored now"),
}


class Collector:
    """The application. Every request is answered; a failure of ours is logged and becomes 500."""

    def __init__(self, intake: Intake, settings: CollectorSettings) -> None:
        """No thread runs before the first request."""
        self.is_draining = False
        """Once set, `/readyz` fails and every connection ends with its answer."""
        self._intake = intake
        self._settings = settings
        self._writers = ThreadPoolExecutor(settings.writers, thread_name_prefix="writer")
        self._waiting_bytes = 0
        self._problem = ""
        self._problem_until_s = 0.0

    def close(self) -> None:
        """Let the writers finish what they began."""
        self._writers.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, content = await self._answer(scope, receive)
            await self._send(send, status, content, _JSON)
        except RefusedRequest as refused:
            content = _problem(refused.status, refused.detail)
            await self._send(send, refused.status, content, _PROBLEM, refused.headers)
        except Exception:
            _LOGGER.exception("collect_failed path=%s", scope["path"])
            await self._send(send, 500, _problem(500, "see the collector's log"), _PROBLEM)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        path, method = scope["path"], scope["method"]
        if path == "/v1/events":
            _expect(method, "POST")
            return await self._collect(scope, receive)
        if path in ("/healthz", "/readyz"):
            _expect(method, "GET")
            return self._health() if path == "/readyz" else (200, b'{"status":"alive"}')
        raise RefusedRequest(404, "expected /v1/events, /healthz or /readyz")

    def _health(self) -> tuple[int, bytes]:
        problem = self._problem if time.monotonic() < self._problem_until_s else ""
        if self.is_draining:
            problem = "draining"
        status = "not_ready" if problem else "ready"
        return (503 if problem else 200), msgspec.json.encode(
            {"status": status, "problem": problem or None}
        )

    async def _collect(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        _check_head(scope, self._settings.body_limit_bytes)
        body = await self._read_body(receive)
        if self._waiting_bytes and (
            self._waiting_bytes + len(body) > self._settings.waiting_limit_bytes
        ):
            detail = f"{self._waiting_bytes} bytes of events wait for the disk; send again later"
            raise RefusedRequest(429, detail, headers=_AGAIN)
        self._waiting_bytes += len(body)
        try:
            loop = asyncio.get_running_loop()
            return 202, await loop.run_in_executor(self._writers, self._store, body)
        finally:
            self._waiting_bytes -= len(body)

    def _store(self, body: bytes) -> bytes:
        """Store a body and return the receipt. Runs in a writer's thread."""
        try:
            receipt = self._intake.take(body, int(time.time() * 1000))
        except NotReady as error:
            self._problem, self._problem_until_s = str(error), time.monotonic() + _PROBLEM_S
            raise RefusedRequest(503, str(error), headers=_AGAIN) from error
        except ValueError as error:
            raise RefusedRequest(400, str(error)) from None
        except DataError as error:  # two first bodies at once, with IDs of different kinds
            raise RefusedRequest(422, str(error)) from None
        self._problem_until_s = 0.0
        return msgspec.json.encode(receipt)

    async def _read_body(self, receive: Receive) -> bytes:
        try:
            reading = self._read_parts(receive)
            return await asyncio.wait_for(reading, self._settings.body_timeout_s)
        except asyncio.TimeoutError:
            detail = f"expected the whole body within {self._settings.body_timeout_s:g} s"
            raise RefusedRequest(408, detail, headers=_CLOSE) from None

    async def _read_parts(self, receive: Receive) -> bytes:
        parts, num_bytes, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedRequest(400, "the client went away")
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > self._settings.body_limit_bytes:
                raise _too_large(self._settings.body_limit_bytes)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _send(
        self,
        send: Send,
        status: int,
        body: bytes,
        content_type: bytes,
        headers: tuple[Header, ...] = (),
    ) -> None:
        closing = _CLOSE if self.is_draining and _CLOSE[0] not in headers else ()
        length = (b"content-length", str(len(body)).encode())
        given = [(b"content-type", content_type), length, *headers, *closing]
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body", "body": body})


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise RefusedRequest(405, f"expected {wanted}", headers=((b"allow", wanted.encode()),))


def _check_head(scope: Scope, limit_bytes: int) -> None:
    """Refuse what the head alone rules out."""
    headers = dict(scope["headers"])
    if int(headers.get(b"content-length", b"0")) > limit_bytes:
        raise _too_large(limit_bytes)
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() not in _TYPES:
        raise RefusedRequest(
            415, "expected the header Content-Type: application/json or application/x-ndjson"
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusedRequest(415, "expected a body without Content-Encoding")


def _too_large(limit_bytes: int) -> RefusedRequest:
    return RefusedRequest(413, f"expected at most {limit_bytes} bytes", headers=_CLOSE)


def _problem(status: int, detail: str) -> bytes:
    name, title = _TITLES[status]
    return msgspec.json.encode(
        {
            "type": f"urn:twotower:problem:{name}",
            "title": title,
            "status": status,
            "detail": detail,
        }
    )
