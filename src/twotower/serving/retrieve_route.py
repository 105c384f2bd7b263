"""`POST /v1/retrieve` as plain ASGI: bytes in, bytes out, nothing of a framework in between.

The search runs inside the event loop: a thread pool costs a fifth of the throughput on one core
and worsens the tail, so a server grows by workers. Between reading `served` and the last byte of
an answer nothing else is asked, so tower, tables and index are of one generation.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from itertools import count
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from twotower.errors import ConfigError, DataError, suggestion
from twotower.serving.messages import (
    Fault,
    Problem,
    RefusedRequest,
    RetrieveRequest,
    decode_retrieve,
)
from twotower.serving.metrics import Metrics
from twotower.serving.reload import Follower, Served, find
from twotower.serving.retriever import Found
from twotower.serving.settings import ServingSettings

__all__ = ["Receive", "RequestIds", "RetrieveRoute", "Scope", "Send", "problem_body", "send_answer"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"
_MAX_TIMEOUT_MS: Final = 3_600_000
_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_CLOSE: Final = ((b"connection", b"close"),)
_TITLES: Final = {
    400: ("bad-request", "The request cannot be read"),
    404: ("not-found", "There is nothing at this path"),
    405: ("method-not-allowed", "The path does not take this method"),
    408: ("request-timeout", "The body did not arrive in time"),
    413: ("body-too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is not declared as JSON"),
    422: ("invalid-request", "The request is not valid"),
    500: ("internal-error", "The server failed"),
    503: ("not-ready", "The server cannot answer yet"),
    504: ("deadline-expired", "The deadline of the request has passed"),
}


class RequestIds:
    """Gives every request an ID: the client's where it sent a plain one, else a new one."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)

    def of(self, scope: Scope) -> str:
        """Return the request's ID."""
        given = _header(scope, b"x-request-id")
        if given is not None and _GIVEN_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"


class _Alarm:
    """Cancels the task that made it after some time; far cheaper than a task of its own."""

    def __init__(self, seconds: float) -> None:
        self.rang = False
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        self.rang = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Never ring."""
        self._timer.cancel()


class _Reply(NamedTuple):
    status: int
    body: bytes
    content_type: bytes
    headers: tuple[Header, ...] = ()


class RetrieveRoute:
    """Answers one request after the other from what the follower serves."""

    def __init__(self, follower: Follower, settings: ServingSettings, metrics: Metrics) -> None:
        self._follower = follower
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; whatever is wrong with the request becomes a problem."""
        arrived_s = time.perf_counter()
        request_id: str = scope["state"]["request_id"]
        try:
            timeout_s = _check_head(scope, self._settings.body_limit_bytes)
            body = await self._read_body(receive)
            if time.perf_counter() - arrived_s >= timeout_s:
                self._metrics.request_shed("deadline")
                raise RefusedRequest(504, "the time that the client gave passed before the search")
            reply = self._retrieve(body, request_id)
        except RefusedRequest as refused:
            reply = _problem(refused, request_id)
        await send_answer(send, *reply)

    async def _read_body(self, receive: Receive) -> bytes:
        """Return the body, if it is not longer than allowed and does not come later."""
        limit_bytes, parts, num_bytes = self._settings.body_limit_bytes, [], 0
        alarm = _Alarm(self._settings.body_timeout_s)
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedRequest(400, "the client went away")
                parts.append(message.get("body", b""))
                num_bytes += len(parts[-1])
                if num_bytes > limit_bytes:
                    raise _too_large(limit_bytes)
                more = message.get("more_body", False)
        except asyncio.CancelledError:
            if not alarm.rang:
                raise
            detail = f"expected the whole body within {self._settings.body_timeout_s:g} s"
            raise RefusedRequest(408, detail, headers=_CLOSE) from None
        finally:
            alarm.stop()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _retrieve(self, body: bytes, request_id: str) -> _Reply:
        served = self._follower.served
        if served is None:
            problem = self._follower.problem or "no generation is loaded yet"
            raise RefusedRequest(503, problem, headers=((b"retry-after", b"1"),))
        began = time.perf_counter()
        request = decode_retrieve(body)
        decoded = time.perf_counter()
        found = _find(served, request)
        searched = time.perf_counter()
        content = _encode(served, request, found, request_id)
        self._follower.recent_requests.append(request)
        self._count(found, decoded - began, time.perf_counter() - searched)
        timing = f"tower;dur={found.tower_s * 1e3:.3f}, ann;dur={found.ann_s * 1e3:.3f}"
        headers = (
            (b"x-generation", served.activation.generation.encode()),
            (b"server-timing", timing.encode()),
        )
        return _Reply(200, content, _JSON, headers)

    def _count(self, found: Found, decode_s: float, encode_s: float) -> None:
        metrics = self._metrics
        metrics.stage("decode", decode_s)
        metrics.stage("tower", found.tower_s)
        metrics.stage("filter", found.filter_s)
        metrics.stage("ann", found.ann_s)
        metrics.stage("encode", encode_s)
        num_found = len(found.scores)
        metrics.answered(num_found, float(found.scores[0]) if num_found else None, found.degraded)


