"""What a user gets: readable for people, positions and scores for the server.

Legend: `k` candidates asked for, `K` found, `H` recent clicks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id

__all__ = ["Answer", "Candidate", "Found", "RecentClick"]

IntArray = npt.NDArray[np.int64]


class Candidate(msgspec.Struct, frozen=True):
    """One returned item."""

    item_id: Id
    score: float
    """The cosine; with a popularity coordinate, the inner product."""
    rank: int
    """1 is the best."""
    display: dict[str, Any]


class RecentClick(msgspec.Struct, frozen=True):
    """One of the user's recent clicks, which the user vector is made from."""

    item_id: Id
    display: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """What a user gets, and what made it."""

    user_id: Id
    generation: str
    sequence: int | None
    """Of the activation; None where the generation was named and is not live."""
    delta: int | None
    """Of the deltas over the generation the newest one in it; None: as it was published."""
    items_number: int | None
    """Of the changes of the day's items the last one in it; None before the first."""
    user_state_offset: int | None
    """The event log's: what users did before it counts. None: what the generation knows."""
    degraded: list[str]
    """Why this is less than it could be: `unknown_user`, `feature:city=unseen`, …"""
    candidates: list[Candidate]
    """Best first; fewer than `k` only where no more may be returned."""
    recent: list[RecentClick]
    """Newest first."""


class Found(NamedTuple):
    """What a search found, in numbers of items: see `twotower.serving.known_items.KnownItems`."""

    positions: IntArray
    """`int64[K]`, best first, `K <= k`."""
    scores: npt.NDArray[np.float32]
    """`float32[K]`."""
    clicks: IntArray
    """`int64[H]`: the user's recent clicks, oldest first."""
    degraded: list[str]
    tower_s: float
    """Time for the user's vector: looking up, encoding the request's features, the tower."""
    filter_s: float
    """Time to list the items that may not be returned."""
    ann_s: float
    """Time of the search, which leaves those items out."""
