"""One process that is kept alive: started, buried, and started again after a pause that grows."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from twotower.runtime.processes import ProcessSpec, spawn
from twotower.runtime.settings import RuntimeSettings
from twotower.runtime.status_file import ProcessStatus

__all__ = ["Child", "Clock", "describe_exit"]

_LOGGER: Final = logging.getLogger("twotower")


class Clock(NamedTuple):
    """Where the time comes from; a test brings its own."""

    wall_s: Callable[[], float] = time.time
    """Seconds since 1970: what people and schedules read."""
    monotonic_s: Callable[[], float] = time.monotonic
    """Never goes back: what pauses are measured by."""

    def now_ms(self) -> int:
        """Return the milliseconds since 1970."""
        return int(self.wall_s() * 1000)


class Child:
    """Start, look again and again, stop; `look` never waits."""

    def __init__(self, spec: ProcessSpec, settings: RuntimeSettings, clock: Clock) -> None:
        """Nothing is started yet; the first `look` does."""
        self._spec = spec
        self._settings = settings
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s = 0.0
        self._started_s = 0.0
        self._start_at_s = clock.monotonic_s()
        self.ended_well = True
        """Whether the process, told to stop, ended by itself or by that signal."""
        self.status = ProcessStatus(name=spec.name, command=list(spec.command))

    @property
    def is_running(self) -> bool:
        """Whether its process runs, as of the last look."""
        return self._process is not None

    def look(self) -> bool:
        """Bury the process if it died, start it if its pause is over; return whether it changed."""
        changed = self._bury()
        if self._process is None and self._clock.monotonic_s() >= self._start_at_s:
            self._start()
            changed = True
        return changed

    def due_in_s(self) -> float | None:
        """Return the seconds until the next start, None while it runs."""
        if self._process is not None:
            return None
        return max(0.0, self._start_at_s - self._clock.monotonic_s())

    def _start(self) -> None:
        is_again = self.status.started_at_ms is not None
        try:
            self._process = spawn(self._spec)
        except OSError as error:
            _LOGGER.error("process_not_started name=%s error=%r", self._spec.name, str(error))
            self._pause(0.0)
            return
        self._started_s = self._clock.monotonic_s()
        self.status = self.status.changed(
            state="running",
            pid=self._process.pid,
            started_at_ms=self._clock.now_ms(),
            next_start_at_ms=None,
            restarts=self.status.restarts + is_again,
        )
        event = "process_restarted" if is_again else "process_started"
        restarts = self.status.restarts
        _LOGGER.info(
            "%s name=%s pid=%d restarts=%d", event, self._spec.name, self._process.pid, restarts
        )

    def _bury(self) -> bool:
        """Note that the process ended, and when the next one starts."""
        code = None if self._process is None else self._process.poll()
        if self._process is None or code is None:
            return False
        ran_s = self._clock.monotonic_s() - self._started_s
        self._pause(ran_s)
        _LOGGER.error(
            "process_died name=%s pid=%d exit=%s ran_s=%.1f pause_s=%.1f",
            *(self._spec.name, self._process.pid, describe_exit(code), ran_s, self._pause_s),
        )
        self._forget(code, "waiting", self._clock.now_ms() + round(1000 * self._pause_s))
        return True

    def _pause(self, ran_s: float) -> None:
        """Set when the next start is: later each time, unless this one ran long enough."""
        pause_s = 0.0 if ran_s >= self._settings.steady_s else 2 * self._pause_s
        self._pause_s = min(self._settings.max_pause_s, max(self._settings.first_pause_s, pause_s))
        self._start_at_s = self._clock.monotonic_s() + self._pause_s

    def _forget(self, code: int, state: str, next_start_at_ms: int | None) -> None:
        self._process = None
        self.status = self.status.changed(
            state=state,
            pid=None,
            last_exit=describe_exit(code),
            last_exit_at_ms=self._clock.now_ms(),
            next_start_at_ms=next_start_at_ms,
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def has_stopped(self) -> bool:
        """Return whether the process is gone; it is not started again."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            _LOGGER.info("process_stopped name=%s exit=%s", self._spec.name, describe_exit(code))
            self.ended_well = code in (0, -signal.SIGTERM)
            self._forget(code, "stopped", None)
        elif self._process is None and self.status.state != "stopped":
            self.status = self.status.changed(state="stopped", next_start_at_ms=None)
        return self._process is None


def describe_exit(code: int) -> str:
    """Return how a process ended: its exit code, or the name of the signal that killed it."""
    return str(code) if code >= 0 else signal.Signals(-code).name
