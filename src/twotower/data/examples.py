"""From a window of events to training examples, each with the history that came before it.

Legend: `n` examples, `H` history items in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.user_state import Ragged, append_ragged, take_ragged

__all__ = ["Examples", "build_examples", "join_examples"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Positives with everything that training needs of them, in the order of event time."""

    event_id: npt.NDArray[np.uint64]
    user: IntArray
    """`[n]` user positions."""
    item: IntArray
    """`[n]` item positions."""
    event_time_ms: IntArray
    weight: npt.NDArray[np.float32]
    past: Ragged
    """Every user's positives, of the window and of before it."""
    history_start: IntArray
    """`[n]`: the history of example `i` is `past.values[history_start[i]:history_end[i]]`."""
    history_end: IntArray
    leaves_out_own: bool = False
    """Whether a history holds the example's own item at one place, which does not count."""

    def __len__(self) -> int:
        return len(self.event_id)

    def at(self, indices: IntArray) -> Examples:
        """Return some of the examples, in the order of `indices`; `past` is shared."""
        taken: dict[str, Any] = {name: values[indices] for name, values in self.rows()}
        return dataclasses.replace(self, **taken)

    def rows(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield what holds a value an example, by name."""
        for field in dataclasses.fields(self):
            if field.name not in ("past", "leaves_out_own"):
                yield field.name, getattr(self, field.name)

    def histories(
        self, indices: IntArray, is_hidden: npt.NDArray[np.bool_] | None = None
    ) -> Ragged:
        """Return the histories of some examples, oldest item first; empty where `is_hidden`."""
        starts, ends = self.history_start[indices], self.history_end[indices]
        if is_hidden is not None:
            starts = np.where(is_hidden, ends, starts)
        past = take_ragged(self.past, starts, ends)
        return _without(past, self.item[indices]) if self.leaves_out_own else past


def build_examples(
    *,
    event_id: npt.NDArray[np.uint64],
    user: IntArray,
    item: IntArray,
    event_time_ms: IntArray,
    recent: Ragged,
    num_users: int,
    history_length: int,
    weight: npt.NDArray[np.float32] | None = None,
) -> Examples:
    """Turn positives in the order of event time into examples.

    The history of an example holds that user's positives with an event time strictly before its
    own, so neither a later click nor one of the same millisecond can leak into it.

    Args:
        event_id: `[n]`.
        user: `[n]` user positions.
        item: `[n]` item positions.
        event_time_ms: `[n]`, ascending.
        recent: each user's positives before the window, oldest to newest.
        num_users: users known by now.
        history_length: newest items kept per history; 0 for empty histories.
        weight: `[n]`, ones when left out.
    """
    past = append_ragged(recent, user, item, num_lists=num_users, limit=0)
    ends = (
        past.offsets[user] + _before_window(recent, user) + _earlier_in_window(user, event_time_ms)
    )
    starts = np.maximum(past.offsets[user], ends - history_length)
    ones = np.ones(len(user), np.float32)
    return Examples(
        event_id, user, item, event_time_ms, ones if weight is None else weight, past, starts, ends
    )


def join_examples(first: Examples, second: Examples) -> Examples:
    """Return the examples of both; they share one `past`."""
    joined: dict[str, Any] = {
        name: np.concatenate([values, getattr(second, name)]) for name, values in first.rows()
    }
    return dataclasses.replace(first, **joined)


def _without(lists: Ragged, items: IntArray) -> Ragged:
    """Return the lists without the places that hold the list's own item of `items`."""
    stays = lists.values != np.repeat(items, lists.lengths())
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(stays)])
    return Ragged(lists.values[stays], before[lists.offsets])


def _before_window(recent: Ragged, user: IntArray) -> IntArray:
    lengths = np.zeros(max(len(recent.offsets) - 1, int(user.max(initial=-1)) + 1), np.int64)
    lengths[: len(recent.offsets) - 1] = recent.lengths()
    return lengths[user]


def _earlier_in_window(user: IntArray, event_time_ms: IntArray) -> IntArray:
    """Return how many of the same user's rows have a strictly smaller time, `int64[n]`."""
    order = np.lexsort((event_time_ms, user))
    sorted_user, sorted_time = user[order], event_time_ms[order]
    index = np.arange(len(user))
    new_user = np.r_[True, sorted_user[1:] != sorted_user[:-1]]
    new_time = new_user | np.r_[True, sorted_time[1:] != sorted_time[:-1]]
    first_of_user = np.maximum.accumulate(np.where(new_user, index, 0))
    first_of_time = np.maximum.accumulate(np.where(new_time, index, 0))
    earlier = np.empty(len(user), np.int64)
    earlier[order] = first_of_time - first_of_user
    return earlier
