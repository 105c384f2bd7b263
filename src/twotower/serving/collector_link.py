"""`POST /v1/events` at the server's address: bytes go to the collector and its answer comes back.

The collector stays a process of its own, so that neither a disk that is slow nor a collector that
is gone touches retrieval: what it does not answer gets 503 with the time to come again. Nothing is
decoded here. Events carry their `event_id`, so sending them again changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from twotower.serving.exchange import Call, Reply
from twotower.serving.problems import RefusedRequest
from twotower.serving.refusals import AGAIN
from twotower.serving.settings import CollectorSettings

__all__ = ["CollectorLink"]

_ANSWER_S: Final = 30.0
"""How long the collector may take, unless the client gives it less."""
_IDLE: Final = 8
"""Connections that are kept for the next request."""
_PASSED_ON: Final = frozenset(
    {b"content-type", b"content-encoding", b"authorization", b"x-api-key", b"traceparent"}
    | {b"idempotency-key"}
)
_PASSED_BACK: Final = frozenset({b"retry-after", b"www-authenticate", b"idempotent-replayed"})
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_GONE: Final = (OSError, EOFError, asyncio.LimitOverrunError, LookupError, ValueError)


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class CollectorLink:
    """Connections of one worker to the collector. All of it belongs to one event loop."""

    def __init__(self, settings: CollectorSettings) -> None:
        """Connect to nothing yet; `settings` are those that the collector listens by."""
        self._host = _ANY_ADDRESS.get(settings.host, settings.host)
        self._port = settings.port
        self._idle: list[_Connection] = []

    def close(self) -> None:
        """Close the connections that wait for the next request."""
        while self._idle:
            self._idle.pop().writer.close()

    async def events(self, call: Call) -> Reply:
        """Return what the collector answers."""
        seconds = min(_ANSWER_S, call.deadline_s - time.perf_counter())
        try:
            return await asyncio.wait_for(self._asked(call), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            detail = "the collector did not answer in time; what was sent may be stored; send it"
            raise RefusedRequest(504, f"{detail} again: an event is stored once") from None
        except _GONE:
            detail = (
                "the collector does not answer; nothing was acknowledged; start it with: "
                "twotower collect; and send the events again"
            )
            raise RefusedRequest(503, detail, headers=AGAIN) from None

    async def _asked(self, call: Call) -> Reply:
        """Ask over a connection that is there, or over a new one where that has ended."""
        message = self._head(call) + call.body
        while self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange(kept, message)
            except _GONE:
                continue
        return await self._exchange(await self._connect(), message)

    async def _connect(self) -> _Connection:
        if not self._port:
            raise ConnectionRefusedError("the collector listens where chance put it")
        return _Connection(*await asyncio.open_connection(self._host, self._port))

    def _head(self, call: Call) -> bytes:
        lines = [
            b"POST /v1/events HTTP/1.1",
            b"host: collector",
            b"content-length: %d" % len(call.body),
            b"x-request-id: " + call.request_id.encode(),
        ]
        lines += [
            name + b": " + value for name, value in call.scope["headers"] if name in _PASSED_ON
        ]
        return b"\r\n".join([*lines, b"", b""])

    async def _exchange(self, connection: _Connection, message: bytes) -> Reply:
        reader, writer = connection
        is_whole = False
        try:
            writer.write(message)
            await writer.drain()
            reply, is_kept = _parsed(await reader.readuntil(b"\r\n\r\n"))
            body = await reader.readexactly(int(reply.body))
            is_whole = is_kept and len(self._idle) < _IDLE
            return reply._replace(body=body)
        finally:
            if is_whole:
                self._idle.append(connection)
            else:
                writer.close()


def _parsed(head: bytes) -> tuple[Reply, bool]:
    """Return a reply whose body is its length yet, and whether the connection goes on."""
    first, *lines = head[:-4].split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in
               (line.partition(b":") for line in lines)]  # fmt: skip
    found = dict(headers)
    reply = Reply(
        int(first.split(b" ", 2)[1]),
        found[b"content-length"],
        found[b"content-type"],
        tuple(header for header in headers if header[0] in _PASSED_BACK),
    )
    return reply, found.get(b"connection", b"").lower() != b"close"
