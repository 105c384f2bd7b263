"""Days of the example log behind the read interface of the imported days: a night trains both.

A streamed day is what the join emitted between two cuts. It exists from its cut on: until then a
day into which events are streaming does not exist, even if some of it was imported. What was
imported of a day stays, and an example whose event was imported is left out: each event once.
Legend: `n` examples.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import xxhash

from twotower.data.days import ImportedData, day_limits_ms, event_digest
from twotower.data.events import IdKinds
from twotower.data.example_log.columns import CANDIDATE, JoinedExamples
from twotower.data.example_log.reader import ExampleLog
from twotower.data.schema import BoolArray, DayEntry, DayEvents, EventIdArray
from twotower.errors import DataError, LineageError, NotReady

__all__ = ["JoinedDays", "open_days"]


class _Span(NamedTuple):
    """Example offsets `[start, end)` of a streamed day."""

    start: int
    end: int


def open_days(data_path: Path) -> ImportedData:
    """Open the days that can be trained: the imported ones, and those that the join has cut.

    Raises:
        NotReady: nothing is imported; users and items come by import only.
        LineageError: import and example log hold IDs of different kinds.
        CorruptArtifact: a manifest cannot be understood.
    """
    imported = ImportedData.open(data_path)
    try:
        log = ExampleLog.open(data_path)
    except NotReady:
        return imported
    return JoinedDays(imported, log)


class JoinedDays(ImportedData):
    """Imported and streamed days, as they were when it was opened."""

    def __init__(self, imported: ImportedData, log: ExampleLog) -> None:
        super().__init__(imported.folder, imported.manifest)
        _check_kinds(imported, log)
        self._imported = imported
        self._log = log
        self._spans = _spans(log)
        self._entries: dict[str, DayEntry] = {}
        open_days = _open_days(log, self._zone)
        streamed = {day for day, span in self._spans.items() if span.end > span.start}
        whole = {day for day in imported.days if day not in open_days}
        self.days = tuple(sorted(whole | streamed))

    @property
    def _zone(self) -> str:
        return self.manifest.table_schema.time_zone

    @property
    def digest(self) -> str:
        """Name of the import and of all days that were cut."""
        if not self._spans:
            return super().digest
        spans = msgspec.json.encode((super().digest, sorted(self._spans.items())))
        return hashlib.blake2b(spans, digest_size=16).hexdigest()

    def example_offset(self, day: str) -> int:
        """Return the first example that was emitted after a day had ended, 0 if none was before."""
        return max((cut for cut_day, cut in self._log.cuts.items() if cut_day <= day), default=0)

    def day_entry(self, day: str) -> DayEntry:
        """Return the counts, digests and limits of a day.

        Raises:
            DataError: the day was neither imported nor cut.
        """
        self._check_day(day)
        if day not in self._spans:
            return super().day_entry(day)
        if day not in self._entries:
            eliminated = self.eliminated(day)
            num_eliminated = 0 if eliminated is None else len(eliminated)
            self._entries[day] = _entry(self.day(day), num_eliminated, day, self._zone)
        return self._entries[day]

    def day(self, day: str) -> DayEvents:
        """Return a day's impressions and late positives, sorted by time and then event ID.

        Raises:
            LineageError: its examples were forgotten.
        """
        self._check_day(day)
        imported = self._imported.day(day) if day in self._imported.days else None
        if day not in self._spans:
            return super().day(day)
        examples = self._examples(day)
        streamed = examples.take(examples.kind != CANDIDATE)
        return _merge(imported, _as_events(streamed))

    def eliminated(self, day: str) -> DayEvents | None:
        """Return the candidates that a stage eliminated that day, None where there are none."""
        self._check_day(day)
        imported = self._imported.eliminated(day) if day in self._imported.days else None
        if day not in self._spans:
            return imported
        examples = self._examples(day)
        streamed = examples.take(examples.kind == CANDIDATE)
        if not len(streamed.offset):
            return imported
        return _merge(imported, _as_events(streamed, has_stage=True))

    def _check_day(self, day: str) -> None:
        if day not in self.days:
            span = f"{self.days[0]} to {self.days[-1]}" if self.days else "no days"
            raise DataError(
                f"day '{day}' was neither imported nor ended in the stream; there are: {span}"
            )

    def _examples(self, day: str) -> JoinedExamples:
        """Return what was emitted in a day's interval and not imported."""
        start, end = self._spans[day]
        examples = self._log.read(start, end - start)
        imported = self._imported_keys(examples)
        return examples.take(~np.isin(examples.event_key, imported)) if len(imported) else examples

    def _imported_keys(self, examples: JoinedExamples) -> EventIdArray:
        """Return the keys of imported events that the examples may repeat."""
        times = examples.event_time_ms
        if not len(times):
            return np.zeros(0, np.uint64)
        first, last = (_local_day(int(ms), self._zone) for ms in (times.min(), times.max()))
        near = [day for day in self._imported.days if first <= day <= last]
        keys = [np.zeros(0, np.uint64)]
        for day in near:
            keys.append(_keys_of(self._imported.day(day)))
            eliminated = self._imported.eliminated(day)
            if eliminated is not None:
                keys.append(_keys_of(eliminated))
        return np.concatenate(keys)


