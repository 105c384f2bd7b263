"""A tower of which the ID embedding alone can change: all else is multiplied once and kept.

The first layer is linear, so `W x + b = W_id e + (W_rest r + b)`: while tower and features are
frozen the second part is a constant of the input. The linear map beside the perceptron splits
alike.
Legend: `B` inputs, `E` dimension of the ID embedding, `R` of the rest, `H` width of the first
layer, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from twotower.model.tower import Tower

__all__ = ["Folded", "FoldedSides", "FoldedTower"]


_LEAST_LENGTH: Final = 1e-12
"""Of `torch.nn.functional.normalize`."""


class Folded(NamedTuple):
    """What the frozen part of some inputs comes to."""

    first: Tensor
    """`[B, H]`, in front of the first layer's ReLU."""
    skip: Tensor | None
    """`[B, D]`, of the linear map; None without one."""

    def take(self, rows: Tensor) -> Folded:
        """Return those of some inputs."""
        skip = None if self.skip is None else self.skip.index_select(0, rows)
        return Folded(self.first.index_select(0, rows), skip)

    def between(self, start: int, end: int) -> Folded:
        """Return those of a run of inputs."""
        return Folded(self.first[start:end], None if self.skip is None else self.skip[start:end])

    @staticmethod
    def joined(parts: list[Folded]) -> Folded:
        """Return several, at least one, as one."""
        skips = [part.skip for part in parts if part.skip is not None]
        first = torch.cat([part.first for part in parts])
        return Folded(first, torch.cat(skips) if skips else None)


class FoldedTower:
    """The same function as its tower, to rounding, for as long as that is frozen."""

    def __init__(self, tower: Tower, id_dim: int) -> None:
        """Split the layers that see the input, `[.., E + R]`, behind the `id_dim` first columns."""
        first, *self._others = tower.linear_layers()
        self._id_weight = first.weight.detach()[:, :id_dim].T.contiguous()
        self._rest_weight = first.weight.detach()[:, id_dim:].T.contiguous()
        self._bias = first.bias.detach()
        self._id_skip: Tensor | None = None
        self._rest_skip: Tensor | None = None
        if tower.skip is not None:
            self._id_skip = tower.skip.weight.detach()[:, :id_dim].T.contiguous()
            self._rest_skip = tower.skip.weight.detach()[:, id_dim:].T.contiguous()

    def fold(self, rest: Tensor) -> Folded:
        """Multiply the inputs but for the ID embedding, `[B, R]`."""
        first = torch.addmm(self._bias, rest, self._rest_weight)
        return Folded(first, None if self._rest_skip is None else rest @ self._rest_skip)

    def forward(self, ids: Tensor, folded: Folded) -> Tensor:
        """Return unit vectors `[B, D]` of ID embeddings `[B, E]`; the gradient is theirs alone."""
        current = torch.addmm(folded.first, ids, self._id_weight)
        for layer in self._others:
            current = layer(functional.relu(current))
        return functional.normalize(self._skipping(current, ids, folded), dim=1)

    def _skipping(self, current: Tensor, ids: Tensor, folded: Folded) -> Tensor:
        """Add the linear map beside the perceptron, where there is one."""
        if folded.skip is not None and self._id_skip is not None:
            current = current + torch.addmm(folded.skip, ids, self._id_skip)
        return current

    def forward_and_back(
        self, ids: Tensor, folded: Folded
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return what `forward` does, and what takes a gradient of it back to the ID embeddings.

        Nothing is recorded: this is for constants all around, where recording costs more than the
        arithmetic.
        """
        current = torch.addmm(folded.first, ids, self._id_weight)
        passed: list[Tensor] = []
        for layer in self._others:
            active = functional.relu(current)
            passed.append(active)
            current = functional.linear(active, layer.weight, layer.bias)
        current = self._skipping(current, ids, folded)
        length = current.norm(dim=1, keepdim=True).clamp_min(_LEAST_LENGTH)
        vectors = current / length

        def back(gradient: Tensor) -> Tensor:
            along = (gradient * vectors).sum(1, keepdim=True)
            outer = (gradient - along * vectors).div_(length)
            inner: Tensor = outer
            for layer, active in zip(reversed(self._others), reversed(passed), strict=True):
                inner = torch.ops.aten.threshold_backward(inner @ layer.weight, active, 0)
            ids_gradient: Tensor = inner @ self._id_weight.T
            if self._id_skip is not None:
                ids_gradient.addmm_(outer, self._id_skip.T)
            return ids_gradient

        return vectors, back


class FoldedSides(NamedTuple):
    """Both towers where all but ID embeddings is frozen, and what their inputs come to."""

    user_tower: FoldedTower
    users: Folded
    """By example."""
    item_tower: FoldedTower | None
    """None where item vectors are constants."""
    items: Folded | None
    """By position."""
