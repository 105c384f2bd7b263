"""From examples to the tensors of one step: looked-up rows, negatives, hidden IDs.

Everything random in a step comes from a generator that is seeded by the run and the step's
number, so a resumed run draws what an unstopped one would have drawn.
Legend: `B` examples, `U` uniform items, `C = B + U` columns, `V` distinct inputs of the item tower
among them, `H` negatives of a row's own, `n` items among those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.checkpoint import Checkpoint
from twotower.data.examples import Examples
from twotower.data.ids import UNKNOWN_ROW
from twotower.data.user_state import Ragged
from twotower.model.column_table import find_hits
from twotower.model.folded_tower import Folded, FoldedSides
from twotower.model.logits import Columns
from twotower.model.negatives import draw_uniform, log_expected_count
from twotower.model.row_negatives import NO_ITEM, RowNegatives, draw_listed, place_items
from twotower.model.towers import Features, History
from twotower.training.known_positives import PassPositives
from twotower.training.profile_tensors import ProfileTensors
from twotower.training.settings import PassSettings, TrainingSettings

__all__ = [
    "Batch",
    "BatchMaker",
    "FoldedSides",
    "NegativeLists",
    "applied_correction",
    "drawn_negatives",
]

IntArray = npt.NDArray[np.int64]


def drawn_negatives(training: TrainingSettings) -> int | None:
    """Return how many easy negatives a positive draws, None where it takes all."""
    return None if training.loss == "listwise" else training.negatives.per_positive or None


def applied_correction(training: TrainingSettings) -> str:
    """Return by what the logits of the loss are corrected."""
    return "none" if training.loss == "cosine_contrastive" else training.negatives.correction


class Batch(NamedTuple):
    """One step's inputs."""

    user_rows: Tensor
    user_features: Features
    history: History | None
    item_rows: Tensor
    """`int64[V + n]`: the columns' distinct ones, then those of the rows' own negatives."""
    item_features: Features
    places: Tensor
    """`int64[C + n]`: where among these each column is, and each item of the own negatives."""
    columns: Columns
    weight: Tensor
    row_negatives: tuple[RowNegatives, ...]
    item_vectors: Tensor | None = None
    """`[V + n, D]`, constants in place of what the item tower would say; None for the tower."""
    user_fold: Folded | None = None
    """In place of features and history, where the ID embedding alone can change."""
    item_fold: Folded | None = None
    """The same, of `V + n` items."""

    @property
    def num_column_vectors(self) -> int:
        """`V`: the first so many item vectors of the step are the columns'."""
        return len(self.item_rows) - (len(self.places) - len(self.columns.items))


class NegativeLists(NamedTuple):
    """One source of negatives that belong to a user, such as hard ones."""

    by_user: Ragged
    """Distinct item positions in random order, over user positions."""
    share: float
    """Drawn a positive, as a share of its easy negatives."""
    weight: float


