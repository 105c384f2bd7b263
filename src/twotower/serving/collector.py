"""`POST /v1/events` as plain ASGI: an answer means that every accepted row is on the disk.

Bodies are decoded and written by a few threads, because an fsync must not hold up the event loop;
requests that wait while one is written share the next write. What would wait too long is refused
at once with 429, so that memory is bounded and a producer knows to come again.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from twotower.data.event_log.intake import Intake
from twotower.errors import DataError, NotReady
from twotower.serving.collector_metrics import CONTENT_TYPE_LATEST, CollectorMetrics
from twotower.serving.exchange import (
    EVENT_TYPES,
    Call,
    Limits,
    Receive,
    Reply,
    RequestIds,
    Scope,
    Send,
    Unbounded,
    answer_call,
    header,
    problem_reply,
    send_reply,
)
from twotower.serving.guard import Guard
from twotower.serving.outgoing import log_failure
from twotower.serving.problems import CLOSE, RefusedRequest
from twotower.serving.repeats import HEADER, Repeats
from twotower.serving.settings import CollectorSettings

__all__ = ["Collector"]

_AGAIN: Final = ((b"retry-after", b"1"),)
_PATHS: Final = ("/v1/events", "/healthz", "/readyz", "/metrics")
_PROBLEM_S: Final = 5.0
"""How long a failure of the disk makes `/readyz` fail, unless an append succeeds before."""


class Collector:
    """The application. Every request is answered; a failure of ours is logged and becomes 500."""

    def __init__(self, intake: Intake, settings: CollectorSettings, guard: Guard) -> None:
        """No thread runs before the first request."""
        self.is_draining = False
        """Once set, `/readyz` fails and every connection ends with its answer."""
        self._intake = intake
        self._settings = settings
        self._guard = guard
        self._limits = Limits(settings.body_limit_bytes, settings.body_timeout_s, EVENT_TYPES)
        self._ids = RequestIds()
        self._writers = ThreadPoolExecutor(settings.writers, thread_name_prefix="writer")
        self._metrics = CollectorMetrics()
        self._admission = Unbounded(self._metrics.request_shed)
        """Bodies that wait for the disk are bounded by their bytes."""
        self._repeats = Repeats(settings.remembered_keys)
        self._problem = ""
        self._problem_until_s = 0.0

    def close(self) -> None:
        """Let the writers finish what they began."""
        self._writers.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request_id = self._ids.of(header(scope, b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        began_s = time.perf_counter()
        try:
            reply = await self._answer(scope, receive)
        except RefusedRequest as refused:
            reply = problem_reply(refused, request_id)
        except Exception as error:
            log_failure("collect_failed", request_id, error)
            reply = problem_reply(RefusedRequest(500, "see the collector's log"), request_id)
        route = scope["path"] if scope["path"] in _PATHS else "other"
        self._metrics.request_ended(route, reply.status, time.perf_counter() - began_s)
        await self._send(send, reply)

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        path, method = scope["path"], scope["method"]
        if path == "/v1/events":
            _expect(method, "POST")
            found = self._guard.check(scope["headers"], "events")
            scope["state"]["key"] = found.key_id if found else None
            return await answer_call(
                self._collect, self._limits, self._admission, scope, {}, receive
            )
        if path in ("/healthz", "/readyz"):
            _expect(method, "GET")
            return self._health() if path == "/readyz" else Reply(200, b'{"status":"alive"}')
        if path == "/metrics":
            _expect(method, "GET")
            self._guard.check(scope["headers"], "metrics")
            return Reply(200, self._metrics.render(), CONTENT_TYPE_LATEST.encode())
        raise RefusedRequest(404, f"expected one of {', '.join(_PATHS)}")

    def _health(self) -> Reply:
        problem = self._problem if time.monotonic() < self._problem_until_s else ""
        if self.is_draining:
            problem = "draining"
        status = "not_ready" if problem else "ready"
        content = msgspec.json.encode({"status": status, "problem": problem or None})
        return Reply(503 if problem else 200, content)

    async def _collect(self, call: Call) -> Reply:
        owner, key = call.scope["state"]["key"], header(call.scope, HEADER)
        return await self._repeats.once(owner, key, call.body, lambda: self._stored(call))

    async def _stored(self, call: Call) -> Reply:
        body, waiting_bytes = call.body, self._metrics.waiting_bytes
        if waiting_bytes and waiting_bytes + len(body) > self._settings.waiting_limit_bytes:
            self._metrics.request_shed("queue_full")
            detail = f"{waiting_bytes} bytes of events wait for the disk; send again later"
            raise RefusedRequest(429, detail, headers=_AGAIN)
        self._metrics.waiting_bytes += len(body)
        try:
            loop = asyncio.get_running_loop()
            return Reply(202, await loop.run_in_executor(self._writers, self._store, body))
        finally:
            self._metrics.waiting_bytes -= len(body)

    def _store(self, body: bytes) -> bytes:
        """Store a body and return the receipt. Runs in a writer's thread."""
        try:
            received_ms = int(time.time() * 1000)
            rows = self._intake.decode(body)
            receipt = self._intake.take_rows(rows, received_ms)
        except NotReady as error:
            self._problem, self._problem_until_s = str(error), time.monotonic() + _PROBLEM_S
            raise RefusedRequest(503, str(error), headers=_AGAIN) from error
        except ValueError as error:
            raise RefusedRequest(400, str(error)) from None
        except DataError as error:  # two first bodies at once, with IDs of different kinds
            raise RefusedRequest(422, str(error)) from None
        self._problem_until_s = 0.0
        self._metrics.events_arrived(rows.events, received_ms)
        return msgspec.json.encode(receipt)

    async def _send(self, send: Send, reply: Reply) -> None:
        closing = CLOSE if self.is_draining and CLOSE[0] not in reply.headers else ()
        await send_reply(send, reply._replace(headers=(*reply.headers, *closing)))


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise RefusedRequest(405, f"expected {wanted}", headers=((b"allow", wanted.encode()),))
