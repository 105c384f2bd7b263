"""An embedding table that learns by row-wise Adagrad, touching only the rows of a step.

Legend: `R` rows, `D` dimension, `n` rows looked up, `u` distinct ones of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["EmbeddingTable", "Lookup"]

_EPSILON = 1e-8


class Lookup:
    """The distinct rows of one step: read by `embed`, later moved along their gradient."""

    def __init__(self, table: EmbeddingTable, rows: Tensor) -> None:
        self._table = table
        if len(rows) >= len(table):
            # Taking every row is cheaper than finding the distinct ones; a row that was not
            # looked up has a gradient of exactly zero, which moves nothing.
            self.rows, self.inverse = torch.arange(len(table)), rows
        else:
            self.rows, self.inverse = torch.unique(rows, return_inverse=True)
        self._values = table.weight[self.rows].requires_grad_()

    def embed(self, start: int = 0, end: int | None = None) -> Tensor:
        """Return the embeddings of `rows[start:end]` as given to the look-up, `[..., D]`."""
        return functional.embedding(self.inverse[start:end], self._values)

    def pool(self, offsets: Tensor, start: int = 0) -> Tensor:
        """Return the mean embedding of each bag, zeros for an empty one: `[B, D]`.

        Args:
            offsets: `[B]`, the start of every bag among the rows from `start` on.
            start: first row, as given to the look-up, that belongs to a bag.
        """
        rows = self.inverse[start:]
        if len(rows) == 0:
            return torch.zeros(len(offsets), self._table.dim)
        return functional.embedding_bag(rows, self._values, offsets, mode="mean")

    def apply_gradient(self, learning_rate: float) -> None:
        """Move the looked-up rows along their gradient; called once, after `backward`."""
        if self._values.grad is not None:
            self._table.descend(self.rows, self._values.grad, learning_rate)


class EmbeddingTable:
    """`R` rows of dimension `D`, each with one float of optimiser state."""

    def __init__(self, weight: Tensor, accumulator: Tensor) -> None:
        self.weight = weight
        self.accumulator = accumulator

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
        self.weight = torch.cat([self.weight, self.weight[sources]])
        self.accumulator = torch.cat([self.accumulator, torch.zeros(len(sources))])

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Keep `rows` only, with their accumulators, in the order given."""
        kept = torch.from_numpy(rows)
        self.weight = self.weight[kept]
        self.accumulator = self.accumulator[kept]

    def lookup(self, rows: Tensor) -> Lookup:
        """Gather `rows` for one step."""
        return Lookup(self, rows)

    def descend(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Take one row-wise Adagrad step on distinct `rows`; no other row changes.

        `a_r += mean(g_r^2)`, then `w_r -= learning_rate * g_r / (sqrt(a_r) + epsilon)`: Adagrad
        (Duchi et al. 2011) with one accumulator a row, as in Naumov et al. 2019 (DLRM).

        Args:
            rows: `[u]`, distinct.
            gradient: `[u, D]`.
            learning_rate: step size.
        """
        accumulator = self.accumulator[rows] + gradient.square().mean(1)
        self.accumulator[rows] = accumulator
        step = learning_rate / (accumulator.sqrt() + _EPSILON)
        self.weight[rows] -= step[:, None] * gradient

    def decay(self, factor: float) -> None:
        """Multiply every accumulator, so that months of warm starts do not stop the learning."""
        self.accumulator *= factor
