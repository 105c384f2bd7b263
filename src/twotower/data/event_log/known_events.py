"""Which events are stored already: 16 bytes an event, in memory, made from the log itself.

A unique index in the database would write a page of its own for nearly every event, because keys
are random, and grow slower with each (docs/events.md has the figures). This index is no source of
truth: it is read from the log when a process first appends, and again when others forget.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from twotower.data.schema import BoolArray, EventIdArray

__all__ = ["KnownEvents"]

_RUN_ROWS: Final = 65_536


class _Run(NamedTuple):
    """Keys in ascending order and the payload of each."""

    keys: EventIdArray
    payloads: EventIdArray


class KnownEvents:
    """A map from event keys to payload digests that only grows.

    The newest are in a dict; each time it is full it becomes a sorted run, and runs of similar
    length are merged, so that a look-up searches a few arrays only.
    """

    def __init__(self, keys: EventIdArray, payloads: EventIdArray) -> None:
        """Begin with `uint64[n]` distinct keys and their payloads."""
        self._runs = [_sorted(keys, payloads)] if len(keys) else []
        self._newest: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._newest) + sum(len(run.keys) for run in self._runs)

    def find(self, keys: EventIdArray) -> tuple[BoolArray, EventIdArray]:
        """Return which of `keys` are known, `bool[n]`, and the payloads of those, `uint64[n]`."""
        is_known, found = np.zeros(len(keys), bool), np.zeros(len(keys), np.uint64)
        listed = keys.tolist()
        if not self._newest.keys().isdisjoint(listed):
            newest = [self._newest.get(key) for key in listed]
            is_known[:] = [payload is not None for payload in newest]
            found[:] = [payload or 0 for payload in newest]
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
        self._newest.update(zip(keys.tolist(), payloads.tolist(), strict=True))
        if len(self._newest) >= _RUN_ROWS:
            self._close_run()

    def _close_run(self) -> None:
        keys = np.fromiter(self._newest.keys(), np.uint64, len(self._newest))
        payloads = np.fromiter(self._newest.values(), np.uint64, len(self._newest))
        self._newest = {}
        run = _sorted(keys, payloads)
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            last = self._runs.pop()
            run = _sorted(
                np.concatenate([last.keys, run.keys]),
                np.concatenate([last.payloads, run.payloads]),
            )
        self._runs.append(run)


def _sorted(keys: EventIdArray, payloads: EventIdArray) -> _Run:
    order = np.argsort(keys, kind="stable")
    return _Run(keys[order], payloads[order])
