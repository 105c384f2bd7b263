"""uvicorn's HTTP protocol with bounds: how much a client may send, and how slowly.

A connection is closed when its head is longer than allowed or does not come in time, and when
nothing is answered on it and nothing was begun for longer than it may idle. The time at which a
request was read goes with it, so that whoever answers knows how long it has waited.
"""

from __future__ import annotations

import asyncio
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


def protocol_with(limits: ConnectionLimits, gate: Gate | None = None) -> type[GuardedProtocol]:
    """Return the protocol with these limits; no more connections than the process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bounded = limits._replace(connections=max(1, min(limits.connections, files - _SPARE_FILES)))
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": bounded, "gate": gate})


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: ClassVar[ConnectionLimits]
    gate: ClassVar[Gate | None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request, or refuse the connection."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._read_s = time.perf_counter()
        self._head_bytes = 0
        self._is_in_message = self._has_head = self._is_refused = False
        self._patience: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "as many connections as may be are open; come again later")
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what was read, and see that the client goes on."""
        self._read_s = time.perf_counter()
        self._head_bytes += len(data)
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
        lengths = (len(name) + len(value) + 4 for name, value in self.headers)
        if self.transport.is_closing() or not self._check_head(len(self.url) + sum(lengths)):
            return
        state = self.scope["state"]
        state["read_s"], state["is_whole"] = self._read_s, False
        if not self._is_refused_at_once():
            super().on_headers_complete()

    def _is_refused_at_once(self) -> bool:
        """Answer past the application if the gate says so; what is pipelined waits its turn."""
        if self.gate is None or self._is_answering():
            return False
        method = self.parser.get_method().decode("ascii")
        answer = self.gate.refusal(method, self.url, self.headers, len(self.tasks))
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
        """The request has arrived whole."""
        self._is_in_message, self._head_bytes = False, 0
        if not self._is_refused and not self.transport.is_closing():
            state = self.scope["state"]
            state["read_s"], state["is_whole"] = self._read_s, True
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP, and close the connection."""
        self._refuse(400, "expected HTTP/1.1, found something else or contradictions")

    def _check_head(self, num_bytes: int) -> bool:
        """Return whether a head may be so long; refuse the request if not."""
        if num_bytes <= self.limits.header_bytes:
            return True
        self._refuse(431, f"expected at most {self.limits.header_bytes} bytes of headers")
        return False

    def _watch(self) -> None:
        """Wait for the client no longer than allowed, if it is the one to do something."""
        is_idling = not self._is_answering() and self.timeout_keep_alive_task is None
        if is_idling:
            if self._patience is None:
                self._patience = self.loop.call_later(self.limits.header_s, self._give_up)
        else:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """Close a connection whose client does not go on."""
        self._patience = None
        if self.transport.is_closing():
            return
        if self._is_in_message and not self._has_head:
            self._refuse(408, f"expected the headers within {self.limits.header_s:g} s")
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
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
        self._stop_waiting()
        self.transport.write(head.encode() + body)
        self.transport.close()
