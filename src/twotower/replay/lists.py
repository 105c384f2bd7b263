"""Popularity lists beside the model: one list for everybody, refreshed in simulated time.

Legend: `I` items, `q` questions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twotower.data.schema import BoolArray, IntArray
from twotower.data.user_state import Ragged
from twotower.replay.live import LiveScores, popularity_before
from twotower.replay.nights import ReplayedLog
from twotower.replay.strategies import LivePopularity
from twotower.replay.stream import LiveStream

__all__ = ["decayed_list", "hours_list", "list_ranks", "previous_day_list"]

_MS_PER_S = 1000


def hours_list(
    log: ReplayedLog,
    stream: LiveStream,
    *,
    window_s: float,
    refresh_s: float,
    is_asked: BoolArray | None = None,
) -> LiveScores:
    """Rank items by their clicks of the last `window_s`, the list made anew every `refresh_s`."""
    step_ms = round(refresh_s * _MS_PER_S)
    starts = np.arange(stream.start_ms, int(stream.ends_ms[-1]), step_ms)
    begins = starts - round(window_s * _MS_PER_S)
    return _score(log, stream, starts, begins, starts, is_asked)


def previous_day_list(
    log: ReplayedLog, stream: LiveStream, *, is_asked: BoolArray | None = None
) -> LiveScores:
    """Rank items by their clicks of the day before."""
    starts = np.concatenate([[stream.start_ms], stream.ends_ms[:-1]])
    before = log.data.days[log.data.days.index(stream.days[0]) - 1]
    begins = np.concatenate([[log.data.day_entry(before).start_ms], starts[:-1]])
    return _score(log, stream, starts, begins, starts, is_asked)


def decayed_list(
    log: ReplayedLog,
    stream: LiveStream,
    popularity: LivePopularity,
    *,
    refresh_s: float,
    is_asked: BoolArray | None = None,
) -> LiveScores:
    """Rank items by the live popularity coordinate alone, made anew every `refresh_s`."""
    asked = stream.questions
    chosen = asked.is_scored if is_asked is None else asked.is_scored & is_asked
    counts = popularity_before(log, stream, popularity)
    starts = np.arange(stream.start_ms, int(stream.ends_ms[-1]), round(refresh_s * _MS_PER_S))
    first = np.searchsorted(asked.event_time_ms, starts)
    parts, ranks = [], []
    for start, end, now_ms in zip(first, [*first[1:], len(chosen)], starts.tolist(), strict=True):
        part = start + np.flatnonzero(chosen[start:end])
        parts.append(part)
        ranks.append(list_ranks(counts.at(now_ms), asked.item[part], asked.seen_of(part)))
        new = slice(start, end)
        counts.advance(asked.item[new], asked.event_time_ms[new], now_ms + starts[1] - starts[0])
    return LiveScores(np.concatenate(parts), np.concatenate(ranks), np.zeros(0), 0)


def _score(
    log: ReplayedLog,
    stream: LiveStream,
    starts: IntArray,
    window_begins: IntArray,
    window_ends: IntArray,
    is_asked: BoolArray | None,
) -> LiveScores:
    """Score the clicks from each start to the next by the clicks of a window before it."""
    asked = stream.questions
    chosen = asked.is_scored if is_asked is None else asked.is_scored & is_asked
    items, times = _clicks(log, stream)
    first = np.searchsorted(asked.event_time_ms, starts)
    parts, ranks = [], []
    for start, end, begin_ms, end_ms in zip(
        first, [*first[1:], len(chosen)], window_begins, window_ends, strict=True
    ):
        part = start + np.flatnonzero(chosen[start:end])
        window = items[np.searchsorted(times, begin_ms) : np.searchsorted(times, end_ms)]
        counts = np.bincount(window, minlength=len(log.items))
        parts.append(part)
        ranks.append(list_ranks(counts, asked.item[part], asked.seen_of(part)))
    return LiveScores(np.concatenate(parts), np.concatenate(ranks), np.zeros(0), 0)


def _clicks(log: ReplayedLog, stream: LiveStream) -> tuple[IntArray, IntArray]:
    """Return items and times of the clicks of the stream and of the day before it."""
    before = log.events(log.data.days[log.data.days.index(stream.days[0]) - 1])
    items = log.items.positions(before.item_id[before.outcome])
    times = before.event_time_ms[before.outcome]
    order = np.argsort(times, kind="stable")
    asked = stream.questions
    times = np.concatenate([np.minimum(times[order], stream.start_ms - 1), asked.event_time_ms])
    return np.concatenate([items[order], asked.item]), times


def list_ranks(counts: npt.NDArray[np.number], targets: IntArray, seen: Ragged) -> IntArray:
    """Return the place of each target in the list without what its user was shown, from 0.

    Equal counts by the lower position. An item that nobody clicked in the window is on no list:
    it gets the number of items.

    Args:
        counts: `[I]`.
        targets: `[q]`.
        seen: `q` lists of items that are left out; may repeat.
    """
    place = np.empty(len(counts), np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    pairs = np.unique(np.stack([seen.owners(), seen.values], axis=1), axis=0)
    is_before = place[pairs[:, 1]] < place[targets[pairs[:, 0]]]
    hidden = np.bincount(pairs[is_before, 0], minlength=len(targets))
    return np.where(counts[targets] > 0, place[targets] - hidden, len(counts))
