"""Follows what the day brings over a generation: deltas, items, users' actions.

Each look returns a newer retriever, or the same one where nothing came. What is refused changes
nothing: it is named, counted, and looked at again after a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from twotower.data.event_log import EventLog, has_event_log, open_event_log
from twotower.data.example_log.manifest import examples_path, read_manifest
from twotower.errors import CorruptArtifact, LineageError, TwoTowerError
from twotower.publishing.checked import Fingerprint
from twotower.publishing.day_items import item_vectors
from twotower.publishing.delta import has_delta, read_deltas
from twotower.publishing.item_register import (
    ItemRegister,
    read_register,
    register_fingerprint,
)
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings
from twotower.serving.user_state import UserEvents

__all__ = ["Counts", "DayFollower", "LogReader", "NoCounts", "first_offset", "named_problem"]

_LOGGER: Final = logging.getLogger("twotower")
_PIECE_EVENTS: Final = 4096
_BREATH_S: Final = 0.001
"""Between two pieces: the thread that answers gets the interpreter back."""
_MAX_PIECES: Final = 16
_EARLY_MS: Final = 3_600_000
"""How much earlier than its time an event may be received: clocks differ."""

Part = Literal["withdrawn", "items", "delta", "user_state"]


class Counts(Protocol):
    """Who is told what was taken over; `twotower.serving.metrics.Metrics` is one."""

    def publish_ended(self, kind: str, result: str) -> None:
        """Count a delta, or users' actions, taken over or refused."""

    def publish_phase(self, kind: str, phase: str, seconds: float) -> None:
        """Count how long that took."""


class NoCounts:
    """Nobody is told."""

    def publish_ended(self, kind: str, result: str) -> None:
        """Do nothing."""

    def publish_phase(self, kind: str, phase: str, seconds: float) -> None:
        """Do nothing."""


class LogReader:
    """The project's event log, opened when there is one. Safe for threads."""

    def __init__(self, data_path: Path, positive_outcomes: Sequence[str]) -> None:
        """Open nothing yet; `positive_outcomes` are those that count as clicks."""
        self.positive_outcomes = positive_outcomes
        self._data_path = data_path
        self._log: EventLog | None = None
        self._opening = threading.Lock()

    def log(self) -> EventLog | None:
        """Return the log, None where nothing was ever stored."""
        with self._opening:
            if self._log is None and has_event_log(self._data_path):
                self._log = open_event_log(self._data_path)
            return self._log

    def close(self) -> None:
        """Close it; nobody may be reading."""
        if self._log is not None:
            self._log.close()