class BatchMaker:
    """Makes the batches of one pass; reads the checkpoint, changes nothing."""

    def __init__(
        self,
        state: Checkpoint,
        examples: Examples,
        example_log_probability: npt.NDArray[np.float32],
        training: TrainingSettings,
        schedule: PassSettings,
        listed: Sequence[NegativeLists] = (),
        item_vectors: Tensor | None = None,
        folded: FoldedSides | None = None,
        *,
        finds_hits: bool = False,
    ) -> None:
        """Prepare the batches of a pass.

        Args:
            state: of the lineage.
            examples: of the pass.
            example_log_probability: `[n]`, log of each example's item frequency at its time.
            training: settings of the loss and its negatives.
            schedule: settings of the pass.
            listed: sources of negatives that belong to users.
            item_vectors: `[N, D]` over item positions, taken as they are; None for the tower.
            folded: in place of features and histories, which nothing may hide then; None for them.
            finds_hits: whether a batch of the listwise loss comes with what is no negative of a
                row, which costs a device more than it costs the threads that make batches.
        """
        self._finds_hits = finds_hits and training.loss == "listwise"
        self._folded = folded
        self._needs_item_features = item_vectors is None and not (folded and folded.items)
        self._item_vectors = item_vectors
        self._listed = listed
        self._per_positive = drawn_negatives(training)
        self._correction = applied_correction(training)
        self._state = state
        self._examples = examples
        self._dropout = training.id_dropout
        self._negatives = training.negatives
        self._schedule = schedule
        self._has_history = state.meta.model.history_length > 0
        self._users = ProfileTensors(state.user_profiles, state.user_features.missing(1))
        self._items = ProfileTensors(state.item_profiles, state.item_features.missing(1))
        self._user_rows = torch.from_numpy(state.users.rows)
        self._item_rows = torch.from_numpy(state.items.rows)
        self._corpus = torch.from_numpy(state.corpus)
        self._known = PassPositives(examples, len(state.users), len(state.items))
        self._example_log_probability = torch.from_numpy(example_log_probability)
        self._log_probability = torch.from_numpy(state.frequency.log_probability())

    def make(self, indices: IntArray, generator: torch.Generator) -> Batch:
        """Return the batch of the examples at `indices`."""
        folded, vectors = self._folded, self._item_vectors
        seen = 0 if folded else len(indices)
        users = torch.from_numpy(self._examples.user[indices])
        items = torch.from_numpy(self._examples.item[indices])
        hidden_id, hidden_all = self._hide_users(len(indices), generator)
        uniform = draw_uniform(self._corpus, self._schedule.uniform, generator)
        columns = torch.cat([items, uniform])
        drawn = [self._draw(lists, users, items, generator) for lists in self._listed]
        own_items, places = place_items(drawn, len(columns))
        hidden = torch.rand(len(columns) + len(own_items), generator=generator) < self._dropout.item
        encoded, hidden_item, step_places = _merge(columns, own_items, hidden)
        return Batch(
            user_rows=self._user_rows.index_select(0, users).masked_fill(hidden_id, UNKNOWN_ROW),
            user_features=self._users.pick(users[:seen], hidden_all[:seen]),
            history=None if folded else self._history(indices, hidden_all.numpy()),
            item_rows=self._item_rows.index_select(0, encoded).masked_fill(
                hidden_item, UNKNOWN_ROW
            ),
            item_features=self._items.pick(encoded if self._needs_item_features else encoded[:0]),
            places=step_places,
            columns=self._columns(indices, columns, step_places),
            weight=torch.from_numpy(self._examples.weight[indices]),
            row_negatives=tuple(
                RowNegatives(place, lists.weight)
                for place, lists in zip(places, self._listed, strict=True)
            ),
            item_vectors=vectors if vectors is None else vectors.index_select(0, encoded),
            user_fold=folded and folded.users.take(torch.from_numpy(indices)),
            item_fold=folded and folded.items and folded.items.take(encoded),
        )

    def _draw(
        self, lists: NegativeLists, users: Tensor, items: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return negatives of each row's user, `int64[B, H]`, never the row's own positive."""
        offsets = torch.from_numpy(lists.by_user.offsets)
        drawn = draw_listed(
            torch.from_numpy(lists.by_user.values),
            offsets[users],
            offsets[users + 1] - offsets[users],
            lists.share * self._num_easy(len(users)),
            generator,
        )
        return drawn.masked_fill(drawn == items[:, None], NO_ITEM)

    def _num_easy(self, num_rows: int) -> int:
        """Return the easy negatives of a row of a batch."""
        if self._per_positive is not None:
            return self._per_positive
        return self._schedule.uniform + (num_rows if self._negatives.in_batch else 0)

    def _hide_users(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        hidden_id = torch.rand(size, generator=generator) < self._dropout.user
        hidden_too = torch.rand(size, generator=generator) < self._dropout.profile
        return hidden_id, hidden_id & hidden_too

    def _history(self, indices: IntArray, hidden: npt.NDArray[np.bool_]) -> History | None:
        if not self._has_history:
            return None
        past = self._examples.histories(indices, hidden)
        rows = self._item_rows[torch.from_numpy(past.values)]
        return History(rows, torch.from_numpy(past.offsets[:-1]))

    def _columns(self, indices: IntArray, items: Tensor, places: Tensor) -> Columns:
        in_batch = self._negatives.in_batch
        of_examples = self._example_log_probability[torch.from_numpy(indices)]
        uniform = self._log_probability[items[len(indices) :]]
        log_count = log_expected_count(
            torch.cat([of_examples, uniform]),
            num_in_batch=len(indices) if in_batch else 0,
            num_uniform=self._schedule.uniform,
            num_corpus=len(self._corpus),
            correction=self._correction,
        )
        negatives = items if in_batch else items[len(indices) :]
        known = self._known.among(negatives, indices) if self._negatives.exclude_known else None
        columns = Columns(items, log_count, known)
        if not self._finds_hits:
            return columns
        hits = find_hits(columns, places[: len(items)], len(indices), in_batch=in_batch)
        return Columns(items, log_count, None, hits)


def _merge(columns: Tensor, own_items: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the item tower has to encode: each item of the columns at most twice.

    Every column draws for itself whether its ID is hidden, as if none were encoded together; then
    those of one item that have the same input, ID shown or ID hidden, share one vector.

    Args:
        columns: `int64[C]` item positions, some several times.
        own_items: `int64[n]` item positions of the rows' own negatives.
        hidden: `bool[C + n]`, whether the ID is hidden.

    Returns:
        `int64[V + n]` item positions, `bool[V + n]`, and the place of each of the `C + n` there.
    """
    inputs, places = torch.unique(2 * columns + hidden[: len(columns)], return_inverse=True)
    own_places = torch.arange(len(inputs), len(inputs) + len(own_items))
    return (
        torch.cat([inputs // 2, own_items]),
        torch.cat([inputs % 2 == 1, hidden[len(columns) :]]),
        torch.cat([places, own_places]),
    )
