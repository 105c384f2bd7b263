"""One optimisation step, shared by every way a model moves forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from twotower.model.embedding_table import Lookup
from twotower.model.folded_tower import FoldedSides
from twotower.model.lanes import run_in_lanes
from twotower.model.logits import LogitRules, training_logits
from twotower.model.losses import Loss, select_loss
from twotower.model.row_negatives import row_negative_loss, select_row_loss
from twotower.model.tiled_listwise import tiled_listwise
from twotower.model.towers import TwoTower
from twotower.training.batches import (
    Batch,
    applied_correction,
    drawn_negatives,
)
from twotower.training.settings import PassSettings, TrainingSettings

__all__ = ["Stepper", "load_adam", "logit_rules", "save_adam"]

T = TypeVar("T")


class Stepper:
    """Moves a model along the gradient of a batch's loss."""

    def __init__(
        self,
        model: TwoTower,
        adam: torch.optim.Adam | None,
        training: TrainingSettings,
        schedule: PassSettings,
        folded: FoldedSides | None = None,
    ) -> None:
        """Prepare the steps of a pass.

        Args:
            model: what is frozen there stays; everything else moves.
            adam: over the dense parameters; None where they are frozen.
            training: settings of the loss and its negatives.
            schedule: settings of the pass.
            folded: the towers that take the batches' folds, where all but ID embeddings is frozen.
        """
        self._model = model
        # Another device than the CPU takes its work from one thread, in order.
        is_alone = model.device.type != "cpu" or model.has_one_item_table
        self._at_once = _run_in_order if is_alone else run_in_lanes
        self._folded = folded
        self._adam = adam
        self._table_learning_rate = schedule.table_learning_rate
        self._rules = logit_rules(training)
        margin = training.margin / training.temperature
        weight = training.negative_weight
        self._loss: Loss = select_loss(training.loss, margin=margin, negative_weight=weight)
        self._row_loss: Loss = select_row_loss(training.loss, margin=margin, negative_weight=weight)
        self._is_tiled = training.loss == "listwise"

    def step(self, batch: Batch, generator: torch.Generator) -> float:
        """Move what is not frozen, of rows those looked up; return the batch's loss."""
        return self.start(batch, generator).item()

    def start(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Do a step and return its loss, `[]`, without waiting for a device that is at work."""
        sides = self._at_once([partial(self._users, batch), partial(self._items, batch)])
        # The two sides share no parameter but an item table, of which each has its own copy of
        # rows: each goes its way back by itself, too.
        users, items = [
            vectors.detach().requires_grad_(vectors.requires_grad) for vectors, _ in sides
        ]
        loss = self._weighted_loss(users, items, batch, generator)
        loss = loss + self._row_negative_loss(users, items, batch)
        loss.backward()
        if self._adam is not None:
            self._adam.zero_grad()
        gradients = (users.grad, items.grad)
        self._at_once(
            [
                partial(self._move_rows, *side, back)
                for side, back in zip(sides, gradients, strict=True)
            ]
        )
        if self._adam is not None:
            self._adam.step()
        return loss.detach()

    def _move_rows(self, vectors: Tensor, lookups: list[Lookup], gradient: Tensor | None) -> None:
        """Take a side's gradient back through its tower, and move the rows that it looked up."""
        if gradient is None:
            return
        vectors.backward(gradient)
        for lookup in lookups:
            lookup.apply_gradient(self._table_learning_rate)

    def _users(self, batch: Batch) -> tuple[Tensor, list[Lookup]]:
        if self._folded is not None and batch.user_fold is not None:
            ids = self._model.tables["user_id"].lookup(batch.user_rows)
            return self._folded.user_tower.forward(ids.embed(), batch.user_fold), [ids]
        return self._model.encode_users(batch.user_rows, batch.user_features, batch.history)

    def _items(self, batch: Batch) -> tuple[Tensor, list[Lookup]]:
        """Return the item vectors of a batch, those it brings or those of the tower."""
        if batch.item_vectors is not None:
            return batch.item_vectors, []
        if self._folded is not None and self._folded.item_tower and batch.item_fold:
            ids = self._model.tables["item_id"].lookup(batch.item_rows)
            return self._folded.item_tower.forward(ids.embed(), batch.item_fold), [ids]
        return self._model.encode_items(batch.item_rows, batch.item_features)

    def _weighted_loss(
        self, users: Tensor, items: Tensor, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        places = batch.places[: len(batch.columns.items)]
        if self._is_tiled:
            vectors = items[: batch.num_column_vectors]
            return tiled_listwise(users, vectors, places, batch.columns, self._rules, batch.weight)
        scores = users @ items.index_select(0, places).T
        positives, negatives = training_logits(scores, batch.columns, self._rules, generator)
        losses = self._loss(positives, negatives)
        return (losses * batch.weight).sum() / batch.weight.sum()

    def _row_negative_loss(self, users: Tensor, items: Tensor, batch: Batch) -> Tensor:
        """Return the weighted terms of the sources of row negatives, 0 where there is none."""
        total = torch.zeros((), device=users.device)
        if batch.row_negatives:
            items = items.index_select(0, batch.places)
        for source in batch.row_negatives:
            losses = row_negative_loss(
                self._row_loss, users, items, source.places, self._rules.temperature
            )
            total = total + source.weight * (losses * batch.weight).sum() / batch.weight.sum()
        return total


def _run_in_order(parts: Sequence[Callable[[], T]]) -> list[T]:
    return [part() for part in parts]


def logit_rules(training: TrainingSettings) -> LogitRules:
    """Return by which rules scores become the logits of the loss."""
    negatives = training.negatives
    return LogitRules(
        temperature=training.temperature,
        correct_positive=negatives.correct_positive,
        in_batch=negatives.in_batch,
        per_positive=drawn_negatives(training),
        is_corrected=applied_correction(training) != "none",
    )


def load_adam(model: TwoTower, state: dict[str, Tensor], learning_rate: float) -> torch.optim.Adam:
    """Return Adam over the dense parameters, where they are, continuing from `state`.

    On CUDA it is one kernel a step.
    """
    parameters, device = model.dense_parameters(), model.device
    is_fused = device.type == "cuda" or None
    adam = torch.optim.Adam(parameters.values(), lr=learning_rate, fused=is_fused)
    for name, parameter in parameters.items():
        names = {k: f"{name}.{k}" for k in _ADAM_STATE}
        parts = {k: state[n].to(device, copy=True) for k, n in names.items() if n in state}
        if parts:
            adam.state[parameter] = parts
    return adam


def save_adam(model: TwoTower, adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Return the state that `load_adam` continues from, on the CPU."""
    return {
        f"{name}.{k}": adam.state[parameter][k].to("cpu", copy=True)
        for name, parameter in model.dense_parameters().items()
        for k in _ADAM_STATE
        if parameter in adam.state
    }


_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
