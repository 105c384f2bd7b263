"""A pass of the stream in which user ID rows alone move, against item vectors that stay.

The same loss, negatives and rows as `Stepper` over `BatchMaker`, to rounding, for the one case that
runs all day: the listwise loss with the batch as a source of negatives. Nothing is recorded for
autograd, nothing is hidden, no column is merged, and what all steps share is looked up once: at
mini-batches of 512 that overhead is most of a step. So is the sharing of it between threads: a pass
takes one.
Legend: `B` examples of a step, `U` uniform items, `C = B + U` columns, `D` vector dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twotower.checkpoint import Checkpoint
from twotower.model.folded_tower import Folded, FoldedTower
from twotower.model.logits import Columns
from twotower.model.negatives import draw_uniform, log_expected_count
from twotower.model.tiled_listwise import listwise_of_constants
from twotower.training.batches import applied_correction
from twotower.training.increment.notes import Noted
from twotower.training.increment.settings import IncrementSettings
from twotower.training.known_positives import PassPositives
from twotower.training.settings import TrainingSettings
from twotower.training.step import logit_rules

__all__ = ["UserRowsPass"]


class UserRowsPass:
    """Over the examples of one portion, in their order."""

    def __init__(
        self,
        state: Checkpoint,
        noted: Noted,
        training: TrainingSettings,
        settings: IncrementSettings,
        items: Tensor,
        tower: FoldedTower,
        folded: Folded,
    ) -> None:
        """Look up what all steps share.

        Args:
            state: of the update.
            noted: the portion.
            training: the loss and its correction.
            settings: how rows move.
            items: `[N, D]` over item positions.
            tower: the user tower.
            folded: what is constant of it, by example.
        """
        examples = noted.examples
        self._table = state.model.tables["user_id"]
        self._rows = torch.from_numpy(state.users.rows[examples.user])
        self._items, self._clicked = items, torch.from_numpy(examples.item)
        self._weight = torch.from_numpy(examples.weight)
        self._in_batch = torch.from_numpy(noted.log_probability)
        self._log_probability = torch.from_numpy(state.frequency.log_probability())
        self._corpus = torch.from_numpy(state.corpus)
        self._known = PassPositives(examples, len(state.users), len(state.items))
        self._tower, self._folded = tower, folded
        self._settings = settings
        self._rules = logit_rules(training)
        self._correction = applied_correction(training)
        self._excludes_known = training.negatives.exclude_known

    @staticmethod
    def serves(training: TrainingSettings) -> bool:
        """Return whether these settings are the case that it is made for."""
        negatives = training.negatives
        return training.loss == "listwise" and negatives.in_batch and negatives.correct_positive

    def step(self, start: int, end: int, generator: torch.Generator) -> float:
        """Take the step of the examples `start` to `end`, on one thread; return its loss."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._step(start, end, generator)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _step(self, start: int, end: int, generator: torch.Generator) -> float:
        for _ in range(2):
            torch.rand(end - start, generator=generator)  # what a batch draws to hide users
        uniform = draw_uniform(self._corpus, self._settings.uniform, generator)
        columns = self._columns(start, end, uniform)
        ids = self._table.lookup(self._rows[start:end])
        first, skip = self._folded
        folded = Folded(first[start:end], None if skip is None else skip[start:end])
        users, back = self._tower.forward_and_back(ids.embed(), folded)
        vectors = self._items.index_select(0, columns.items)
        weight = self._weight[start:end]
        loss, gradient = listwise_of_constants(users, vectors, columns, self._rules, weight)
        ids.apply_embedded(back(gradient), self._settings.learning_rate)
        return loss.item()

    def _columns(self, start: int, end: int, uniform: Tensor) -> Columns:
        items = torch.cat([self._clicked[start:end], uniform])
        log_count = log_expected_count(
            torch.cat([self._in_batch[start:end], self._log_probability[uniform]]),
            num_in_batch=end - start,
            num_uniform=len(uniform),
            num_corpus=len(self._corpus),
            correction=self._correction,
        )
        known = self._known.among(items, np.arange(start, end)) if self._excludes_known else None
        return Columns(items, log_count, known)
