"""`twotower collect`: one process that takes events until it is told to stop.

SIGTERM and SIGINT drain: no new connection is taken, what arrived is stored and answered, the
exit code is 0. A process that is killed loses nothing that it acknowledged.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Final

from twotower.data.event_log.intake import Intake
from twotower.data.event_log.settings import EventLogSettings
from twotower.data.events import IdKinds
from twotower.serving.collector import Collector
from twotower.serving.guard import Guard
from twotower.serving.http_server import HttpServer
from twotower.serving.reach import bind
from twotower.serving.settings import CollectorSettings

__all__ = ["CollectorProcess"]

_LOOK_S: Final = 0.5
"""How often the collector looks at the API keys."""


class CollectorProcess:
    """Start, run until a signal; once."""

    def __init__(
        self,
        data_path: Path,
        settings: CollectorSettings,
        log_settings: EventLogSettings,
        id_kinds: IdKinds | None,
        *,
        requires_key: bool = False,
    ) -> None:
        """Bind the address and open the log; events wait in the socket until `run`.

        Args:
            data_path: The project's data folder.
            settings: How to collect.
            log_settings: Of the event log.
            id_kinds: What the imported IDs are; None before the first import.
            requires_key: Refuse requests without a key, see `check_reach`.

        Raises:
            ConfigError: the address cannot be bound.
            DataError, CorruptArtifact, NotReady: the log cannot be opened.
        """
        self._listener = bind(settings.host, settings.port)
        try:
            self._intake = Intake(data_path, log_settings, id_kinds)
        except BaseException:
            self._listener.close()
            raise
        self._guard = Guard(data_path, requires_key=requires_key)
        self._collector = Collector(self._intake, settings, self._guard)
        self._server = HttpServer(self._collector, settings)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        is_six = self._listener.family == socket.AF_INET6
        return f"http://[{host}]:{port}" if is_six else f"http://{host}:{port}"

    def run(self) -> None:
        """Take events until a signal, then finish what arrived and close the log."""
        loop = self._server.new_loop()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._drain)
            self._guard.follow(loop, _LOOK_S)
            loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        finally:
            loop.close()
            self._collector.close()
            self._intake.close()

    def _drain(self) -> None:
        """Stop; at once when asked again."""
        if self._collector.is_draining:
            self._server.force_exit = True
        self._collector.is_draining = True
        self._server.stop()
