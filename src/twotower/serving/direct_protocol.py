"""The HTTP protocol for one route without ASGI: a request that came whole is answered by a call.

It is answered in a turn of its own, as a task would be: all requests that can be read are read, and
counted, before the next search. One whose body comes later, or that is behind another one in the
same packet, goes to the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from twotower.serving.problems import CLOSE, Header
from twotower.serving.protocol import ConnectionLimits, Gate, GuardedProtocol, protocol_with

__all__ = ["Direct", "direct_protocol"]


class Direct(Protocol):
    """Answers whole requests of one route."""

    def takes(self, method: bytes, url: bytes) -> bool:
        """Return whether a request is of the route."""

    def answer(
        self, headers: Sequence[Header], body: bytes, read_s: float, *, is_gone: bool
    ) -> tuple[int, list[Header], bytes]:
        """Return status, headers and body of the answer, which is counted."""


def direct_protocol(
    limits: ConnectionLimits, gate: Gate | None, direct: Direct, num_waiting: list[int]
) -> type[GuardedProtocol]:
    """Return the protocol with these limits and this route, which counts in `num_waiting`."""
    members = {"direct": direct, "num_waiting": num_waiting}
    return protocol_with(limits, gate, type("DirectProtocol", (_DirectProtocol,), members))


class _NobodyWaits:
    def set(self) -> None:
        """Wake nobody."""


_NOBODY_WAITS: Final = _NobodyWaits()


class _Request:
    """A request of the route, where uvicorn keeps the one that it answers."""

    def __init__(self, headers: list[Header], *, keep_alive: bool) -> None:
        self.headers = headers
        self.parts: list[bytes] = []
        """Of its body."""
        self.read_s = 0.0
        self.is_whole = False
        # what uvicorn reads and writes of a request
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False
        self.message_event = _NOBODY_WAITS


class _DirectProtocol(GuardedProtocol):
    """One connection."""

    direct: ClassVar[Direct]
    num_waiting: ClassVar[list[int]]
    """One number: the requests of the route, of all connections, that wait for their turn."""

    def num_unanswered(self) -> int:
        """Count those of the route, too."""
        return super().num_unanswered() + self.num_waiting[0]

    def begin(self) -> None:
        """Wait for the body of a request of the route, which most often is there already."""
        if self._is_direct():
            keeps = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self.cycle = _Request(self.headers, keep_alive=keeps)  # type: ignore[assignment]
        else:
            super().begin()

    def _is_direct(self) -> bool:
        return (
            self.direct.takes(self.parser.get_method(), self.url)
            and not self.is_answering()
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and not self.flow.write_paused
        )

    def data_received(self, data: bytes) -> None:
        """Hand a request over whose body has not come whole."""
        super().data_received(data)
        request: Any = self.cycle
        if isinstance(request, _Request) and not (
            request.is_whole or request.response_complete or self.transport.is_closing()
        ):
            self.cycle = None  # type: ignore[assignment]
            super().begin()
            for part in request.parts:
                super().on_body(part)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        request: Any = self.cycle
        if isinstance(request, _Request) and not request.is_whole:
            request.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer in the next turn."""
        request: Any = self.cycle
        if not isinstance(request, _Request) or request.is_whole:
            super().on_message_complete()
            return
        self.end_message()
        request.is_whole, request.read_s = True, self.read_s
        self.num_waiting[0] += 1
        self.loop.call_soon(self._answer, request)

    def _answer(self, request: _Request) -> None:
        self.num_waiting[0] -= 1
        is_gone = request.disconnected or self.transport.is_closing()
        body = b"".join(request.parts)
        status, headers, content = self.direct.answer(
            request.headers, body, request.read_s, is_gone=is_gone
        )
        request.response_complete = True
        request.parts.clear()
        if is_gone:
            return
        if not request.keep_alive and CLOSE[0] not in headers:
            headers.extend(CLOSE)
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*lines, b"\r\n", content)))
        if CLOSE[0] in headers:
            self.transport.close()
        self.on_response_complete()
