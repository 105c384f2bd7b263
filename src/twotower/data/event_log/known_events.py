"""Which events are stored already: 16 bytes an event, in memory, made from the log itself.

A unique index in the database would write a page of its own for nearly every event, because keys
are random, and grow slower with each (docs/events.md has the figures). This index is no source of
truth: it is read from the log when a process first appends, and again when others forget.
Legend: `n` keys.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from twotower.data.schema import BoolArray, EventIdArray, IntArray

__all__ = ["KnownEvents"]

_RUN_ROWS: Final = 65_536
_SLOTS: Final = 4 * _RUN_ROWS


class _Run(NamedTuple):
    """Keys in ascending order and the payload of each."""

    keys: EventIdArray
    payloads: EventIdArray


class _Newest:
    """A hash table of the newest keys, whole batches at a time; at most a quarter of it is used.

    Keys are digests, so their lowest bits choose a slot evenly; where that is taken the next one
    is tried. A dict would take a Python object and two misses of the cache an event.
    """

    def __init__(self) -> None:
        self._keys = np.zeros(_SLOTS, np.uint64)
        self._payloads = np.zeros(_SLOTS, np.uint64)
        self._is_used = np.zeros(_SLOTS, bool)
        self.num = 0

    def find(self, keys: EventIdArray) -> tuple[IntArray, IntArray]:
        """Return the places of those `keys` that are here, and their slots."""
        found, slots = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        place, slot = np.arange(len(keys)), _first_slot(keys)
        while len(place):
            is_used = self._is_used[slot]
            place, slot = place[is_used], slot[is_used]  # a free slot ends the search
            is_here = self._keys[slot] == keys[place]
            found.append(place[is_here])
            slots.append(slot[is_here])
            place, slot = place[~is_here], (slot[~is_here] + 1) % _SLOTS
        return np.concatenate(found), np.concatenate(slots)

    def payloads(self, slots: IntArray) -> EventIdArray:
        """Return the payloads in some slots."""
        return self._payloads[slots]

    def add(self, keys: EventIdArray, payloads: EventIdArray) -> None:
        """Store distinct keys that are not here."""
        place, slot = np.arange(len(keys)), _first_slot(keys)
        while len(place):
            is_free = ~self._is_used[slot]
            self._keys[slot[is_free]] = keys[place[is_free]]  # of two in one slot the last stays
            self._is_used[slot[is_free]] = True
            is_in = self._keys[slot] == keys[place]
            self._payloads[slot[is_in]] = payloads[place[is_in]]
            place, slot = place[~is_in], (slot[~is_in] + 1) % _SLOTS
        self.num += len(keys)

    def run(self) -> _Run:
        """Return all keys in order."""
        used = np.flatnonzero(self._is_used)
        return _sorted(self._keys[used], self._payloads[used])

    def clear(self) -> None:
        """Forget all keys."""
        self._is_used[:] = False
        self.num = 0


class KnownEvents:
    """A map from event keys to payload digests that only grows.

    The newest are in a hash table; each time it is full it becomes a sorted run, and runs of
    similar length are merged, so that a look-up searches a few arrays only.
    """

    def __init__(self, keys: EventIdArray, payloads: EventIdArray) -> None:
        """Begin with `uint64[n]` distinct keys and their payloads."""
        self._runs = [_sorted(keys, payloads)] if len(keys) else []
        self._newest = _Newest()

    def __len__(self) -> int:
        return self._newest.num + sum(len(run.keys) for run in self._runs)

    def find(self, keys: EventIdArray) -> tuple[BoolArray, EventIdArray]:
        """Return which of `keys` are known, `bool[n]`, and the payloads of those, `uint64[n]`."""
        is_known, found = np.zeros(len(keys), bool), np.zeros(len(keys), np.uint64)
        places, slots = self._newest.find(keys)
        is_known[places] = True
        found[places] = self._newest.payloads(slots)
        order = np.argsort(keys)
        ascending = keys[order]  # neighbours share the cache lines of a search
        for run in self._runs:
            place = np.minimum(np.searchsorted(run.keys, ascending), len(run.keys) - 1)
            is_here = run.keys[place] == ascending
            is_known[order[is_here]] = True
            found[order[is_here]] = run.payloads[place[is_here]]
        return is_known, found

    def add(self, keys: EventIdArray, payloads: EventIdArray) -> None:
        """Make `uint64[n]` new and distinct keys known."""
        for start in range(0, len(keys), _RUN_ROWS):
            part = slice(start, start + _RUN_ROWS)
            if self._newest.num + len(keys[part]) > _RUN_ROWS:
                self._close_run()
            self._newest.add(keys[part], payloads[part])

    def _close_run(self) -> None:
        run = self._newest.run()
        self._newest.clear()
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)


def _first_slot(keys: EventIdArray) -> IntArray:
    return (keys & np.uint64(_SLOTS - 1)).astype(np.int64)


def _sorted(keys: EventIdArray, payloads: EventIdArray) -> _Run:
    order = np.argsort(keys)
    return _Run(keys[order], payloads[order])


def _merged(one: _Run, other: _Run) -> _Run:
    keys = np.concatenate([one.keys, other.keys])
    order = np.argsort(keys, kind="stable")  # merges what is in order already
    return _Run(keys[order], np.concatenate([one.payloads, other.payloads])[order])
