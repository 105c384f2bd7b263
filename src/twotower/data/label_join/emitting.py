"""What the watermark releases: examples in their order, and the cuts of the days between them.

An example is due when the watermark has passed its event time by the window. What comes later
than that is emitted when it comes. The order is that of the steps, within a step that of the due
times, then that of the event log: all three follow from the log alone.
Legend: `w` examples that wait, `m` of them emitted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twotower.data.example_log.columns import IMPRESSION, LATE_POSITIVE, JoinedExamples
from twotower.data.label_join.state import Outcomes, Shown, Waiting, picked_rows
from twotower.data.label_join.watermark import BEGINNING_MS, Steps, day_after
from twotower.data.schema import BoolArray, IntArray

__all__ = ["Cuts", "Due", "cut_days", "emit", "late_positives"]


class Due(NamedTuple):
    """Examples that wait, and when each is emitted."""

    rows: Waiting
    step: IntArray
    """`int64[w]`, beyond the last step where it still waits."""
    due_ms: IntArray
    """`int64[w]`, the watermark that it waits for."""
    is_late: BoolArray
    """`bool[w]`, the watermark was there before the example was."""

    def emitted(self, num_steps: int) -> Due:
        """Return what this batch emits, in order."""
        chosen = np.flatnonzero(self.step < num_steps)
        keys = (self.rows.offset[chosen], self.due_ms[chosen], self.step[chosen])
        order = chosen[np.lexsort(keys)]
        return Due(
            picked_rows(self.rows, order), self.step[order], self.due_ms[order], self.is_late[order]
        )


class Cuts(NamedTuple):
    """Days that ended."""

    cuts: dict[str, int]
    """Local day -> offset of the first example emitted after its end."""
    num_events: dict[str, int]
    """Local day -> how many events of the batch were joined by then."""
    first_day: str | None
    """The day in which emitting began; None but in the batch where it did."""
    next_midnight_ms: int | None


def late_positives(outcomes: Outcomes) -> Waiting:
    """Return outcomes whose impression was emitted as examples of their own."""
    num = len(outcomes.offset)
    return Waiting(
        offset=outcomes.offset,
        kind=np.full(num, LATE_POSITIVE, np.uint8),
        event_key=outcomes.event_key,
        user_id=outcomes.user_id,
        item_id=outcomes.item_id,
        time_ms=outcomes.time_ms,
        stage=np.zeros(num, "S1"),
    )


def emit(due: Due, shown: Shown, first_offset: int, late_positive_weight: float) -> JoinedExamples:
    """Return examples with their labels.

    Args:
        due: what is emitted, `m`, in order.
        shown: all impressions that are remembered, with their labels.
        first_offset: of the first example.
        late_positive_weight: of those that are late.
    """
    rows = due.rows
    is_late = rows.kind == LATE_POSITIVE
    return JoinedExamples(
        offset=np.arange(first_offset, first_offset + len(rows.offset), dtype=np.int64),
        event_key=rows.event_key,
        user_id=rows.user_id,
        item_id=rows.item_id,
        event_time_ms=rows.time_ms,
        kind=rows.kind,
        is_positive=is_late | _labels(rows, shown),
        weight=np.where(is_late, np.float32(late_positive_weight), np.float32(1)),
        stage=rows.stage,
    )


def _labels(rows: Waiting, shown: Shown) -> BoolArray:
    """Return which rows are impressions with an outcome; every impression of them is in `shown`."""
    is_positive = np.zeros(len(rows.offset), np.bool_)
    impressions = np.flatnonzero(rows.kind == IMPRESSION)
    places = np.searchsorted(shown.offset, rows.offset[impressions])
    is_positive[impressions] = shown.is_positive[places]
    return is_positive


def cut_days(
    steps: Steps,
    emitted: Due,
    next_midnight_ms: int | None,
    window_ms: int,
    time_zone: str,
    first_offset: int,
) -> Cuts:
    """Return the days whose end the watermark has passed by the window.

    Args:
        steps: the watermark.
        emitted: what the batch emits, in order.
        next_midnight_ms: where the last day that was cut ended, None before the first event.
        window_ms: the window.
        time_zone: IANA name.
        first_offset: of the first example.
    """
    first_day = None
    if next_midnight_ms is None:
        begun = np.flatnonzero(steps.watermark_ms > BEGINNING_MS // 2)
        if not len(begun):
            return Cuts({}, {}, None, None)
        first_day, next_midnight_ms = day_after(
            int(steps.watermark_ms[begun[0]]) - window_ms, time_zone
        )
    cuts, num_events = {}, {}
    while next_midnight_ms + window_ms <= steps.watermark_ms[-1]:
        day, _ = day_after(next_midnight_ms - 1, time_zone)
        passed_ms = next_midnight_ms + window_ms
        cuts[day] = first_offset + _num_before(steps, emitted, passed_ms)
        num_events[day] = steps.num_events(passed_ms)
        _, next_midnight_ms = day_after(next_midnight_ms, time_zone)
    return Cuts(cuts, num_events, first_day, next_midnight_ms)


def _num_before(steps: Steps, emitted: Due, watermark_ms: int) -> int:
    """Return how many examples were emitted before the watermark was there."""
    step = steps.first(np.array([watermark_ms]))[0]
    start, end = np.searchsorted(emitted.step, [step, step + 1])
    return int(start + np.searchsorted(emitted.due_ms[start:end], watermark_ms))