def _check_kinds(imported: ImportedData, log: ExampleLog) -> None:
    kinds = IdKinds(imported.user_id_kind, imported.item_id_kind)
    if log.id_kinds != kinds:
        raise LineageError(
            f"expected an example log with IDs as imported, {kinds}, found {log.id_kinds} in "
            f"{log.folder}; nothing was trained; IDs of one project are of one kind"
        )


def _spans(log: ExampleLog) -> dict[str, _Span]:
    """Return the examples of every day that was cut and whose examples are still there."""
    start, spans = 0, {}
    for day, end in sorted(log.cuts.items()):
        if start >= log.begin:
            spans[day] = _Span(start, end)
        start = end
    return spans


def _open_days(log: ExampleLog, zone: str) -> set[str]:
    """Return the days into which events are streaming: begun and not cut."""
    first, watermark_ms = log.manifest.first_day, log.watermark_ms
    if first is None or watermark_ms is None:
        return set()
    begun = _days_between(first, _local_day(watermark_ms, zone), zone)
    return {day for day in begun if day not in log.cuts}


def _days_between(first: str, last: str, zone: str) -> list[str]:
    days = [first]
    while days[-1] < last:
        days.append(_local_day(day_limits_ms(days[-1], zone)[1], zone))
    return days


def _local_day(time_ms: int, zone: str) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, timezone.utc)
    return moment.astimezone(ZoneInfo(zone)).date().isoformat()


def _keys_of(events: DayEvents) -> EventIdArray:
    """Return the keys that imported events have in an event log.

    An event with an ID of its own has the same key there. One without is ingested under the hash of
    its row, written as text, so its key is the hash of that.
    """
    hashes = events.event_id.tolist()
    again = [xxhash.xxh3_64_intdigest(f"{value:016x}".encode()) for value in hashes]
    return np.concatenate([events.event_id, np.array(again, np.uint64)])


def _as_events(examples: JoinedExamples, *, has_stage: bool = False) -> DayEvents:
    stage = np.array([s.decode() for s in examples.stage.tolist()], np.str_) if has_stage else None
    return DayEvents(
        event_id=examples.event_key,
        user_id=examples.user_id,
        item_id=examples.item_id,
        event_time_ms=examples.event_time_ms,
        outcome=examples.is_positive,
        stage=stage,
        weight=examples.weight,
    )


def _merge(imported: DayEvents | None, streamed: DayEvents) -> DayEvents:
    """Return the events of both, sorted by time and then event ID."""
    events = streamed if imported is None else imported.followed_by(streamed)
    return events.take(np.lexsort((events.event_id, events.event_time_ms)))


def _entry(events: DayEvents, num_eliminated: int, day: str, zone: str) -> DayEntry:
    start_ms, end_ms = day_limits_ms(day, zone)
    times = events.event_time_ms
    is_outside: BoolArray = (times < start_ms) | (times >= end_ms)
    return DayEntry(
        rows=len(events),
        positives=int(events.outcome.sum()),
        digest=event_digest(events.event_id),
        positives_digest=event_digest(events.event_id[events.outcome]),
        start_ms=start_ms,
        end_ms=end_ms,
        outside_rows=int(is_outside.sum()),
        eliminated=num_eliminated,
    )