class DayFollower:
    """Brings retrievers of one generation up to date. For one thread at a time."""

    def __init__(
        self, data_path: Path, settings: ServingSettings, counts: Counts, reader: LogReader
    ) -> None:
        """Nothing is read yet.

        Args:
            data_path: The project's data folder.
            settings: How long what was refused is left alone, and how many events count.
            counts: Told what was applied and what was refused.
            reader: Of the event log.
        """
        self.problems: dict[Part, str] = {}
        """What was refused and stays so, and why."""
        self._data_path = data_path
        self._settings = settings
        self._counts = counts
        self._reader = reader
        self._retry_at_s: dict[Part, float] = {}
        self._known_register = ItemRegister()
        self._fingerprint: Fingerprint | None = None

    def catch_up(self, retriever: Retriever) -> Retriever:
        """Return a retriever with everything that exists by now, however long it takes."""
        while True:
            newer = self.advance(retriever)
            if newer is retriever:
                return retriever
            retriever = newer

    def begin_again(self, retriever: Retriever) -> Retriever:
        """Return a retriever for another activation of the same generation, brought up to date.

        Its deltas may have been dropped while another generation was live, and have begun anew.
        """
        mark = retriever.overlay.delta
        if mark and not has_delta(self._data_path, retriever.generation, mark):
            retriever = retriever.without_deltas()
        return self.advance(retriever)

    def advance(self, retriever: Retriever) -> Retriever:
        """Return a retriever with what came since, at most some thousand events of the log."""
        retriever = self._tried("withdrawn", self._with_withdrawn, retriever)
        retriever = self._tried("items", self._with_items, retriever)
        retriever = self._tried("delta", self._with_deltas, retriever)
        if self._settings.user_state_events:
            retriever = self._tried("user_state", self._with_events, retriever)
        return retriever

    def _tried(
        self, part: Part, step: Callable[[Retriever], Iterator[Retriever]], retriever: Retriever
    ) -> Retriever:
        """Take the steps up to the first that fails, and note whether one did."""
        if time.monotonic() < self._retry_at_s.get(part, 0.0):
            return retriever
        try:
            for newer in step(retriever):
                retriever = newer
        except Exception as error:
            self._refuse(part, error)
        else:
            self.problems.pop(part, None)
        return retriever

    def _refuse(self, part: Part, error: Exception) -> None:
        self._retry_at_s[part] = time.monotonic() + self._settings.retry_s
        problem = named_problem(error)
        if problem == self.problems.get(part):
            return
        self.problems[part] = problem
        self._counts.publish_ended(part, _result(error))
        unexpected = not isinstance(error, TwoTowerError)
        _LOGGER.error(
            "not_followed part=%s problem=%r", part, problem, exc_info=error if unexpected else None
        )

    def _with_withdrawn(self, retriever: Retriever) -> Iterator[Retriever]:
        """Apart from the added ones: whatever is wrong with those, a withdrawn item is gone."""
        register, items = self._register(), retriever.overlay.items
        after = items.with_withdrawn(register, retriever.encoder.items.kind)
        if not after.searches_as(items):
            yield retriever.with_items(after)

    def _with_items(self, retriever: Retriever) -> Iterator[Retriever]:
        register, items = self._register(), retriever.overlay.items
        if register.number == items.number:
            return
        vectors = items.vectors
        if register.added_number != items.added_number:
            base, encoder = retriever.base, retriever.encoder
            vectors = item_vectors(self._data_path, base, encoder, register)
        yield retriever.with_items(items.with_added(register, vectors))
        self._counts.publish_ended("items", "ok")

    def _register(self) -> ItemRegister:
        fingerprint = register_fingerprint(self._data_path)
        if fingerprint != self._fingerprint:
            self._known_register = read_register(self._data_path)
            self._fingerprint = fingerprint
        return self._known_register

    def _with_deltas(self, retriever: Retriever) -> Iterator[Retriever]:
        """Yield a retriever a delta: those before a damaged one are applied."""
        deltas = read_deltas(self._data_path, retriever.base, after=retriever.overlay.delta)
        began = time.perf_counter()
        for delta in deltas:
            retriever = retriever.with_deltas([delta])
            self._counts.publish_phase("delta", "apply", time.perf_counter() - began)
            self._counts.publish_ended("delta", "ok")
            yield retriever
            time.sleep(_BREATH_S)
            began = time.perf_counter()

    def _with_events(self, retriever: Retriever) -> Iterator[Retriever]:
        log = self._reader.log()
        if log is None:
            return
        known = retriever.user_state
        try:
            state = _advanced(known or self._new_state(retriever, log), log)
            if state is not known:
                yield retriever.with_user_state(state)
        except LineageError as error:  # forgotten while nobody read, or the log was replaced
            _LOGGER.warning("user_state_restarted reason=%r", str(error))
            self._counts.publish_ended("user_state", "restarted")
            yield retriever.with_user_state(self._new_state(retriever, log))

    def _new_state(self, retriever: Retriever, log: EventLog) -> UserEvents:
        window = retriever.base.manifest.window
        event_cut = self._event_cut(window.through_day)
        first = first_offset(log, window.cut_ms)
        return retriever.new_user_state(
            first if event_cut is None else min(first, max(event_cut, log.bounds().begin)),
            self._reader.positive_outcomes,
            self._settings.user_state_events,
            event_cut,
        )

    def _event_cut(self, day: str | None) -> int | None:
        """Return where in the event log a day was cut, None where it did not come that way."""
        examples = read_manifest(examples_path(self._data_path))
        return examples.event_cuts.get(day or "") if examples else None


def _advanced(state: UserEvents, log: EventLog) -> UserEvents:
    for piece in range(_MAX_PIECES):
        events = log.read(state.offset, _PIECE_EVENTS, with_requests=False)
        if not len(events.offset):
            break
        if piece:
            time.sleep(_BREATH_S)
        state = state.extend(events)
    return state


def first_offset(log: EventLog, cut_ms: int) -> int:
    """Return an offset before which no event is later than the cut.

    By bisection over the times of arrival, which grow with the offset but for some seconds.
    """
    first, end = log.bounds()
    while first < end:
        middle = (first + end) // 2
        received_ms = int(log.read(middle, 1, with_requests=False).received_ms[0])
        if received_ms < cut_ms - _EARLY_MS:
            first = middle + 1
        else:
            end = middle
    return first


def named_problem(error: Exception) -> str:
    """Return one line about an error, for people."""
    named = str(error) if isinstance(error, TwoTowerError) else f"{type(error).__name__}: {error}"
    return named[:1000]


def _result(error: Exception) -> str:
    return "corrupt" if isinstance(error, CorruptArtifact) else "rejected"
