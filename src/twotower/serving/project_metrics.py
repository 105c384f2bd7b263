"""Numbers that the project's files hold: gates, trainers, event log, join.

They are made by other processes, and true however often the server and its workers were restarted.
Whoever is asked for `/metrics` reads them; a file that cannot be read hides no other number, and is
counted itself.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from twotower.data.event_log import EventLog, EventLogSettings, has_event_log, open_event_log
from twotower.data.event_log.dead_letters import DeadLetters, has_dead_letters
from twotower.data.example_log.manifest import examples_path, read_manifest
from twotower.errors import TwoTowerError
from twotower.publishing.delta import newest_delta
from twotower.publishing.manifest import Manifest
from twotower.publishing.store import ModelStore

__all__ = ["ProjectMetrics"]

_LOGGER: Final = logging.getLogger("twotower")


class ProjectMetrics:
    """Collects from the files of one project; what is open stays open. Safe for threads."""

    def __init__(self, data_path: Path) -> None:
        """Nothing is read or opened yet."""
        self._data_path = data_path
        self._store = ModelStore(data_path)
        self._manifests: dict[str, Manifest] = {}
        """Of the generations asked for last: they never change."""
        self._log: EventLog | None = None
        self._letters: DeadLetters | None = None
        self._reading = threading.Lock()
        self._problems: dict[str, str] = {}

    def close(self) -> None:
        """Close what is open; it is opened again when it is needed."""
        for opened in (self._log, self._letters):
            if opened is not None:
                opened.close()
        self._log = self._letters = None

    def collect(self) -> Iterator[Metric]:
        """Return what there is; a project without events has none of theirs."""
        parts: dict[str, Callable[[], Iterable[Metric]]] = {
            "generations": self._generations,
            "event_log": self._events,
            "rejected": self._rejected,
            "examples": self._examples,
        }
        unreadable = GaugeMetricFamily(
            "twotower_unreadable_files", "Files that could not be read.", labels=["part"]
        )
        with self._reading:
            for name, part in parts.items():
                found = self._tried(name, part)
                unreadable.add_metric([name], float(found is None))
                yield from found or ()
        yield unreadable

    def _tried(self, name: str, part: Callable[[], Iterable[Metric]]) -> list[Metric] | None:
        try:
            found = list(part())
        except (TwoTowerError, OSError) as error:
            if self._problems.get(name) != str(error):
                _LOGGER.error("metrics_unreadable part=%s problem=%r", name, str(error))
            self._problems[name] = str(error)
            return None
        self._problems.pop(name, None)
        return found

    def _generations(self) -> Iterator[Metric]:
        """Return the gates of what is live and of the newest one beside it, and its training."""
        live, names = self._store.live(), self._store.names()
        wanted = {"live": live.generation} if live else {}
        if names and names[-1] != wanted.get("live"):
            wanted["candidate"] = names[-1]
        sides = {side: self._manifest(name) for side, name in wanted.items()}
        self._manifests = {manifest.name: manifest for manifest in sides.values()}
        yield from _gates(sides)
        newest = sides.get("candidate", sides.get("live"))
        if newest is not None:
            delta = newest_delta(self._data_path, live.generation) if live else None
            deltas_s = delta.created_at_ms / 1000 if delta else None
            yield from _training(newest, deltas_s)

    def _manifest(self, name: str) -> Manifest:
        return self._manifests.get(name) or self._store.open(name, verify=False).manifest

    def _events(self) -> Iterator[Metric]:
        if not has_event_log(self._data_path):
            return
        if self._log is None:
            self._log = open_event_log(self._data_path)
        yield CounterMetricFamily(
            "twotower_events_accepted_total", "Events ever stored.", value=self._log.end()
        )
        folder = self._data_path / "events"
        yield GaugeMetricFamily(
            "twotower_event_log_bytes",
            "Size of the event log and of the rejected rows.",
            value=sum(_size(folder / name) for name in os.listdir(folder)),
        )

    def _rejected(self) -> Iterator[Metric]:
        if not has_dead_letters(self._data_path):
            return
        if self._letters is None:
            self._letters = DeadLetters(self._data_path, EventLogSettings())
        counts = self._letters.counts()
        yield CounterMetricFamily(
            "twotower_events_duplicate_total",
            "Rows that were stored before.",
            value=counts.pop("duplicate", 0),
        )
        rejected = CounterMetricFamily(
            "twotower_events_rejected_total", "Rows that were not stored.", labels=["reason"]
        )
        for reason, rows in counts.items():
            rejected.add_metric([reason], rows)
        yield rejected

    def _examples(self) -> Iterator[Metric]:
        """Return how far the join and the increments have come."""
        manifest = read_manifest(examples_path(self._data_path))
        if manifest is None:
            return
        late = manifest.counts.get("too_late", 0)
        yield CounterMetricFamily(
            "twotower_events_late_total", "Events that came too late to be joined.", value=late
        )
        if self._log is not None:
            yield GaugeMetricFamily(
                "twotower_join_lag_events",
                "Events stored that are not joined yet.",
                value=self._log.end() - manifest.event_offset,
            )
        live = self._store.live()
        delta = newest_delta(self._data_path, live.generation) if live else None
        learned = [delta.span.through_offset] if delta else []
        learned += [known.window.example_offset for known in self._manifests.values()]
        yield CounterMetricFamily(
            "twotower_trainer_examples_total",
            "Joined examples that a generation or a delta has learned from.",
            value=max(learned, default=0),
        )


def _gates(sides: dict[str, Manifest]) -> Iterator[Metric]:
    """Return what each gate measured, what it needs, and whether it let the generation pass."""
    labels = ["metric", "generation"]
    measured = GaugeMetricFamily("twotower_gate_metric", "What a gate measured.", labels=labels)
    bars = GaugeMetricFamily("twotower_gate_bar", "What it is held against.", labels=labels)
    passed = GaugeMetricFamily("twotower_gate_passed", "1 where it let pass.", labels=labels)
    for side, manifest in sides.items():
        for gate in manifest.gates:
            passed.add_metric([gate.gate, side], float(gate.passed))
            if gate.measured is not None:
                measured.add_metric([gate.gate, side], gate.measured)
                bars.add_metric([gate.gate, side], gate.bar)
    yield from (measured, bars, passed)


def _training(newest: Manifest, deltas_s: float | None) -> Iterator[Metric]:
    """Return how the newest generation was trained, and when something last succeeded."""
    if newest.trained.loss is not None:
        yield GaugeMetricFamily(
            "twotower_trainer_loss",
            "Mean loss of the newest generation's training.",
            value=newest.trained.loss,
        )
    success = GaugeMetricFamily(
        "twotower_trainer_last_success_timestamp_seconds",
        "When the newest generation, and the newest delta over the live one, were published.",
        labels=["kind"],
    )
    published_s = datetime.fromisoformat(newest.created_at.replace("Z", "+00:00")).timestamp()
    success.add_metric(["full"], published_s)
    if deltas_s is not None:
        success.add_metric(["delta"], deltas_s)
    yield success


def _size(path: Path) -> int:
    """Return a file's bytes, 0 where it was removed meanwhile."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
