"""What is frozen of an incremental update's inputs, multiplied once instead of in every step.

Users come with a history of their own in each example, so theirs is of the examples of a portion;
items have features alone, so theirs is of all items, at `H` floats each.
Legend: `n` examples, `N` items, `H` width of the first layer.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples
from twotower.data.schema import IntArray
from twotower.model.folded_tower import Folded, FoldedSides, FoldedTower
from twotower.model.growing_rows import GrowingRows
from twotower.model.towers import History
from twotower.training.profile_tensors import ProfileTensors

__all__ = ["FrozenInputs"]

_BATCH: Final = 4096


class FrozenInputs:
    """Of one update: its towers and features are frozen when this is made."""

    def __init__(self, state: Checkpoint, *, moves_items: bool) -> None:
        """Fold the items, where they learn."""
        id_dim = state.meta.model.id_dim
        self._state = state
        self._users = FoldedTower(state.model.user_tower, id_dim)
        self._items = FoldedTower(state.model.item_tower, id_dim) if moves_items else None
        self._first: GrowingRows | None = None
        self._skip: GrowingRows | None = None
        self.follow_items()

    def follow_items(self) -> None:
        """Fold the items that the state knows since it was asked before."""
        if self._items is None:
            return
        known = 0 if self._first is None else len(self._first.values)
        parts = [self._fold_items(part) for part in _parts(known, len(self._state.items))]
        for folded in parts:
            self._first = _appended(self._first, folded.first)
            if folded.skip is not None:
                self._skip = _appended(self._skip, folded.skip)

    def of(self, examples: Examples) -> FoldedSides:
        """Return what the batches of some examples, at least one, take their constants from."""
        state = self._state
        profiles = ProfileTensors(state.user_profiles, state.user_features.missing(1))
        rows = torch.from_numpy(state.items.rows)
        parts = [
            self._fold_users(examples, part, profiles, rows) for part in _parts(0, len(examples))
        ]
        items = None
        if self._first is not None:
            items = Folded(self._first.values, None if self._skip is None else self._skip.values)
        return FoldedSides(self._users, Folded.joined(parts), self._items, items)

    def _fold_users(
        self, examples: Examples, part: IntArray, profiles: ProfileTensors, rows: torch.Tensor
    ) -> Folded:
        features = profiles.pick(torch.from_numpy(examples.user[part]))
        history = None
        if self._state.meta.model.history_length:
            past = examples.histories(part)
            offsets = torch.from_numpy(past.offsets[:-1])
            history = History(rows[torch.from_numpy(past.values)], offsets)
        with torch.no_grad():
            rest, _ = self._state.model.user_inputs(features, history)
            return self._users.fold(torch.cat(rest, 1))

    def _fold_items(self, positions: IntArray) -> Folded:
        assert self._items is not None, "asked for where items learn"
        state = self._state
        profiles = ProfileTensors(state.item_profiles, state.item_features.missing(1))
        with torch.no_grad():
            rest, _ = state.model.item_inputs(profiles.pick(torch.from_numpy(positions)))
            return self._items.fold(torch.cat(rest, 1))


def _parts(start: int, end: int) -> list[IntArray]:
    return [np.arange(n, min(n + _BATCH, end)) for n in range(start, end, _BATCH)]


def _appended(rows: GrowingRows | None, added: torch.Tensor) -> GrowingRows:
    if rows is None:
        return GrowingRows(added)
    rows.append(added)
    return rows
