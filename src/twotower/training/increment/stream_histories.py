"""Every user's newest positives: those before the base generation's cut, and the stream's since.

The cost of some examples grows with their number and not with that of the users known: only users
who come in the stream are kept here, a place each. Legend: `n` examples, `u` distinct users of
them, `L` items a history holds, `E` entries of the lists of those users.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twotower.data.schema import IntArray
from twotower.data.user_state import Ragged, take_ragged

__all__ = ["Histories", "StreamHistories"]

_BEFORE_ALL = np.iinfo(np.int64).min
_NOBODY = -1


class Histories(NamedTuple):
    """The history of example `i` is `past.values[start[i]:end[i]]`, oldest item first."""

    past: Ragged
    start: IntArray
    end: IntArray


class _Entries(NamedTuple):
    """Lists of positives, one after the other, each in the order of event time."""

    owner: IntArray
    item: IntArray
    time_ms: IntArray


class StreamHistories:
    """Keeps the newest `L` positives of each user, in the order of event time."""

    def __init__(self, recent: Ragged, length: int) -> None:
        """Start from what the base generation knows.

        Args:
            recent: each user's positives before the cut, oldest to newest.
            length: `L`; 0 for models without a history.
        """
        self._recent = recent
        self._length = length
        self._place = np.full(len(recent.offsets) - 1, _NOBODY)
        self._num_places = 0
        self._item = np.zeros((0, length), np.int64)
        self._time_ms = np.zeros((0, length), np.int64)
        self._count = np.zeros(0, np.int64)

    def extend(self, users: IntArray, items: IntArray, event_time_ms: IntArray) -> Histories:
        """Return the examples' histories, and let the examples enter those that follow.

        A history holds what has an event time strictly before the example's own: neither a later
        click nor one of the same millisecond leaks into it, in whatever order they come.

        Args:
            users: `[n]` user positions.
            items: `[n]` item positions.
            event_time_ms: `[n]`.
        """
        if self._length == 0 or len(users) == 0:
            nothing = np.zeros(len(users), np.int64)
            return Histories(Ragged.empty(0), nothing, nothing)
        known, owner = np.unique(users, return_inverse=True)
        places = self._places(known)
        entries, mine = self._merge(places, _Entries(owner, items, event_time_ms))
        offsets = np.searchsorted(entries.owner, np.arange(len(known) + 1))
        end = _first_of_time(entries)[mine]
        start = np.maximum(offsets[owner], end - self._length)
        past = Ragged(entries.item, offsets)
        self._store(places, past, entries.time_ms)
        return Histories(past, start, end)

    def _places(self, users: IntArray) -> IntArray:
        """Return where the lists of distinct users are kept; new ones start with the base's."""
        if len(users) and users[-1] >= len(self._place):
            extra = int(users[-1]) + 1 - len(self._place)
            spare = extra + len(self._place) // 8
            self._place = np.concatenate([self._place, np.full(spare, _NOBODY)])
        new = users[self._place[users] == _NOBODY]
        self._reserve(len(new))
        places = np.arange(self._num_places, self._num_places + len(new))
        self._place[new] = places
        self._num_places += len(new)
        num_known = len(self._recent.offsets) - 1
        is_known = new < num_known
        starts, ends = self._recent.offsets[new[is_known]], self._recent.offsets[new[is_known] + 1]
        lists = take_ragged(self._recent, np.maximum(starts, ends - self._length), ends)
        self._count[places] = 0
        self._store(places[is_known], lists, np.full(len(lists.values), _BEFORE_ALL))
        return self._place[users]

    def _reserve(self, num_new: int) -> None:
        needed = self._num_places + num_new
        if needed > len(self._count):
            extra = needed + needed // 2 - len(self._count)
            grown = np.zeros((extra, self._length), np.int64)
            self._item = np.concatenate([self._item, grown])
            self._time_ms = np.concatenate([self._time_ms, grown])
            self._count = np.concatenate([self._count, np.zeros(extra, np.int64)])

    def _merge(self, places: IntArray, added: _Entries) -> tuple[_Entries, IntArray]:
        """Return the stored lists with `added` among them, and where each of these is: `int64[n]`.

        Entries of one time stay in the order they came in.
        """
        counts = self._count[places]
        is_stored = np.arange(self._length) < counts[:, None]
        order = np.lexsort((added.time_ms, added.owner))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        stored = np.arange(offsets[-1]) + np.repeat(
            np.searchsorted(added.owner[order], np.arange(len(places))), counts
        )
        mine = np.arange(len(order)) + offsets[added.owner[order] + 1]
        entries = _Entries(*(np.empty(len(stored) + len(mine), np.int64) for _ in _Entries._fields))
        old = (np.repeat(np.arange(len(places)), counts), self._item[places][is_stored])
        for values, before in zip(entries, (*old, self._time_ms[places][is_stored]), strict=True):
            values[stored] = before
        for values, new in zip(entries, added, strict=True):
            values[mine] = new[order]
        now = np.empty(len(order), np.int64)
        now[order] = mine
        return _in_order(entries, now)

    def _store(self, places: IntArray, lists: Ragged, time_ms: IntArray) -> None:
        """Keep the newest `L` entries of some lists."""
        starts = np.maximum(lists.offsets[:-1], lists.offsets[1:] - self._length)
        newest = take_ragged(lists, starts, lists.offsets[1:])
        counts = newest.lengths()
        is_filled = np.arange(self._length) < counts[:, None]
        for kept, values in ((self._item, lists.values), (self._time_ms, time_ms)):
            rows = np.zeros(is_filled.shape, np.int64)
            rows[is_filled] = take_ragged(
                Ragged(values, lists.offsets), starts, lists.offsets[1:]
            ).values
            kept[places] = rows
        self._count[places] = counts


def _in_order(entries: _Entries, mine: IntArray) -> tuple[_Entries, IntArray]:
    """Sort the lists by time where something came late; `mine` are places that move along."""
    owner, _, time_ms = entries
    is_late = (owner[1:] == owner[:-1]) & (time_ms[1:] < time_ms[:-1])
    if not is_late.any():
        return entries, mine
    moving = np.flatnonzero(np.isin(owner, owner[1:][is_late]))
    order = np.arange(len(owner))
    order[moving] = moving[np.lexsort((time_ms[moving], owner[moving]))]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return _Entries(*(values[order] for values in entries)), place[mine]


def _first_of_time(entries: _Entries) -> IntArray:
    """Return for every entry the first one of its list with the same time: `int64[E]`."""
    index = np.arange(len(entries.owner))
    is_new = np.ones(len(index), np.bool_)
    is_new[1:] = entries.owner[1:] != entries.owner[:-1]
    is_new[1:] |= entries.time_ms[1:] != entries.time_ms[:-1]
    return np.maximum.accumulate(np.where(is_new, index, 0))