def _check_head(scope: Scope, limit_bytes: int) -> float:
    """Refuse what the head alone rules out; return the seconds that the client gives."""
    if scope["method"] != "POST":
        raise RefusedRequest(405, "expected POST", headers=((b"allow", b"POST"),))
    timeout_s = float(_MAX_TIMEOUT_MS)
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit_bytes:
            raise _too_large(limit_bytes)
        if name == b"content-type" and value.split(b";")[0].strip().lower() != _JSON:
            raise RefusedRequest(415, "expected the header Content-Type: application/json")
        if name == b"x-request-timeout-ms":
            timeout_s = _timeout_s(value)
    return timeout_s


def _timeout_s(value: bytes) -> float:
    if not (value.isdigit() and len(value) <= 9 and int(value) <= _MAX_TIMEOUT_MS):
        raise RefusedRequest(
            400, f"expected whole milliseconds up to {_MAX_TIMEOUT_MS} in X-Request-Timeout-Ms"
        )
    return int(value) / 1000


def _too_large(limit_bytes: int) -> RefusedRequest:
    return RefusedRequest(413, f"expected at most {limit_bytes} bytes", headers=_CLOSE)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def _find(served: Served, request: RetrieveRequest) -> Found:
    try:
        return find(served.retriever, request)
    except (ConfigError, DataError) as error:
        faults = [_feature_fault(served, request) or Fault("$", str(error))]
        raise RefusedRequest(422, str(error), faults=faults) from None


def _feature_fault(served: Served, request: RetrieveRequest) -> Fault | None:
    """Return which given feature is none of the model's."""
    known = [field.name for field in served.retriever.encoder.user_features.fields]
    for name in request.features:
        if name not in known:
            detail = f"unknown feature '{name}'; known: {', '.join(known)}{suggestion(name, known)}"
            return Fault(f"$.features.{name}", detail)
    return None


def _encode(served: Served, request: RetrieveRequest, found: Found, request_id: str) -> bytes:
    """Return the answer; scores are written with the digits that a float32 has."""
    retriever = served.retriever
    ids = retriever.decode_items(found.positions)
    candidates: list[dict[str, object]] = [
        {"item_id": item_id, "score": score, "rank": rank}
        for rank, (item_id, score) in enumerate(zip(ids, found.scores, strict=True), start=1)
    ]
    if request.display:
        for candidate, position in zip(candidates, found.positions.tolist(), strict=True):
            candidate["display"] = orjson.Fragment(retriever.shown.display_json(position))
    answer = {
        "generation": served.activation.generation,
        "sequence": served.activation.sequence,
        "delta": retriever.delta,
        "items_number": retriever.items_number,
        "user_state_offset": retriever.user_state_offset,
        "request_id": request_id,
        "degraded": found.degraded or None,
        "candidates": candidates,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _problem(refused: RefusedRequest, request_id: str) -> _Reply:
    body = problem_body(refused.status, refused.detail, request_id, refused.faults)
    return _Reply(refused.status, body, _PROBLEM, refused.headers)


def problem_body(status: int, detail: str, request_id: str, faults: Iterable[Fault] = ()) -> bytes:
    """Return a problem as RFC 9457 writes it."""
    name, title = _TITLES.get(status, ("refused", "The request was refused"))
    return msgspec.json.encode(
        Problem(
            type=f"urn:twotower:problem:{name}",
            title=title,
            status=status,
            detail=detail,
            request_id=request_id,
            errors=list(faults),
        )
    )


async def send_answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: tuple[Header, ...] = (),
) -> None:
    """Send a whole answer."""
    all_headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
