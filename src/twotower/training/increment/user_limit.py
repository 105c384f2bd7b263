"""A bound on what one user can teach: so many examples in a window of event time, and no more.

A bot, or somebody who means harm, clicks without end; its examples beyond the bound are counted
and not trained. Legend: `n` examples, `N` users.
"""

from __future__ import annotations

import numpy as np

from twotower.data.schema import BoolArray, IntArray

__all__ = ["UserLimit"]

_BEFORE_ALL = -1
_WIDTH = 2**40
"""More than there are windows since 1970: the key of a user and a window is one integer."""


class UserLimit:
    """Counts every user's examples in the user's newest window.

    A late example counts in the newest window, too: the past must not be a way around the bound.
    """

    def __init__(self, limit: int, window_ms: int) -> None:
        self._limit = limit
        self._window_ms = window_ms
        self._window = np.zeros(0, np.int64)
        self._count = np.zeros(0, np.int64)

    def take(self, users: IntArray, event_time_ms: IntArray) -> BoolArray:
        """Return which of the next examples are within the bound, in their order: `[n]`.

        Args:
            users: `[n]` user positions.
            event_time_ms: `[n]`.
        """
        if len(users) == 0:
            return np.zeros(0, np.bool_)
        self._grow(int(users.max()) + 1)
        order = np.argsort(users, kind="stable")
        owner = users[order]
        window = np.maximum(event_time_ms[order] // self._window_ms, self._window[owner])
        key = np.maximum.accumulate(owner * _WIDTH + window)
        window = key - owner * _WIDTH
        index = np.arange(len(key))
        begins = np.r_[True, key[1:] != key[:-1]]
        rank = index - np.maximum.accumulate(np.where(begins, index, 0))
        rank += np.where(window == self._window[owner], self._count[owner], 0)
        last = np.flatnonzero(np.r_[owner[1:] != owner[:-1], True])
        self._window[owner[last]], self._count[owner[last]] = window[last], rank[last] + 1
        taken = np.empty(len(users), np.bool_)
        taken[order] = rank < self._limit
        return taken

    def _grow(self, num_users: int) -> None:
        extra = num_users - len(self._window)
        if extra > 0:
            spare = extra + num_users // 8
            self._window = np.concatenate([self._window, np.full(spare, _BEFORE_ALL)])
            self._count = np.concatenate([self._count, np.zeros(spare, np.int64)])
