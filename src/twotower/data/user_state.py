"""What is known of every user as of a cut: recent positives and everything already shown.

Ragged arrays over user positions, in the order of time. A generation publishes them as mmapped
arrays, and the next full update continues them, so no night reads more than its own day.
Legend: `N` users, `n` events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Ragged", "UserState", "append_ragged", "newest", "take_ragged"]

IntArray = npt.NDArray[np.int64]


class Ragged(NamedTuple):
    """`N` lists in one flat array: list `u` is `values[offsets[u]:offsets[u + 1]]`."""

    values: IntArray
    offsets: IntArray

    @classmethod
    def empty(cls, num_lists: int) -> Ragged:
        """Return `num_lists` empty lists."""
        return cls(np.zeros(0, np.int64), np.zeros(num_lists + 1, np.int64))

    def list_at(self, index: int) -> IntArray:
        """Return one list, `int64[length]`."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> IntArray:
        """Return the length of every list, `int64[N]`."""
        return np.diff(self.offsets)

    def owners(self) -> IntArray:
        """Return for every value the list that it belongs to, `int64[len(values)]`."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths())


def take_ragged(lists: Ragged, start: IntArray, end: IntArray) -> Ragged:
    """Return the slices `values[start[i]:end[i]]` as lists of their own."""
    lengths = end - start
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    shift = np.repeat(start - offsets[:-1], lengths)
    return Ragged(lists.values[shift + np.arange(offsets[-1])], offsets)


def append_ragged(
    lists: Ragged, owners: IntArray, values: IntArray, *, num_lists: int, limit: int
) -> Ragged:
    """Append `values[i]` to list `owners[i]`, in the order given, keeping the last `limit`.

    Args:
        lists: what is there already, of at most `num_lists` lists.
        owners: `[n]`, the list that each value goes to.
        values: `[n]`.
        num_lists: number of lists in the answer.
        limit: newest values kept per list; 0 keeps all.
    """
    all_owners = np.concatenate([lists.owners(), owners])
    order = np.argsort(all_owners, kind="stable")
    counts = np.bincount(all_owners, minlength=num_lists).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return newest(Ragged(np.concatenate([lists.values, values])[order], offsets), limit)


def newest(lists: Ragged, limit: int) -> Ragged:
    """Return the last `limit` values of every list, or all of them where `limit` is 0."""
    if limit == 0:
        return lists
    start = np.maximum(lists.offsets[:-1], lists.offsets[1:] - limit)
    return take_ragged(lists, start, lists.offsets[1:])


def _emptied(lists: Ragged, is_emptied: npt.NDArray[np.bool_]) -> Ragged:
    ends = np.where(is_emptied, lists.offsets[:-1], lists.offsets[1:])
    return take_ragged(lists, lists.offsets[:-1], ends)


def _distinct(lists: Ragged) -> Ragged:
    """Return the lists without repeated values; the last occurrence of a value stays."""
    owners = lists.owners()
    pairs = owners * (lists.values.max(initial=0) + 1) + lists.values
    order = np.argsort(pairs, kind="stable")
    is_last = np.ones(len(pairs), np.bool_)
    is_last[:-1] = np.diff(pairs[order]) != 0
    kept = np.sort(order[is_last])
    counts = np.bincount(owners[kept], minlength=len(lists.offsets) - 1).astype(np.int64)
    return Ragged(lists.values[kept], np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


class UserState(NamedTuple):
    """Recent positives and seen items of every user as of a cut, as item positions."""

    recent: Ragged
    """Positives, oldest to newest."""
    seen: Ragged
    """Distinct items that were shown or acted on, oldest to newest."""

    @classmethod
    def empty(cls, num_users: int) -> UserState:
        """Return the state of users of whom nothing is known."""
        return cls(Ragged.empty(num_users), Ragged.empty(num_users))

    def advance(
        self,
        users: IntArray,
        items: IntArray,
        is_positive: npt.NDArray[np.bool_],
        *,
        num_users: int,
        recent_limit: int,
        seen_limit: int = 0,
    ) -> UserState:
        """Return the state after `n` more impressions, which must be in the order of time.

        Args:
            users: `[n]` user positions.
            items: `[n]` item positions.
            is_positive: `[n]`, whether the outcome was the wanted one.
            num_users: users known by now.
            recent_limit: newest positives kept per user; 0 keeps all.
            seen_limit: newest seen items kept per user; 0 keeps all.
        """
        recent = append_ragged(
            self.recent,
            users[is_positive],
            items[is_positive],
            num_lists=num_users,
            limit=recent_limit,
        )
        shown = append_ragged(self.seen, users, items, num_lists=num_users, limit=0)
        return UserState(recent, newest(_distinct(shown), seen_limit))

    def without(self, is_forgotten: npt.NDArray[np.bool_]) -> UserState:
        """Return the state in which the users where `is_forgotten[N]` have neither list."""
        return UserState(_emptied(self.recent, is_forgotten), _emptied(self.seen, is_forgotten))

    def arrays(self) -> dict[str, IntArray]:
        """Return the state as named plain arrays."""
        return {
            "recent_items": self.recent.values,
            "recent_offsets": self.recent.offsets,
            "seen_items": self.seen.values,
            "seen_offsets": self.seen.offsets,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> UserState:
        """Rebuild the state that `arrays` came from."""
        values = {name: np.asarray(arrays[name], dtype=np.int64) for name in _ARRAY_NAMES}
        return cls(
            Ragged(values["recent_items"], values["recent_offsets"]),
            Ragged(values["seen_items"], values["seen_offsets"]),
        )


_ARRAY_NAMES = ("recent_items", "recent_offsets", "seen_items", "seen_offsets")
