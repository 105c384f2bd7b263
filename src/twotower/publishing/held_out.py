"""Recall on the held-out user-days, by the way that a request goes: ID, tower, index, ID.

Candidate, live generation and popularity are asked as of the start of the window: users with the
clicks and seen lists that the live generation has, which was published before the held-out clicks
happened. Nothing of the candidate knows them either: see `twotower.training.held_out`.
Legend: `n` held-out users, `K` places of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.held_out import HeldOut
from twotower.data.ids import lookup
from twotower.data.user_state import Ragged, take_ragged
from twotower.index import VectorIndex, build_index
from twotower.index.settings import IndexSettings
from twotower.metrics import find_hits, recall_at_k
from twotower.publishing.encoding import Encoder
from twotower.publishing.entities import Entities

__all__ = [
    "HeldOutRecall",
    "Served",
    "UsersBefore",
    "list_length",
    "measure_recall",
    "users_before",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LONGEST: Final = 100
_SHARE: Final = 10


@dataclass(frozen=True, eq=False)
class Served:
    """What answers requests: a generation that is live, or one that is staged."""

    encoder: Encoder
    index: VectorIndex


class UsersBefore(NamedTuple):
    """The held-out users as they were at the start of the window."""

    ids: npt.NDArray[np.generic]
    """`[n]`, of the log, ascending."""
    recent: Ragged
    """`n` lists of item positions, oldest first."""
    seen: Ragged
    """`n` lists of item positions."""


class HeldOutRecall(NamedTuple):
    """The share of each user-day's targets among its list, `float64[n]` each."""

    k: int
    num_positives: int
    users: IntArray
    """`[n]`, what a bootstrap resamples."""
    candidate: FloatArray
    popularity: FloatArray
    live: FloatArray | None

    def sample(self) -> str:
        """Return what was measured on, in words."""
        return f"recall@{self.k} of {len(self.users)} users' {self.num_positives} positives"


class _Targets(NamedTuple):
    """What is to be found, as numbers of `codes`."""

    rows: IntArray
    """`[m]`, the users with a target, as places in `UsersBefore`."""
    items: Ragged
    """`m` lists of distinct places in `codes`."""
    codes: npt.NDArray[np.generic]
    """Distinct item IDs of the log, ascending."""


def list_length(num_items: int) -> int:
    """Return how long a list is judged: 100, but at most a tenth of the corpus."""
    return max(1, min(_LONGEST, num_items // _SHARE))


def users_before(held_out: HeldOut, live: Served | None) -> UsersBefore:
    """Return the held-out users with the state that the live generation has of them.

    Users that it does not know, and all where nothing was live, have no clicks and saw nothing.
    """
    ids = np.unique(held_out.user_id)
    if live is None:
        return UsersBefore(ids, Ragged.empty(len(ids)), Ragged.empty(len(ids)))
    encoder = live.encoder
    positions = _positions(encoder.users, ids)
    return UsersBefore(ids, _lists(encoder.recent, positions), _lists(encoder.seen, positions))


def measure_recall(
    held_out: HeldOut,
    candidate: Served,
    live: Served | None,
    popularity: FloatArray,
    corpus: IntArray,
) -> HeldOutRecall | str:
    """Return the recall of the candidate and of what it is held against, or why there is none.

    Targets are the distinct items that a user clicked and had not been shown before the window.

    Args:
        held_out: what the candidate was not trained on.
        candidate: staged.
        live: the parent, None where nothing was live.
        popularity: decayed clicks without the held-out ones, by item position.
        corpus: item positions that a list may hold.
    """
    if not len(held_out):
        return "nothing was held out: too few positives, or switched off"
    before = users_before(held_out, live)
    shown_ids = candidate.encoder.items if live is None else live.encoder.items
    targets = _targets(held_out, before, shown_ids)
    if not len(targets.rows):
        return "every held-out item had been shown before"
    k = list_length(len(corpus))
    popular = _Popular(popularity, corpus)
    return HeldOutRecall(
        k=k,
        num_positives=len(targets.items.values),
        users=targets.rows,
        candidate=_recall_of(candidate, before, targets, k),
        popularity=_recall(popular.lists(before, targets, k), candidate, targets, k),
        live=None if live is None else _recall_of(live, before, targets, k),
    )


def _targets(held_out: HeldOut, before: UsersBefore, shown: Entities) -> _Targets:
    codes, item = np.unique(held_out.item_id, return_inverse=True)
    user = np.searchsorted(before.ids, held_out.user_id)
    seen = _code(shown.ids[before.seen.values], codes)
    pairs = np.unique(user * len(codes) + item)
    pairs = pairs[~np.isin(pairs, before.seen.owners()[seen >= 0] * len(codes) + seen[seen >= 0])]
    rows, counts = np.unique(pairs // len(codes), return_counts=True)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return _Targets(rows, Ragged(pairs % len(codes), offsets), codes)


def _recall_of(served: Served, before: UsersBefore, targets: _Targets, k: int) -> FloatArray:
    """Return the recall of what a generation answers to every user with a target, `[m]`."""
    rows = targets.rows
    positions = _positions(served.encoder.users, before.ids[rows])
    vectors = served.encoder.user_vectors_with(positions, _lists(before.recent, rows))
    found = served.index.search(vectors, k, _arrays(_lists(before.seen, rows))).ids
    return _recall(found, served, targets, k)


class _Popular:
    """The list of what is popular, for every user without what they were shown."""

    def __init__(self, counts: FloatArray, corpus: IntArray) -> None:
        every = np.zeros(int(corpus.max()) + 1, np.float32)
        every[: len(counts)] = counts[: len(every)]
        vectors = every[corpus][:, None]
        self._index = build_index("exact", corpus, vectors, IndexSettings())

    def lists(self, before: UsersBefore, targets: _Targets, k: int) -> IntArray:
        queries = np.ones((len(targets.rows), 1), np.float32)
        return self._index.search(queries, k, _arrays(_lists(before.seen, targets.rows))).ids


def _recall(found: IntArray, served: Served, targets: _Targets, k: int) -> FloatArray:
    """Return the share of each user's targets among `found[m, K]`, compared by their IDs."""
    ids = served.encoder.items.ids
    ranked = np.where(found >= 0, _code(ids[np.maximum(found, 0)], targets.codes), -1)
    hits = find_hits(ranked, targets.items.values, targets.items.offsets)
    return recall_at_k(hits, targets.items.lengths(), k)


def _code(ids: npt.NDArray[np.generic], codes: npt.NDArray[np.generic]) -> IntArray:
    """Return each ID's place in `codes`, -1 where it is none of them."""
    return lookup(codes, np.arange(len(codes)), ids.ravel()).reshape(ids.shape)


def _positions(entities: Entities, ids: npt.NDArray[np.generic]) -> IntArray:
    return lookup(entities.ids, entities.order, ids)


def _lists(lists: Ragged, rows: IntArray) -> Ragged:
    """Return the lists at `rows`, an empty one for -1."""
    known = rows >= 0
    start = np.where(known, lists.offsets[np.maximum(rows, 0)], 0)
    return take_ragged(lists, start, np.where(known, lists.offsets[rows + 1], 0))


def _arrays(lists: Ragged) -> list[IntArray]:
    return [lists.list_at(index) for index in range(len(lists.offsets) - 1)]
