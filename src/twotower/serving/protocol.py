"""uvicorn's HTTP protocol with bounds: how much a client may send, and how slowly.

A connection is closed when its head is longer than allowed or does not come in time, and when
nothing is answered on it and nothing was begun for longer than it may idle. One timer a connection
watches both: a request moves the time that it looks at, and sets no timer. The time at which a
request was read goes with it, so that whoever answers knows how long it has waited.
"""

from __future__ import annotations

import asyncio
import math
import resource
import secrets
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import ClassVar, Final, NamedTuple, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twotower.serving.problems import Header, problem_body

__all__ = ["ConnectionLimits", "Gate", "GuardedProtocol", "protocol_with"]

_SPARE_FILES: Final = 256
"""Descriptors that the process keeps for its own files."""
_TICK_S: Final = 0.001
"""Of the loop's timers."""


class ConnectionLimits(NamedTuple):
    """What a connection may cost."""

    header_bytes: int
    """Request line and headers of one request."""
    header_s: float
    """How long they may take to arrive, from their first byte or from the connection's start."""
    connections: int
    """Of one process, also idle ones."""


class Gate(Protocol):
    """Who may answer a request past the application, the moment its head is read."""

    def refusal(
        self, method: str, path: bytes, headers: Iterable[Header], num_unanswered: int
    ) -> bytes | None:
        """Return the whole answer; None where the application is to answer."""


def protocol_with(
    limits: ConnectionLimits, gate: Gate | None = None, kind: type[GuardedProtocol] | None = None
) -> type[GuardedProtocol]:
    """Return the protocol with these limits; no more connections than the process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bounded = limits._replace(connections=max(1, min(limits.connections, files - _SPARE_FILES)))
    members = {"limits": bounded, "gate": gate}
    return type("LimitedProtocol", (kind or GuardedProtocol,), members)


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: ClassVar[ConnectionLimits]
    gate: ClassVar[Gate | None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request, or refuse the connection."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.read_s = time.perf_counter()
        self._head_bytes = self._packet_bytes = 0
        self._is_in_message = self._has_head = self._is_refused = False
        self._is_resting = self._is_hurried = False
        self._close_at_s = self._timer_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "as many connections as may be are open; come again later")
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was read, and see that the client goes on."""
        self.read_s = time.perf_counter()
        self._packet_bytes = len(data)
        self._head_bytes += len(data)
        self._is_resting = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_message and not self._has_head:
            self._check_head(self._head_bytes)
        self._watch()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_message, self._has_head, self._is_refused = True, False, False

    def on_headers_complete(self) -> None:
        """Answer the request, unless its head is too long."""
        self._has_head = True
        if self.transport.is_closing() or not self._is_head_short():
            return
        state = self.scope["state"]
        state["read_s"], state["is_whole"] = self.read_s, False
        if not self._is_refused_at_once():
            self.begin()

    def begin(self) -> None:
        """Begin to answer the request whose head was read."""
        super().on_headers_complete()

    def num_unanswered(self) -> int:
        """Return how many requests of the process were read and are not answered."""
        return len(self.tasks)

    def _is_head_short(self) -> bool:
        """Refuse a head that is too long; where all that came is short, it need not be measured."""
        if max(self._head_bytes, self._packet_bytes) <= self.limits.header_bytes:
            return True
        lengths = (len(name) + len(value) + 4 for name, value in self.headers)
        return self._check_head(len(self.url) + sum(lengths))

    def _is_refused_at_once(self) -> bool:
        """Answer past the application if the gate says so; what is pipelined waits its turn."""
        if self.gate is None or self.is_answering():
            return False
        method = self.parser.get_method().decode("ascii")
        answer = self.gate.refusal(method, self.url, self.headers, self.num_unanswered())
        if answer is None:
            return False
        self._is_refused = True
        self.transport.write(answer)
        if self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive():
            self.on_response_complete()
        else:
            self.transport.close()
        return True

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        if not self._is_refused and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass on that the request has arrived whole."""
        self.end_message()
        if not self._is_refused and not self.transport.is_closing():
            state = self.scope["state"]
            state["read_s"], state["is_whole"] = self.read_s, True
            super().on_message_complete()

    def end_message(self) -> None:
        """Take note that the request has arrived whole."""
        self._is_in_message, self._head_bytes = False, 0

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, and close the connection."""
        self._refuse(400, "expected HTTP/1.1, found something else or contradictions")

    def _check_head(self, num_bytes: int) -> bool:
        """Return whether a head may be so long; refuse the request if not."""
        if num_bytes <= self.limits.header_bytes:
            return True
        self._refuse(431, f"expected at most {self.limits.header_bytes} bytes of headers")
        return False

    def on_response_complete(self) -> None:
        """Go on with what is pipelined, or wait for the next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._is_resting, self._is_hurried = True, False
            self._close_in(self.timeout_keep_alive)

    def _watch(self) -> None:
        """Wait for the client no longer than allowed, if it is the one to do something."""
        if self.is_answering():
            self._is_hurried, self._close_at_s = False, math.inf
        elif not self._is_resting and not self._is_hurried:
            self._is_hurried = True
            self._close_in(self.limits.header_s)

    def _close_in(self, seconds: float) -> None:
        """Give the connection up after that time, unless something else is said before."""
        self._close_at_s = time.perf_counter() + seconds
        if self._timer is None or self._timer_s > self._close_at_s:
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._forget_timer()
        self._timer_s = time.perf_counter() + seconds
        self._timer = self.loop.call_later(seconds, self._ring)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        """Give the connection up, or look again when that is due by now."""
        self._timer = None
        left_s = self._close_at_s - time.perf_counter()
        if left_s <= _TICK_S:
            self._give_up()
        elif left_s < math.inf:
            self._set_timer(left_s)

    def _give_up(self) -> None:
        """Close a connection whose client does not go on."""
        if self.transport.is_closing():
            return
        if self._is_in_message and not self._has_head:
            self._refuse(408, f"expected the headers within {self.limits.header_s:g} s")
        else:
            self.transport.close()

    def is_answering(self) -> bool:
        """Whether the last request that was read whole or in part is unanswered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, detail: str) -> None:
        """Send a problem past the application, and close the connection."""
        request_id = secrets.token_hex(6)
        body = problem_body(status, detail, request_id)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self._forget_timer()
        self.transport.write(head.encode() + body)
        self.transport.close()
