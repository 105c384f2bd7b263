"""An embedding table that learns by row-wise Adagrad, touching only the rows of a step.

Legend: `R` rows, `D` dimension, `n` rows looked up, `u` distinct ones of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.model.growing_rows import GrowingRows
from twotower.model.mean_bags import mean_bags
from twotower.model.touched_rows import TouchedRows

__all__ = ["EmbeddingTable", "Lookup", "distinct_unsized"]

_EPSILON = 1e-8
_MARK_BELOW = 8
"""Rows of a table, as a multiple of those looked up, up to which marking beats sorting."""


class Lookup:
    """The distinct rows of one step: read by `embed`, later moved along their gradient."""

    def __init__(self, table: EmbeddingTable, rows: Tensor) -> None:
        self._table = table
        if table.is_frozen:
            self.rows, self.inverse, self._values = rows[:0], rows, table.weight
            return
        self.rows, self.inverse = _distinct(rows, len(table))
        self._values = table.weight.index_select(0, self.rows).requires_grad_()

    def embed(self, start: int = 0, end: int | None = None) -> Tensor:
        """Return the embeddings of `rows[start:end]` as given to the look-up, `[..., D]`."""
        # Its gradient adds rows up as they come; that of `embedding` sorts them first.
        return self._values.index_select(0, self.inverse[start:end])

    def pool(self, offsets: Tensor, start: int = 0) -> Tensor:
        """Return the mean embedding of each bag, zeros for an empty one: `[B, D]`.

        Args:
            offsets: `[B]`, the start of every bag among the rows from `start` on.
            start: first row, as given to the look-up, that belongs to a bag.
        """
        rows = self.inverse[start:]
        if len(rows) == 0:
            return self._values.new_zeros(len(offsets), self._table.dim)
        return mean_bags(self._values, rows, offsets)

    def apply_embedded(self, gradient: Tensor, learning_rate: float) -> None:
        """Move the looked-up rows along the gradient of their embeddings, `[n, D]`."""
        total = torch.zeros_like(self._values).index_add_(0, self.inverse, gradient)
        self._table.descend(self.rows, total, learning_rate)

    def apply_gradient(self, learning_rate: float) -> None:
        """Move the looked-up rows along their gradient; called once, after `backward`."""
        if self._values.grad is not None:
            self._table.descend(self.rows, self._values.grad, learning_rate)


def _distinct(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, ascending `[u]`, and the place of each row there: `[n]`.

    Marking a small table is cheaper than sorting; for a large one it would cost its length.
    """
    if rows.device.type != "cpu":
        return distinct_unsized(rows)
    if num_rows > _MARK_BELOW * len(rows):
        distinct, inverse = torch.unique(rows, return_inverse=True)
        return distinct, inverse
    is_looked_up = torch.zeros(num_rows, dtype=torch.bool)
    is_looked_up[rows] = True
    rank = is_looked_up.cumsum(0) - 1
    return is_looked_up.nonzero()[:, 0], rank.index_select(0, rows)


def distinct_unsized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, ascending, filled up to `[n]`, and the place of each: `[n]`.

    How many are distinct is known to the device alone: to ask would be to wait for it. The rest
    repeats the first row, at places that no row has, so it gets a gradient of zero.
    """
    in_order, order = torch.sort(rows)
    is_next = torch.zeros_like(in_order)
    is_next[1:] = in_order[1:] != in_order[:-1]
    place = is_next.cumsum(0)
    distinct = in_order[:1].repeat(len(rows)).scatter_(0, place, in_order)
    return distinct, torch.empty_like(place).scatter_(0, order, place)


class EmbeddingTable:
    """`R` rows of dimension `D`, each with one float of optimiser state."""

    is_frozen = False
    """Whether no row moves."""
    touched: TouchedRows | None = None
    """Which rows may move and did; None where all may and nobody asks."""

    def __init__(self, weight: Tensor, accumulator: Tensor) -> None:
        self._weight = GrowingRows(weight)
        self._accumulator = GrowingRows(accumulator)

    @property
    def weight(self) -> Tensor:
        """`[R, D]`."""
        return self._weight.values

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self._weight = GrowingRows(weight)

    @property
    def accumulator(self) -> Tensor:
        """`[R]`, the sum of the mean squared gradients of each row."""
        return self._accumulator.values

    @accumulator.setter
    def accumulator(self, accumulator: Tensor) -> None:
        self._accumulator = GrowingRows(accumulator)

    @classmethod
    def create(
        cls, num_rows: int, dim: int, *, std: float, generator: torch.Generator
    ) -> EmbeddingTable:
        """Return a table of normally distributed rows with accumulators of zero."""
        weight = torch.randn(num_rows, dim, generator=generator) * std
        return cls(weight, torch.zeros(num_rows))

    @property
    def dim(self) -> int:
        """Dimension of a row."""
        return self.weight.shape[1]

    def __len__(self) -> int:
        return len(self.weight)

    def grow(self, copy_of: npt.NDArray[np.int64]) -> None:
        """Append one row for each entry of `copy_of`, a copy of that row, accumulator zero."""
        sources = torch.from_numpy(copy_of)
        self._weight.append(self.weight[sources])
        self._accumulator.append(torch.zeros(len(sources)))
        if self.touched is not None:
            self.touched.grow(len(sources))

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Keep `rows` only, with their accumulators, in the order given."""
        kept = torch.from_numpy(rows)
        self.weight = self.weight[kept]
        self.accumulator = self.accumulator[kept]

    def lookup(self, rows: Tensor) -> Lookup:
        """Gather `rows` for one step."""
        return Lookup(self, rows)

    def descend(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Take one row-wise Adagrad step on distinct `rows` that may move; no other row changes.

        `a_r += mean(g_r^2)`, then `w_r -= learning_rate * g_r / (sqrt(a_r) + epsilon)`: Adagrad
        (Duchi et al. 2011) with one accumulator a row, as in Naumov et al. 2019 (DLRM).

        Args:
            rows: `[u]`, distinct but for some whose gradient is zero.
            gradient: `[u, D]`.
            learning_rate: step size.
        """
        if self.touched is not None:
            moves = self.touched.may_move(rows)
            if not moves.all():
                rows, gradient = rows[moves], gradient[moves]
            self.touched.note(rows)
        self.accumulator.index_add_(0, rows, gradient.square().mean(1))
        accumulator = self.accumulator.index_select(0, rows)
        step = learning_rate / (accumulator.sqrt() + _EPSILON)
        self.weight.index_add_(0, rows, step[:, None] * gradient, alpha=-1)

    def decay(self, factor: float) -> None:
        """Multiply every accumulator, so that months of warm starts do not stop the learning."""
        self.accumulator *= factor
