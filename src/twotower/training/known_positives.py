"""What the users of a batch are known to like: no negatives of their rows.

Legend: `B` examples of a batch, `C` columns, `E` pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.examples import Examples
from twotower.data.user_state import Ragged, append_ragged, take_ragged
from twotower.model.logits import KnownPositives

__all__ = ["PassPositives"]

IntArray = npt.NDArray[np.int64]

_MARK_BELOW = 8
"""Items, as a multiple of the pairs of a batch, up to which marking the columns pays."""


class PassPositives:
    """What each user clicked before an example, and all that the pass trains of him."""

    def __init__(self, examples: Examples, num_users: int, num_items: int) -> None:
        self._examples = examples
        self._num_items = num_items
        self._trained = append_ragged(
            Ragged.empty(0), examples.user, examples.item, num_lists=num_users, limit=0
        )
        self._past_is_trained = examples.leaves_out_own and np.array_equal(
            self._trained.offsets, examples.past.offsets
        )
        """Whether the lists are the pass's own positives, and need no second look."""

    def among(self, columns: Tensor, indices: IntArray) -> KnownPositives:
        """Return the pairs of the examples at `indices`, many that are no column left out.

        Args:
            columns: `int64[C]` item positions.
            indices: `[B]`.
        """
        users = self._examples.user[indices]
        offsets = self._trained.offsets
        trained = take_ragged(self._trained, offsets[users], offsets[users + 1])
        rows, items = trained.owners(), trained.values
        if not self._past_is_trained:
            past = self._examples.histories(indices)
            rows = np.concatenate([rows, past.owners()])
            items = np.concatenate([items, past.values])
        if self._num_items <= _MARK_BELOW * len(items):
            is_column = np.zeros(self._num_items, np.bool_)
            is_column[columns.numpy()] = True
            is_there = is_column[items]
            rows, items = rows[is_there], items[is_there]
        return KnownPositives(torch.from_numpy(rows), torch.from_numpy(items))
