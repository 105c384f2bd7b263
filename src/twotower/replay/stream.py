"""The live part of an imported log: its last days as one stream of events in simulated time.

Every click is a question that serving is asked at that moment, with what the log knew of the user
just before: the clicks and the impressions of strictly earlier times, as training has it.
Legend: `n` events, `q` questions, `I` items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twotower.data.days import DayEvents
from twotower.data.examples import Examples, build_examples
from twotower.data.schema import BoolArray, EventIdArray, IntArray
from twotower.data.user_state import Ragged, append_ragged, take_ragged
from twotower.errors import DataError
from twotower.replay.nights import ReplayedLog

__all__ = ["LiveStream", "Questions", "open_stream"]


class Questions(NamedTuple):
    """The clicks of the stream, in the order of time, and what was known of each user before."""

    event: IntArray
    """`int64[q]`, places in the stream."""
    user: IntArray
    """`int64[q]`, positions in the log."""
    item: IntArray
    """`int64[q]`, the item that was clicked."""
    event_time_ms: IntArray
    recent: Ragged
    """Clicks by user, as `recent_start` and `recent_end` cut them out for each question."""
    recent_start: IntArray
    recent_end: IntArray
    seen: Ragged
    """Everything shown, by user; each question's part is from the list's begin to `seen_end`."""
    seen_end: IntArray
    is_scored: BoolArray
    """`bool[q]`, False where the item was shown to the user at an earlier time."""

    def recent_of(self, part: IntArray) -> Ragged:
        """Return the clicks before each of some questions, oldest first."""
        return take_ragged(self.recent, self.recent_start[part], self.recent_end[part])

    def seen_of(self, part: IntArray) -> Ragged:
        """Return what each of some questions' users was shown before; items may repeat."""
        return take_ragged(self.seen, self.seen.offsets[self.user[part]], self.seen_end[part])


class LiveStream(NamedTuple):
    """`n` events of consecutive days in the order of time, over the numbering of the log.

    Its length is that of `event_id`.
    """

    days: tuple[str, ...]
    start_ms: int
    """When the first day begins."""
    ends_ms: IntArray
    """When each day ends."""
    event_id: EventIdArray
    user: IntArray
    item: IntArray
    event_time_ms: IntArray
    is_positive: BoolArray
    questions: Questions


def open_stream(log: ReplayedLog, first: str, last: str, history_length: int) -> LiveStream:
    """Return the days from `first` to `last` as a stream, by the times of the events.

    What a day column puts into a live day although it happened before the first of them is known
    and not asked.

    Args:
        log: the import, all users and items numbered.
        first: first live day; what was before it is known.
        last: last live day.
        history_length: newest clicks of a user that a question brings.

    Raises:
        DataError: no day of the import lies there, or none before it.
    """
    days = tuple(day for day in log.data.days if first <= day <= last)
    before = [day for day in log.data.days if day < first]
    if not days or not before:
        raise DataError(
            f"expected imported days from {first} to {last} and at least one before them, found "
            f"{', '.join(log.data.days) or 'none'}; nothing was replayed"
        )
    entries = [log.data.day_entry(day) for day in days]
    ends = np.array([entry.end_ms for entry in entries], np.int64)
    every = _columns(log, [log.events(day) for day in (*before, *days)])
    start = int(np.searchsorted(every.event_time_ms, entries[0].start_ms))
    end = int(np.searchsorted(every.event_time_ms, ends[-1]))
    past, events = every.part(0, start), every.part(start, end)
    questions = _questions(log, past, events, history_length)
    return LiveStream(days, entries[0].start_ms, ends, *events, questions)


class _Columns(NamedTuple):
    event_id: EventIdArray
    user: IntArray
    item: IntArray
    event_time_ms: IntArray
    is_positive: BoolArray

    def part(self, start: int, end: int) -> _Columns:
        return _Columns._make([column[start:end] for column in self])


def _columns(log: ReplayedLog, days: list[DayEvents]) -> _Columns:
    """Return the events of some days in the order of time; a day column may have mixed them."""
    time_ms = np.concatenate([day.event_time_ms for day in days])
    order = np.argsort(time_ms, kind="stable")
    return _Columns(
        np.concatenate([day.event_id for day in days])[order],
        np.concatenate([log.users.positions(day.user_id) for day in days])[order],
        np.concatenate([log.items.positions(day.item_id) for day in days])[order],
        time_ms[order],
        np.concatenate([day.outcome for day in days])[order],
    )


def _questions(
    log: ReplayedLog, past: _Columns, events: _Columns, history_length: int
) -> Questions:
    num_users = len(log.users)
    clicked = np.flatnonzero(events.is_positive)
    clicks_before = append_ragged(
        log.history_positives,
        past.user[past.is_positive],
        past.item[past.is_positive],
        num_lists=num_users,
        limit=history_length,
    )
    shown_before = append_ragged(
        log.history_seen, past.user, past.item, num_lists=num_users, limit=0
    )
    clicks = _before_each(events, clicked, clicks_before, num_users, history_length)
    every = np.arange(len(events.event_id))
    shown = _before_each(events, every, shown_before, num_users, len(log.items))
    asked = Questions(
        event=clicked,
        user=events.user[clicked],
        item=events.item[clicked],
        event_time_ms=events.event_time_ms[clicked],
        recent=clicks.past,
        recent_start=clicks.history_start,
        recent_end=clicks.history_end,
        seen=shown.past,
        seen_end=shown.history_end[clicked],
        is_scored=np.ones(len(clicked), np.bool_),
    )
    return asked._replace(is_scored=~_was_shown(asked))


def _before_each(
    events: _Columns, rows: IntArray, before: Ragged, num_users: int, length: int
) -> Examples:
    """Return some of the events, each with what its user's lists held at an earlier time."""
    return build_examples(
        event_id=events.event_id[rows],
        user=events.user[rows],
        item=events.item[rows],
        event_time_ms=events.event_time_ms[rows],
        recent=before,
        num_users=num_users,
        history_length=length,
    )


def _was_shown(asked: Questions, batch: int = 8192) -> BoolArray:
    was_shown = np.zeros(len(asked.event), np.bool_)
    for start in range(0, len(asked.event), batch):
        part = np.arange(start, min(start + batch, len(asked.event)))
        seen = asked.seen_of(part)
        owners = seen.owners()
        found = owners[seen.values == asked.item[part][owners]]
        was_shown[part[found]] = True
    return was_shown
