"""Held-out user-days: positives that a full update leaves for the next one, to be judged by them.

A hash of user and cut decides who is held out, so the same night chooses the same users however
often it is begun again. All of a user's positives of a window are held out together: no history
that is trained that night holds one of them. Legend: `n` positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.days import event_digest, mix64
from twotower.data.ids import view_ids
from twotower.data.user_state import Ragged

__all__ = ["HeldOut", "HoldOutRule", "choose_held_out"]

IntArray = npt.NDArray[np.int64]

_LIGHT: Final = 10


class HoldOutRule(NamedTuple):
    """How many positives a full update holds out."""

    positives: int
    """At least so many, 0 for none."""
    max_share: float
    """Never more than this share of a window's positives."""
    min_positives: int
    """Where the share allows fewer than these, none: they would tell nothing."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Positives that were not trained yet, each with the history that came before it."""

    event_id: npt.NDArray[np.uint64]
    user_id: npt.NDArray[np.generic]
    """`[n]`, of the log: whoever measures by them goes the whole way from the ID."""
    item_id: npt.NDArray[np.generic]
    event_time_ms: IntArray
    history: Ragged
    """`n` lists of item positions, oldest first."""
    weight: npt.NDArray[np.float32] | None = None
    """`[n]`, None for ones."""

    def weights(self) -> npt.NDArray[np.float32]:
        """Return how much each positive counts, `float32[n]`."""
        return np.ones(len(self), np.float32) if self.weight is None else self.weight

    @classmethod
    def none(cls) -> HeldOut:
        """Return what a lineage without held-out positives carries."""
        ids, no_events = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        return cls(no_events, ids, ids, ids, Ragged.empty(0))

    def __len__(self) -> int:
        return len(self.event_id)

    @property
    def digest(self) -> str:
        """Order-free digest of the event IDs."""
        return event_digest(self.event_id)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the positives as named plain arrays; text IDs become `uint8[n, width]`."""
        return {
            "event_id": self.event_id,
            "user_id": _plain(self.user_id),
            "item_id": _plain(self.item_id),
            "event_time_ms": self.event_time_ms,
            "history_items": self.history.values,
            "history_offsets": self.history.offsets,
            "weight": self.weights(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> HeldOut:
        """Rebuild the positives that `arrays` came from; a checkpoint without any has none."""
        if not arrays:
            return cls.none()
        return cls(
            arrays["event_id"].astype(np.uint64),
            view_ids(arrays["user_id"]),
            view_ids(arrays["item_id"]),
            arrays["event_time_ms"].astype(np.int64),
            Ragged(
                arrays["history_items"].astype(np.int64),
                arrays["history_offsets"].astype(np.int64),
            ),
            arrays["weight"].astype(np.float32) if "weight" in arrays else None,
        )


def choose_held_out(users: IntArray, cut_ms: int, rule: HoldOutRule) -> npt.NDArray[np.bool_]:
    """Return which positives of a window are held out, `bool[n]`.

    Whole users, in the order of a hash of the user and the cut, until there are enough positives
    or one more user would be above the share. Who alone has more than a tenth of what the share
    allows is never held out: one user's luck must not be the verdict.

    Args:
        users: `int64[n]`, user positions.
        cut_ms: end of the window.
        rule: how many.
    """
    none = np.zeros(len(users), np.bool_)
    most = int(len(users) * rule.max_share)
    if not rule.positives or most < min(rule.min_positives, rule.positives):
        return none
    known, counts = np.unique(users, return_counts=True)
    is_light = counts <= max(1, most // _LIGHT)
    known, counts = known[is_light], counts[is_light]
    cut = mix64(np.array([cut_ms], np.uint64))
    order = np.argsort(mix64(known.astype(np.uint64) ^ cut), kind="stable")
    total = np.cumsum(counts[order])
    enough = int(np.searchsorted(total, rule.positives)) + 1
    num_users = min(enough, int(np.searchsorted(total, most, side="right")))
    if not num_users or total[num_users - 1] < min(rule.min_positives, rule.positives):
        return none
    return np.isin(users, known[order[:num_users]])


def _plain(ids: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if ids.dtype.kind != "S":
        return ids
    return np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
