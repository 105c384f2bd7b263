"""The HTTP server under workers and collector: uvicorn with our bounds, and none of its own ways.

It writes no log, reads no signals and adds no headers: whoever runs it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from twotower.serving.direct_protocol import Direct, direct_protocol
from twotower.serving.protocol import ConnectionLimits, Gate, protocol_with
from twotower.serving.settings import CollectorSettings, ServingSettings

__all__ = ["HttpServer"]

_BACKLOG: Final = 2048


class HttpServer(uvicorn.Server):
    """Serve an application until told to stop."""

    def __init__(
        self,
        application: Callable[..., Any],
        settings: ServingSettings | CollectorSettings,
        gate: Gate | None = None,
        direct: Direct | None = None,
    ) -> None:
        """Nothing listens yet.

        Args:
            application: As ASGI has it.
            settings: Bounds of connections, and how long a drain may take.
            gate: Answers a request the moment its head is read, if it likes to.
            direct: Answers whole requests of one route past the application.
        """
        limits = ConnectionLimits(
            settings.header_limit_bytes, settings.header_timeout_s, settings.max_connections
        )
        self._waiting = [0]
        if direct:
            protocol = direct_protocol(limits, gate, direct, self._waiting)
        else:
            protocol = protocol_with(limits, gate)
        config = uvicorn.Config(
            application,
            http=protocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=round(settings.drain_timeout_s),
        )
        super().__init__(config)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return a loop of the kind that it wants; from now on only its failures are logged."""
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        factory = self.config.get_loop_factory()
        return factory() if factory else asyncio.new_event_loop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: uvicorn would die by the signal again."""
        yield

    def num_waiting(self) -> int:
        """Return how many requests of the direct route were read and wait for their turn."""
        return self._waiting[0]

    def stop(self) -> None:
        """Take no more connections, finish what runs."""
        self.should_exit = True
