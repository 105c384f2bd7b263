"""Hard negatives from a generation's own ranking: items that it likes, though not the most.

The first hundred are left out because they are what the user may well click; far behind them are
items that are as easy as random ones. Ranks 101 to 500 are what Huang et al. (2020, "Embedding-
based Retrieval in Facebook Search", section 6.1) found best, better than the hardest ones.
Legend: `n` users.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from twotower.data.user_state import Ragged
from twotower.index.exact import ExactIndex
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.training.settings import HardNegativeSettings

__all__ = ["mine_ranks", "miner_of"]

IntArray = npt.NDArray[np.int64]

_BATCH = 1024


def miner_of(generation: Generation, hard: HardNegativeSettings) -> Callable[[IntArray], Ragged]:
    """Return what finds a full update its mined negatives in its parent's generation."""

    def mine(users: IntArray) -> Ragged:
        return mine_ranks(generation, users, first=hard.mined_from, last=hard.mined_to)

    return mine


def mine_ranks(generation: Generation, users: IntArray, *, first: int, last: int) -> Ragged:
    """Return the items of the ranks `first` to `last` of each user, best first: `n` lists.

    Ranks are those of the answer that the generation would have given at its cut, found exactly:
    what the user had seen is left out before anything is counted.

    Args:
        generation: whose towers, item vectors and user state are used.
        users: `int64[n]`, positions known to it.
        first: 1 is the best item.
        last: included; a list is shorter where the corpus is.
    """
    encoder = Encoder.of(generation)
    index = ExactIndex.build(
        np.asarray(generation.array("corpus.npy")), np.asarray(generation.array("item_vectors.npy"))
    )
    found = [
        _search(index, encoder, users[start : start + _BATCH], last)[:, first - 1 :]
        for start in range(0, len(users), _BATCH)
    ]
    width = max(0, last - first + 1)
    items = np.concatenate([np.zeros((0, width), np.int64), *found])
    counts = (items >= 0).sum(1)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Ragged(items[items >= 0], offsets)


def _search(index: ExactIndex, encoder: Encoder, users: IntArray, k: int) -> IntArray:
    seen = [np.asarray(encoder.seen.list_at(user)) for user in users]
    return index.search(encoder.user_vectors(users), k, exclude=seen).ids
