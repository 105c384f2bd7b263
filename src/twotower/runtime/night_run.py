"""Runs the nights: the training, then what is to be tidied up after it, one step at a time."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from twotower.errors import GateRefused, TwoTowerError
from twotower.publishing.store import ModelStore
from twotower.runtime.child import Clock, describe_exit
from twotower.runtime.nights import (
    NightBook,
    NightRecord,
    Outcome,
    night_to_run,
    trainable_days,
    trained_day,
)
from twotower.runtime.processes import ProcessSpec, spawn
from twotower.runtime.schedule import NightSchedule
from twotower.runtime.settings import RuntimeSettings
from twotower.runtime.status_file import NightState

__all__ = ["NightRunner"]

_LOGGER: Final = logging.getLogger("twotower")
_LOOK_S: Final = 5.0
"""How often the manifests are looked at once a night is due."""


class NightRunner:
    """Look again and again; `look` never waits. At most one night runs."""

    def __init__(
        self,
        data_path: Path,
        settings: RuntimeSettings,
        schedule: NightSchedule,
        steps: Callable[[str], Sequence[ProcessSpec]],
        clock: Clock,
    ) -> None:
        """Read what became of earlier nights; one that ran then was interrupted.

        Args:
            data_path: the project's data folder.
            settings: how often a night is tried.
            schedule: when nights are due.
            steps: gives what the night of a day runs; the first step decides its outcome.
            clock: where the time comes from.

        Raises:
            CorruptArtifact: the records are damaged.
        """
        self._data_path = data_path
        self._settings = settings
        self._schedule = schedule
        self._steps_of = steps
        self._clock = clock
        self._book = NightBook(data_path)
        self._process: subprocess.Popen[bytes] | None = None
        self._steps: list[ProcessSpec] = []
        """Those that have not ended; the first one runs."""
        self._record: NightRecord | None = None
        """Of the night that runs."""
        self._published: list[str] = []
        self._look_at_s = clock.monotonic_s()
        self._waits_for: str | None = None
        self.ended_well = True
        """A night that was told to stop has always ended well: it goes on another time."""
        for record in self._book.all():
            if record.outcome == "running":
                self._book.write(record.changed(outcome="interrupted"))

    def state(self) -> NightState:
        """Return how the nights stand."""
        is_running = self._process is not None
        return NightState(
            next_due_at_ms=round(self._schedule.next(self._clock.wall_s()).at_s * 1000),
            waits_for=self._waits_for,
            running=self._steps[0].name if is_running else None,
            day=self._record.day if self._record and is_running else None,
            pid=self._process.pid if self._process else None,
        )

    def look(self) -> bool:
        """Go on with the night that runs, or begin one that is due; return whether it changed.

        A disk that is full, or a manifest that is damaged, is said and looked at again later.
        """
        try:
            return self._go_on() if self._process is not None else self._begin_what_is_due()
        except (OSError, TwoTowerError) as error:
            _LOGGER.error("night_cannot_go_on error=%r", str(error))
            self._look_at_s = self._clock.monotonic_s() + self._settings.night_retry_s
            return True

    def _go_on(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self._step_ended(code)
        return code is not None

    def _begin_what_is_due(self) -> bool:
        if self._clock.monotonic_s() < self._look_at_s:
            return False
        self._look_at_s = self._clock.monotonic_s() + _LOOK_S
        due = self._schedule.last(self._clock.wall_s())
        days, trained = trainable_days(self._data_path), trained_day(self._data_path)
        attempts = self._settings.night_attempts
        day = night_to_run(due.day, days, trained, self._book, attempts)
        if day is not None:
            self._begin(day)
        has_changed = self._wait_for(due.day if due.day > max(trained or "", *days, "") else None)
        return day is not None or has_changed

    def _wait_for(self, day: str | None) -> bool:
        """Remember, and say once, which day is due but not complete."""
        has_changed = day != self._waits_for
        if has_changed and day is not None:
            _LOGGER.info("night_waits day=%s", day)
        self._waits_for = day
        return has_changed

    def _begin(self, day: str) -> None:
        """Write down that the night is tried, so that one that takes the machine down counts."""
        before = self._book.of(day)
        self._record = NightRecord(
            day=day,
            outcome="running",
            attempts=1 + (before.attempts if before else 0),
            started_at_ms=self._clock.now_ms(),
        )
        self._book.write(self._record)
        self._published = ModelStore(self._data_path).names()
        self._steps = [*self._steps_of(day)]
        _LOGGER.info("night_began day=%s attempt=%d", day, self._record.attempts)
        self._start_step()

    def _start_step(self) -> None:
        self._process = spawn(self._steps[0])
        _LOGGER.info("night_step name=%s pid=%d", self._steps[0].name, self._process.pid)

    def _step_ended(self, code: int) -> None:
        step, record = self._steps.pop(0), self._record
        assert record is not None
        self._process = None
        if record.outcome == "running":
            record = self._judge(record, code)
            if record.outcome == "failed":
                self._steps = []
                self._look_at_s = self._clock.monotonic_s() + self._settings.night_retry_s
        elif code:
            _LOGGER.error("night_step_failed name=%s exit=%s", step.name, describe_exit(code))
        if self._steps:
            self._start_step()

    def _judge(self, record: NightRecord, code: int) -> NightRecord:
        """Write down what became of the training."""
        outcomes: dict[int, Outcome] = {0: "live", GateRefused.exit_code: "refused"}
        outcome = outcomes.get(code, "failed")
        new = [n for n in ModelStore(self._data_path).names() if n not in self._published]
        self._record = record.changed(
            outcome=outcome,
            ended_at_ms=self._clock.now_ms(),
            exit=describe_exit(code),
            generation=new[-1] if new else None,
        )
        self._book.write(self._record)
        level = logging.INFO if outcome == "live" else logging.ERROR
        _LOGGER.log(
            level,
            "night_ended day=%s outcome=%s exit=%s generation=%s",
            *(record.day, outcome, describe_exit(code), self._record.generation),
        )
        return self._record

    def signal(self, number: int) -> None:
        """Send a signal to the step that runs, if any."""
        if self._process is not None:
            self._process.send_signal(number)

    def has_stopped(self) -> bool:
        """Return whether no step runs any more; none is started again."""
        code = None if self._process is None else self._process.poll()
        record = self._record
        if code is not None and record is not None:
            self._process, self._steps = None, []
            try:
                if record.outcome == "running":
                    self._judge_stopped(record, code)
            except OSError as error:  # its record says that it runs: the next start corrects it
                _LOGGER.error("night_not_recorded error=%r", str(error))
        return self._process is None

    def _judge_stopped(self, record: NightRecord, code: int) -> None:
        """A night that was told to stop has not failed, unless it ended by itself before."""
        if code >= 0:
            self._judge(record, code)
            return
        _LOGGER.info("night_interrupted day=%s exit=%s", record.day, describe_exit(code))
        interrupted = record.changed(outcome="interrupted", attempts=record.attempts - 1)
        self._book.write(interrupted.changed(ended_at_ms=self._clock.now_ms()))
