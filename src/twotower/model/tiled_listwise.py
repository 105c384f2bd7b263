"""The listwise loss and both gradients in tiles: the matrix of all logits is never held.

The plain form, `training_logits` followed by `listwise`, writes `B x C` logits out and passes over
them about ten times; here a tile of rows stays in cache from its scores to its gradients. The two
are tested against each other. Legend: `B` examples, `C` columns, `D` dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twotower.model.logits import Columns, LogitRules

__all__ = ["tiled_listwise"]

_TILE_ROWS = 128


def tiled_listwise(
    users: Tensor, items: Tensor, columns: Columns, rules: LogitRules, weight: Tensor
) -> Tensor:
    """Return the weighted mean of the listwise loss over the batch, a scalar.

    Args:
        users: `[B, D]` user vectors.
        items: `[C, D]` item vectors; row `i`'s positive is column `i`.
        columns: what the columns hold.
        rules: settings; the batch must be one of the sources and all negatives used.
        weight: `[B]`.
    """
    share = weight / weight.sum()
    loss: Tensor = _TiledListwise.apply(users, items, columns, rules, share)  # type: ignore[no-untyped-call]
    return loss


class _TiledListwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        columns: Columns,
        rules: LogitRules,
        share: Tensor,
    ) -> Tensor:
        """Compute the loss tile by tile and, as the tile is at hand, both gradients."""
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        losses = torch.empty(len(users))
        hit_rows, hit_columns = _find_hits(columns.items, len(users))
        bounds = torch.searchsorted(hit_rows, torch.arange(0, len(users) + _TILE_ROWS, _TILE_ROWS))
        for tile, start in enumerate(range(0, len(users), _TILE_ROWS)):
            end = min(start + _TILE_ROWS, len(users))
            rows = torch.arange(end - start)
            logits = torch.addmm(
                -columns.log_count, users[start:end], items.T, alpha=1 / rules.temperature
            )
            hits = slice(int(bounds[tile]), int(bounds[tile + 1]))
            logits[hit_rows[hits] - start, hit_columns[hits]] = -torch.inf
            if not rules.correct_positive:
                logits[rows, start + rows] += columns.log_count[start:end]
            positives = logits[rows, start + rows]
            highest = logits.amax(1, keepdim=True)
            mass = logits.sub_(highest).exp_()
            total = mass.sum(1)
            losses[start:end] = total.log() + highest[:, 0] - positives
            scale = share[start:end] / rules.temperature
            gradient = mass.mul_((scale / total)[:, None])
            gradient[rows, start + rows] -= scale
            torch.mm(gradient, items, out=user_gradient[start:end])
            item_gradient.addmm_(gradient.T, users[start:end])
        ctx.save_for_backward(user_gradient, item_gradient)
        return (losses * share).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Hand out the gradients that `forward` computed."""
        user_gradient, item_gradient = ctx.saved_tensors
        (outer,) = gradients
        return user_gradient * outer, item_gradient * outer, None, None, None


def _find_hits(items: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the accidental hits as ascending rows and their columns, without a `B x C` mask.

    Every column but its own that holds the row's positive is one.
    """
    in_order, order = torch.sort(items, stable=True)
    wanted = items[:num_rows]
    first = torch.searchsorted(in_order, wanted)
    counts = torch.searchsorted(in_order, wanted, right=True) - first
    rows = torch.repeat_interleave(torch.arange(num_rows), counts)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    columns = order[first[rows] + place]
    is_other = columns != rows
    return rows[is_other], columns[is_other]
