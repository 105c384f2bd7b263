"""Logs of the reference join as stored events of a project."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import xxhash

from label_join_reference import LogEvent
from twotower.data.event_log import open_event_log
from twotower.data.events import Event

__all__ = ["key_of", "store", "without_repeats"]


def key_of(event: LogEvent) -> int:
    """The key that the stored event has."""
    return xxhash.xxh3_64_intdigest(str(event.event_key).encode())


def without_repeats(log: list[LogEvent]) -> list[LogEvent]:
    """The log without events whose ID came before, which an event log would not store."""
    kept = {event.event_key: event for event in reversed(log)}.values()
    found = sorted(kept, key=lambda event: event.offset)
    return [LogEvent(**(vars(event) | {"offset": n})) for n, event in enumerate(found)]


def store(data_path: Path, log: list[LogEvent]) -> None:
    """Append the events, all that came in one millisecond together."""
    with open_event_log(data_path) as stored:
        for received_ms, group in groupby(log, key=lambda event: event.received_ms):
            stored.append([_as_event(event) for event in group], received_ms)


def _as_event(event: LogEvent) -> Event:
    ids = [v.decode() if isinstance(v, bytes) else v for v in (event.user_id, event.item_id)]
    return Event(
        kind=event.kind,  # type: ignore[arg-type]
        event_id=str(event.event_key),
        user_id=ids[0],
        item_id=ids[1],
        event_time_ms=event.time_ms,
        request_id=f"r-{event.request_key}" if event.request_key else None,
        outcome=event.name if event.kind == "outcome" else None,
        stage=event.name if event.kind == "candidate" else None,
    )
