"""What every route of plain ASGI shares: the head, the body, the deadline, the problem.

A handler gets a `Call`, whose body is whole and within its limits, and returns a `Reply`, or
something that can be awaited for one. What it refuses with `RefusedRequest` becomes a problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from itertools import count
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

from twotower.data.ids import Id
from twotower.serving.problems import CLOSE, Header, RefusedRequest, problem_body
from twotower.serving.profiles import OF_GENERATION, StoredProfile

__all__ = [
    "EVENT_TYPES",
    "JSON",
    "PROBLEM",
    "Admission",
    "Call",
    "Handler",
    "Limits",
    "Queued",
    "Receive",
    "Reply",
    "RequestIds",
    "Scope",
    "Send",
    "Unbounded",
    "answer_call",
    "answer_whole",
    "check_body",
    "check_head",
    "header",
    "problem_reply",
    "read_body",
    "reply_headers",
    "send_reply",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"
EVENT_TYPES: Final = (
    *(JSON, b"application/x-ndjson", b"application/ndjson", b"application/jsonl"),
)
"""How events may be declared."""
_MAX_TIMEOUT_MS: Final = 3_600_000
_NO_PROFILES: Final[Mapping[Id, StoredProfile]] = MappingProxyType({})
_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class Limits(NamedTuple):
    """What a route takes."""

    body_bytes: int
    body_s: float
    """How long the body may take to arrive."""
    media_types: tuple[bytes, ...] = (JSON,)
    """A body must be declared as one of them: no page of another site can send such a request
    unasked. Empty where no body is read."""


class Call(NamedTuple):
    """One request, read whole."""

    body: bytes
    request_id: str
    values: Mapping[str, str]
    """Of the places of its path, such as `generation`."""
    deadline_s: float
    """By `time.perf_counter`: after that, nobody waits for the answer."""
    scope: Scope
    profiles: Mapping[Id, StoredProfile] = _NO_PROFILES
    """Of users that the body names, where they had to be looked up before."""

    @property
    def query(self) -> dict[str, str]:
        """The texts of its query; of a repeated name the last one."""
        text = self.scope["query_string"].decode("latin-1")
        return dict(parse_qsl(text, keep_blank_values=True))

    @property
    def is_late(self) -> bool:
        """Whether the client has given up."""
        return time.perf_counter() >= self.deadline_s

    def stored(self, user: object) -> StoredProfile:
        """Return the profile of a user that the body names, whatever it names as one."""
        if not self.profiles or not isinstance(user, int | str):
            return OF_GENERATION
        return self.profiles.get(user, OF_GENERATION)


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()


class Queued:
    """A reply to wait for whose work is done in the event loop: it stays in the queue.

    It says itself when it waits for something else for long.
    """

    def __init__(self, reply: Awaitable[Reply]) -> None:
        self._reply = reply

    def __await__(self) -> Generator[Any, Any, Reply]:
        """Wait for the reply."""
        return self._reply.__await__()


Handler = Callable[[Call], Reply | Awaitable[Reply]]


class Admission(Protocol):
    """Who is told how long requests take the event loop, and which of them were given up."""

    def elsewhere(self) -> AbstractContextManager[None]:
        """Return what to enter while a request waits for something other than the event loop."""

    def worked(self, seconds: float) -> None:
        """Take note of the time that a request took the event loop."""

    def request_shed(self, reason: str) -> None:
        """Count a request whose work was not done."""


class Unbounded:
    """Takes no note of how long requests take: what operators ask for, and events."""

    def __init__(self, request_shed: Callable[[str], None] = lambda reason: None) -> None:
        self.request_shed = request_shed

    def elsewhere(self) -> AbstractContextManager[None]:
        """See `Admission.elsewhere`."""
        return contextlib.nullcontext()

    def worked(self, seconds: float) -> None:
        """See `Admission.worked`."""


class RequestIds:
    """Gives every request an ID: the client's where it sent a plain one, else a new one."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)

    def of(self, given: bytes | None) -> str:
        """Return the request's ID; `given` is its header."""
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


