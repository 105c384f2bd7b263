"""The watermark through one batch of events, and where the local days end under it.

The watermark is a function of the log alone, event by event, so that how the log is cut into
batches changes nothing. It follows the newest event time at the allowed lateness. When nothing
arrives for longer than `idle_after_s`, it moves on as fast as the clock: relative to where it
was, so that a log of last month that is read today is not late all at once.

Every event has two steps: what its arrival says about the time before it, then the event itself.
The last step is the time after the last event. Legend: `n` events, `S = 2 n + 1` steps.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from twotower.data.days import day_limits_ms
from twotower.data.events import EventColumns
from twotower.data.label_join.settings import JoinSettings
from twotower.data.schema import BoolArray, IntArray

__all__ = ["BEGINNING_MS", "NEVER_RECEIVED_MS", "Clock", "Steps", "day_after", "watermark_steps"]

BEGINNING_MS: Final = -(1 << 61)
"""The watermark before the first event."""
NEVER_RECEIVED_MS: Final = -1
APPEND_MS: Final = 1000
"""An event is readable at most this long after its `received_ms`, so that the clock never moves
the watermark over an event that has arrived."""


class Clock(NamedTuple):
    """What the watermark goes on from; stored with the state."""

    settled_ms: int = BEGINNING_MS
    """The watermark after the last event."""
    reached_ms: int = BEGINNING_MS
    """The same, moved on by the time without events: what was emitted by."""
    received_ms: int = NEVER_RECEIVED_MS
    """When the last event was received."""


class Steps(NamedTuple):
    """The watermark of one batch."""

    watermark_ms: IntArray
    """`int64[S]`, never falling: before event `j` at `2 j`, after it at `2 j + 1`."""
    rises: IntArray
    """The steps at which it is higher than before, the first one included; few of all."""
    is_future: BoolArray
    """`bool[n]`, the event lies too far after its own arrival to be believed."""
    clock: Clock
    """After the batch."""

    @property
    def before_ms(self) -> IntArray:
        """The watermark that each event met, `int64[n]`."""
        return self.watermark_ms[:-1:2]

    def num_events(self, watermark_ms: int) -> int:
        """Return how many events had been joined when the watermark was there."""
        return (int(self.first(np.array([watermark_ms]))[0]) + 1) // 2

    def first(self, time_ms: IntArray) -> IntArray:
        """Return the first step whose watermark has reached each time, `S` where none has."""
        steps = np.append(self.rises, len(self.watermark_ms))
        return steps[np.searchsorted(self.watermark_ms[self.rises], time_ms, side="left")]


def watermark_steps(
    clock: Clock, events: EventColumns, settings: JoinSettings, now_ms: int | None
) -> Steps:
    """Return the watermark before and after every event of a batch.

    Args:
        clock: where the batch before ended.
        events: the batch, `n` events.
        settings: lateness, idleness and how much future is believed.
        now_ms: the present if the batch reaches the log's end, else None.
    """
    idle_ms, num = int(settings.idle_after_s * 1000), len(events.offset)
    is_future = events.event_time_ms > events.received_ms + int(settings.max_future_s * 1000)
    received = np.concatenate([[clock.received_ms], events.received_ms])
    if clock.received_ms == NEVER_RECEIVED_MS:
        received[0] = received[min(1, num)]
    received = np.maximum.accumulate(received)
    idle = np.cumsum(np.maximum(np.diff(received) - idle_ms, 0))
    known = events.event_time_ms - int(settings.allowed_lateness_s * 1000)
    newest = np.where(is_future, BEGINNING_MS, known - idle)
    newest = np.maximum.accumulate(np.concatenate([[clock.settled_ms], newest]))
    idle_now = 0
    if now_ms is not None and received[-1] != NEVER_RECEIVED_MS:
        idle_now = max(0, now_ms - APPEND_MS - int(received[-1]) - idle_ms)
    watermark = np.empty(2 * num + 1, np.int64)
    watermark[:-1:2] = newest[:-1] + idle
    watermark[1::2] = newest[1:] + idle
    settled = int(watermark[-2]) if num else clock.settled_ms
    watermark[-1] = settled + idle_now
    np.maximum(watermark, clock.reached_ms, out=watermark)
    after = Clock(settled, int(watermark[-1]), int(received[-1]))
    rises = np.flatnonzero(np.diff(watermark, prepend=watermark[0] - 1))
    return Steps(watermark, rises, is_future, after)


def day_after(time_ms: int, time_zone: str) -> tuple[str, int]:
    """Return the local day that holds an instant, and when the next one starts."""
    moment = datetime.fromtimestamp(time_ms / 1000, timezone.utc)
    day = moment.astimezone(ZoneInfo(time_zone)).date().isoformat()
    return day, day_limits_ms(day, time_zone)[1]
