"""A pass of the stream in which user ID rows alone move, against item vectors that stay.

The same loss, negatives and rows as `Stepper` over `BatchMaker`, to rounding, for the one case that
runs all day: the listwise loss with the batch as a source of negatives. Nothing is recorded for
autograd, nothing is hidden, no column is merged; what follows from the stream alone is found for
many steps at once, and the rows of a step go their whole way, from their embeddings to the
gradients of these, in lanes that meet once.
Legend: `B` examples of a step, `U` uniform items, `C = B + U` columns, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twotower.checkpoint import Checkpoint
from twotower.model.column_table import MAX_EXPONENT
from twotower.model.embedding_table import Lookup
from twotower.model.folded_tower import Folded, FoldedTower
from twotower.model.lanes import MAX_LANES, run_in_lanes, split_rows
from twotower.model.negatives import draw_uniform, log_expected_count
from twotower.training.batches import applied_correction
from twotower.training.increment.notes import Noted
from twotower.training.increment.settings import IncrementSettings
from twotower.training.increment.step_columns import StepColumns, columns_of_steps
from twotower.training.known_positives import PassPositives
from twotower.training.settings import TrainingSettings
from twotower.training.step import logit_rules

__all__ = ["UserRowsPass"]

_STEPS_AT_ONCE: Final = 16
"""Steps whose columns are found together."""


class _Step(NamedTuple):
    """What the rows of a step share."""

    first: int
    """Of its examples."""
    columns: StepColumns
    vectors: Tensor
    """`[C, D]`."""
    weighted: Tensor | None
    """`[C, D]`, times their weights; None where logits are weighted, and shifted row by row."""
    ids: Lookup
    share: Tensor
    """`[B]`, of each row's loss in that of the step."""

    def softmax(self, scaled: Tensor, rows: range) -> tuple[Tensor, Tensor]:
        """Return the log of the rows' sums over the columns, and the mean vector of each."""
        mass, hits = scaled @ self.vectors.T, self.columns.hits_of(rows)
        if self.weighted is not None:
            mass.exp_().view(-1).index_fill_(0, hits, 0.0)
            total = torch.mv(mass, self.columns.weight)
            return total.log(), (mass @ self.weighted).div_(total[:, None])
        mass.add_(self.columns.log_weight).view(-1).index_fill_(0, hits, -torch.inf)
        highest = mass.amax(1)
        total = mass.sub_(highest[:, None]).exp_().sum(1)
        return total.log() + highest, (mass @ self.vectors).div_(total[:, None])


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

    def losses(self, seeded: Callable[[int], torch.Generator]) -> Iterator[float]:
        """Take one step after the other, each when its loss is asked for.

        Args:
            seeded: gives the generator of the step that begins with an example.
        """
        threads, size = torch.get_num_threads(), self._settings.batch_size
        num_whole = len(self._rows) - len(self._rows) % size
        runs = [
            range(start, min(start + _STEPS_AT_ONCE * size, num_whole), size)
            for start in range(0, num_whole, _STEPS_AT_ONCE * size)
        ]
        if num_whole < len(self._rows):
            runs.append(range(num_whole, len(self._rows), len(self._rows) - num_whole))
        torch.set_num_threads(1)
        try:
            for starts in runs:
                columns = self._columns(starts, seeded)
                for start, own in zip(starts, columns, strict=True):
                    yield self._step(range(start, start + starts.step), own, threads)
        finally:
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _columns(
        self, starts: range, seeded: Callable[[int], torch.Generator]
    ) -> Iterator[StepColumns]:
        """Return the columns of the steps that begin at `starts`."""
        shape, examples = (len(starts), starts.step), slice(starts.start, starts.stop)
        uniform = torch.stack([self._draw(starts.step, seeded(start)) for start in starts])
        items = torch.cat([self._clicked[examples].view(shape), uniform], 1)
        log_probability = torch.cat(
            [self._in_batch[examples].view(shape), self._log_probability[uniform]], 1
        )
        log_count = log_expected_count(
            log_probability,
            num_in_batch=starts.step,
            num_uniform=uniform.shape[1],
            num_corpus=len(self._corpus),
            correction=self._correction,
        )
        known = None
        if self._excludes_known:
            known = self._known.among(items, np.arange(starts.start, starts.stop))
        return columns_of_steps(items, log_count, starts.step, known)

    def _draw(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Return a step's uniform items: `int64[U]`."""
        for _ in range(2):
            torch.rand(num_rows, generator=generator)  # what a batch draws to hide users
        return draw_uniform(self._corpus, self._settings.uniform, generator)

    @torch.no_grad()
    def _step(self, examples: range, columns: StepColumns, threads: int) -> float:
        own = slice(examples.start, examples.stop)
        vectors, share = self._items.index_select(0, columns.items), self._weight[own]
        highest = vectors.norm(dim=1).max().item() / self._rules.temperature
        weighted = None
        if highest - columns.lowest <= MAX_EXPONENT:  # which no sum of exponentials exceeds
            weighted = vectors * columns.weight[:, None]
        ids = self._table.lookup(self._rows[own])
        step = _Step(own.start, columns, vectors, weighted, ids, share / share.sum())
        runs = split_rows(len(examples), min(threads, MAX_LANES))
        parts = [partial(self._walk, step, rows) for rows in runs]
        losses, gradients = zip(*run_in_lanes(parts, threads), strict=True)
        ids.apply_embedded(torch.cat(gradients), self._settings.learning_rate)
        return float(sum(losses))

    def _walk(self, step: _Step, rows: range) -> tuple[float, Tensor]:
        """Return what some rows add to the loss, and the gradient of their embeddings."""
        own, share = slice(rows.start, rows.stop), step.share[rows.start : rows.stop]
        folded = self._folded.between(step.first + rows.start, step.first + rows.stop)
        users, back = self._tower.forward_and_back(step.ids.embed(rows.start, rows.stop), folded)
        scaled, vectors = users / self._rules.temperature, step.vectors[own]
        log_total, mean = step.softmax(scaled, rows)
        positives = (scaled * vectors).sum(1) + step.columns.log_weight[own]
        gradient = mean.sub_(vectors).mul_((share / self._rules.temperature)[:, None])
        return ((log_total - positives) * share).sum().item(), back(gradient)