async def answer_call(
    handler: Handler,
    limits: Limits,
    admission: Admission,
    scope: Scope,
    values: Mapping[str, str],
    receive: Receive,
) -> Reply:
    """Return the handler's reply; whatever is wrong with the request becomes a problem."""
    state = scope["state"]
    began_s = time.perf_counter()
    request_id: str = state["request_id"]
    try:
        deadline_s = state.get("read_s", began_s) + check_head(scope, limits)
        if state.get("is_whole", True):
            body = await read_body(receive, limits)
        else:
            with admission.elsewhere():
                body = await read_body(receive, limits)
            began_s = time.perf_counter()
        reply = answer_whole(
            handler, admission, Call(body, request_id, values, deadline_s, scope), began_s
        )
        if isinstance(reply, Reply):
            return reply
        if isinstance(reply, Queued):
            return await reply
        with admission.elsewhere():
            return await reply
    except RefusedRequest as refused:
        return problem_reply(refused, request_id)


def answer_whole(
    handler: Handler, admission: Admission, call: Call, began_s: float
) -> Reply | Awaitable[Reply]:
    """Return the handler's reply to a request that was read, unless it is too late.

    Raises:
        RefusedRequest: it is, or the handler refuses.
    """
    if call.is_late:
        admission.request_shed("deadline")
        raise RefusedRequest(504, "the time that the client gave passed before the work began")
    reply = handler(call)
    if isinstance(reply, Reply):
        admission.worked(time.perf_counter() - began_s)
    return reply


def problem_reply(refused: RefusedRequest, request_id: str) -> Reply:
    """Return the answer to a request that was refused."""
    content = problem_body(refused.status, refused.detail, request_id, refused.faults)
    return Reply(refused.status, content, PROBLEM, refused.headers)


def header(scope: Scope, wanted: bytes) -> bytes | None:
    """Return the first header of that name."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), None)


def check_head(scope: Scope, limits: Limits) -> float:
    """Refuse what the head alone rules out; return the seconds that the client gives."""
    timeout_s = float(_MAX_TIMEOUT_MS)
    is_declared = not limits.media_types
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        if name == b"content-type":
            is_declared = is_declared or _media_type(value) in limits.media_types
        if name == b"content-encoding" and value.lower() != b"identity":
            raise RefusedRequest(415, "expected a body without Content-Encoding")
        if name == b"x-request-timeout-ms":
            timeout_s = _timeout_s(value)
    if not is_declared:
        wanted = b" or ".join(limits.media_types[:2]).decode()
        raise RefusedRequest(415, f"expected the header Content-Type: {wanted}")
    return timeout_s


def _media_type(value: bytes) -> bytes:
    return value.split(b";")[0].strip().lower()


def _timeout_s(value: bytes) -> float:
    if not (value.isdigit() and len(value) <= 9 and int(value) <= _MAX_TIMEOUT_MS):
        raise RefusedRequest(
            400, f"expected whole milliseconds up to {_MAX_TIMEOUT_MS} in X-Request-Timeout-Ms"
        )
    return int(value) / 1000


def check_body(num_bytes: int, limits: Limits) -> None:
    """Refuse a body that is longer than allowed."""
    if num_bytes > limits.body_bytes:
        raise _too_large(limits.body_bytes)


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """Return the body, if it is not longer than allowed and does not come later."""
    parts, num_bytes = [], 0
    alarm = _Alarm(limits.body_s)
    try:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedRequest(400, "the client went away")
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            check_body(num_bytes, limits)
            more = message.get("more_body", False)
    except asyncio.CancelledError:
        if not alarm.rang:
            raise
        detail = f"expected the whole body within {limits.body_s:g} s"
        raise RefusedRequest(408, detail, headers=CLOSE) from None
    finally:
        alarm.stop()
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit_bytes: int) -> RefusedRequest:
    return RefusedRequest(413, f"expected at most {limit_bytes} bytes", headers=CLOSE)


def reply_headers(reply: Reply) -> list[Header]:
    """Return the headers of an answer alone."""
    return [
        (b"content-type", reply.content_type),
        (b"content-length", b"%d" % len(reply.body)),
        *reply.headers,
    ]


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a whole answer."""
    headers = reply_headers(reply)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
