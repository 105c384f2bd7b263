"""The label join of a project: from its event log to its example log, batch by batch.

Every batch ends in one commit of the example log: examples, state, event offset and cuts become
true together, so a join that is killed goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from twotower.data.event_log import EventLog
from twotower.data.event_log.interface import Bounds
from twotower.data.example_log.manifest import ExampleManifest
from twotower.data.example_log.writer import Commit, ExampleWriter, open_writer
from twotower.data.label_join.batch import JoinedBatch, join_batch, newest_dropped
from twotower.data.label_join.settings import JoinSettings
from twotower.data.label_join.state import JoinState, decode_state, encode_state
from twotower.data.label_join.watermark import BEGINNING_MS
from twotower.errors import LineageError, NotReady

__all__ = ["Joiner", "follow", "join_available", "open_joiner"]


class Joiner:
    """Joins the events that are there; made by `open_joiner`."""

    def __init__(
        self, log: EventLog, writer: ExampleWriter, settings: JoinSettings, time_zone: str
    ) -> None:
        self._log = log
        self._writer = writer
        self._settings = settings
        self._time_zone = time_zone
        stored = writer.read_state()
        self._state = JoinState.empty() if stored is None else decode_state(stored)
        self._offset = writer.manifest.event_offset
        self.manifest: ExampleManifest = writer.manifest
        """After the last batch."""

    @property
    def num_undecided(self) -> int:
        """How many joined events have no fate yet."""
        return self._state.num_undecided

    def join_next(self, now_ms: int | None, *, commit: bool = True) -> int:
        """Join and commit one batch; return how many events it had.

        Args:
            now_ms: the present, taken before the call; it moves the watermark on where the batch
                reaches the log's end. None to let it stand.
            commit: False to write nothing; the next call goes on behind this batch all the same.

        Raises:
            LineageError: events were forgotten before they were joined, or another process joins.
            NotReady: more events wait and are remembered than the settings allow, or the disk is
                full; what was committed stays.
        """
        bounds = self._log.bounds()
        self._check_offset(bounds)
        events = self._log.read(self._offset, self._settings.batch_events)
        end = self._offset + len(events.offset)
        is_at_end = end >= bounds.end
        batch = join_batch(
            self._state, events, self._settings, self._time_zone, now_ms if is_at_end else None
        )
        self._check_memory(batch.state)
        if len(events.offset) or len(batch.examples.offset) or batch.cuts.cuts:
            self._take(batch, end, commit)
        return len(events.offset)

    def _take(self, batch: JoinedBatch, end: int, commit: bool) -> None:
        progress = _progress(self.manifest, batch, self._offset)
        if commit:
            state = encode_state(batch.state)
            self._writer.commit(Commit(batch.examples, end, state, progress))
            self.manifest = self._writer.manifest
        else:
            self.manifest = msgspec.structs.replace(
                self.manifest, event_offset=end, end=batch.state.num_examples, **progress
            )
        self._state, self._offset = batch.state, end

    def _check_offset(self, bounds: Bounds) -> None:
        if not bounds.begin <= self._offset <= bounds.end:
            what = "were forgotten before they were joined"
            if self._offset > bounds.end:
                what = "are gone: the event log is not the one that was joined"
            raise LineageError(
                f"expected to go on at event {self._offset}, found events {bounds.begin} to "
                f"{bounds.end}: those between {what}; nothing was joined and the examples are "
                "unchanged; restore the event log, or begin a new example log"
            )

    def _check_memory(self, state: JoinState) -> None:
        if state.num_rows > self._settings.max_state_events:
            raise NotReady(
                f"expected at most {self._settings.max_state_events} rows of events that wait or "
                f"are remembered, found {state.num_rows}; this batch was not joined, those before "
                "it stay; shorten join.remember_s or raise join.max_state_events"
            )


def _progress(manifest: ExampleManifest, batch: JoinedBatch, offset: int) -> dict[str, object]:
    """Return the fields of the manifest that a batch moves, whose first event is at `offset`."""
    reached = batch.state.clock.reached_ms
    newest = max(batch.newest_event_time_ms, manifest.newest_event_time_ms or BEGINNING_MS)
    counts = {
        name: manifest.counts.get(name, 0) + count for name, count in sorted(batch.counts.items())
    }
    return {
        "watermark_ms": reached if batch.state.next_midnight_ms is not None else None,
        "newest_event_time_ms": newest if newest > BEGINNING_MS else None,
        "first_day": manifest.first_day or batch.cuts.first_day,
        "cuts": {**manifest.cuts, **batch.cuts.cuts},
        "event_cuts": {
            **manifest.event_cuts,
            **{day: offset + num for day, num in batch.cuts.num_events.items()},
        },
        "counts": counts,
        "dropped": newest_dropped([*manifest.dropped, *batch.dropped]),
    }


@contextlib.contextmanager
def open_joiner(
    data_path: Path, log: EventLog, settings: JoinSettings, time_zone: str
) -> Iterator[Joiner | None]:
    """Give the joiner of a project, or None while its event log is empty.

    Raises:
        NotReady: another process joins this project.
        CorruptArtifact: the example log cannot be understood.
    """
    kinds = log.id_kinds
    if kinds is None:
        yield None
        return
    with open_writer(data_path, settings.shard_examples, kinds) as writer:
        yield Joiner(log, writer, settings, time_zone)


def join_available(
    data_path: Path,
    log: EventLog,
    settings: JoinSettings,
    time_zone: str,
    now_ms: int | None,
) -> ExampleManifest | None:
    """Join all events that the log holds now; return what is true then, None without an event.

    Args:
        data_path: the project's data folder; the examples are written below it.
        log: the event log.
        settings: of the join.
        time_zone: IANA name, for where days end.
        now_ms: the present, which moves the watermark on; None to let it stand at the last event.

    Raises:
        LineageError: events were forgotten before they were joined.
        NotReady: another process joins this project, or memory or disk are full.
        CorruptArtifact: the example log cannot be understood.
    """
    with open_joiner(data_path, log, settings, time_zone) as joiner:
        if joiner is None:
            return None
        while joiner.join_next(now_ms):
            pass
        return joiner.manifest


def follow(
    data_path: Path,
    log: EventLog,
    settings: JoinSettings,
    time_zone: str,
    *,
    stopping: threading.Event,
    at_batch: Callable[[int, ExampleManifest], None],
) -> None:
    """Join what comes until `stopping` is set; what was taken by then is committed.

    Args:
        data_path: the project's data folder.
        log: the event log.
        settings: of the join; every `poll_s` what has come is joined.
        time_zone: IANA name.
        stopping: ends the loop.
        at_batch: told of every batch with events, how many, and what is true after it.

    Raises:
        LineageError, NotReady, CorruptArtifact: as `join_available`.
    """
    while not stopping.is_set():
        with open_joiner(data_path, log, settings, time_zone) as joiner:
            while joiner is not None and not stopping.is_set():
                num_events = joiner.join_next(int(time.time() * 1000))
                if num_events:
                    at_batch(num_events, joiner.manifest)
                if num_events < settings.batch_events:
                    stopping.wait(settings.poll_s)
        stopping.wait(settings.poll_s)
