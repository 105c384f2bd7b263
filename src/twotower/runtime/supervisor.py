"""The supervisor: one process that does nothing itself and keeps the project's commands alive.

All children are started from its main thread and die with it (`tether`). Stopping goes in the order
of the table: the server takes no more requests, the collector stores what arrived, the join
commits, the increments finish their step. Each may be killed instead: the files say how far it
came.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from twotower.runtime.child import Child, Clock
from twotower.runtime.night_run import NightRunner
from twotower.runtime.processes import ProcessSpec
from twotower.runtime.settings import RuntimeSettings
from twotower.runtime.signals import Signals
from twotower.runtime.status_file import RuntimeStatus, write_status

__all__ = ["Supervisor"]

_LOGGER: Final = logging.getLogger("twotower")
_STOPPING: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_TICK_S: Final = 1.0


class Supervisor:
    """Start, loop until a signal, stop; once, and from the main thread."""

    def __init__(
        self,
        data_path: Path,
        settings: RuntimeSettings,
        table: Sequence[ProcessSpec],
        nights: NightRunner | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is started yet; the caller holds the project's lock until it has stopped."""
        self._data_path = data_path
        self._settings = settings
        self._clock = clock or Clock()
        self._children = [Child(spec, settings, self._clock) for spec in table]
        self._nights = nights
        self._started_at_ms = self._clock.now_ms()
        self._signals = Signals({*_STOPPING, signal.SIGCHLD})
        self._must_stop = False
        self._is_hurried = False

    def run(self) -> bool:
        """Keep everything alive until a signal, then drain; return whether all ended well."""
        with self._signals:
            _LOGGER.info("up_started pid=%d processes=%d", os.getpid(), len(self._children))
            self.look()
            self.loop()
            return self.stop()

    def loop(self) -> None:
        """Look again whenever something happens, until SIGTERM, SIGINT or SIGHUP."""
        while not self._must_stop:
            self._wait(self._due_in_s())
            if not self._must_stop:
                self.look()

    def look(self) -> None:
        """Bury and start what has to be, and say so if anything changed."""
        changes = [child.look() for child in self._children]
        if self._nights is not None:
            changes.append(self._nights.look())
        if any(changes):
            self._report("running")

    def _due_in_s(self) -> float:
        """Return how long nothing has to be done, unless a signal comes."""
        starts = [s for child in self._children if (s := child.due_in_s()) is not None]
        return min([_TICK_S, *starts])

    def _wait(self, timeout_s: float) -> None:
        """Wait for a signal, that of an ended child included."""
        for number in self._signals.wait(timeout_s):
            if number in _STOPPING:
                self._is_hurried, self._must_stop = self._must_stop, True
                name = signal.Signals(number).name
                _LOGGER.info("up_stops signal=%s at_once=%s", name, self._is_hurried)

    def stop(self) -> bool:
        """Drain one process after the other; return whether all ended by themselves, and well.

        A second signal kills what is left.
        """
        self._report("stopping")
        if self._nights is not None:
            self._nights.signal(signal.SIGTERM)  # it goes on from its last save another time
        ended_well = [self._drain(child) for child in self._children]
        if self._nights is not None:
            ended_well.append(self._drain(self._nights))
        self._report("stopped")
        _LOGGER.info("up_stopped well=%s", all(ended_well))
        return all(ended_well)

    def _drain(self, process: Child | NightRunner) -> bool:
        """Tell a process to stop and wait for it; kill it where it does not listen."""
        if process.has_stopped():
            return True
        give_up_at_s = time.monotonic() + self._settings.stop_timeout_s
        process.signal(signal.SIGTERM)
        while not process.has_stopped():
            if self._is_hurried or time.monotonic() >= give_up_at_s:
                return self._kill(process)
            self._wait(min(_TICK_S, max(0.0, give_up_at_s - time.monotonic())))
        self._report("stopping")
        return process.ended_well

    def _kill(self, process: Child | NightRunner) -> bool:
        process.signal(signal.SIGKILL)
        _LOGGER.error("process_killed at_once=%s", self._is_hurried)
        while not process.has_stopped():
            self._wait(_TICK_S)
        return False

    def _report(self, state: Literal["running", "stopping", "stopped"]) -> None:
        """Write the status file; a full disk must not take the processes down."""
        status = RuntimeStatus(
            pid=os.getpid(),
            state=state,
            started_at_ms=self._started_at_ms,
            written_at_ms=self._clock.now_ms(),
            processes=[child.status for child in self._children],
            night=self._nights.state() if self._nights else None,
        )
        try:
            write_status(self._data_path, status)
        except OSError as error:
            _LOGGER.error("status_not_written error=%r", str(error))
