"""Means of rows over bags, with a gradient that is itself a sum over bags.

PyTorch's own gradient of `embedding_bag` adds a whole gradient row to the table for every row of
every bag, in the order of the table. Transposed, a row of the table is a bag of the means that it
went into, and the forward kernel, which reads once and writes once, does the work: a third of
the time at histories of 80 items.
Legend: `R` rows, `D` dimension, `n` rows looked up, `B` bags.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["mean_bags"]


def mean_bags(values: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Return the mean of each bag's rows of `values`, zeros for an empty one: `[B, D]`.

    Args:
        values: `[R, D]`.
        rows: `int64[n]`, the rows of all bags, one after the other.
        offsets: `int64[B]`, the start of each bag.
    """
    if values.device.type != "cpu":
        return functional.embedding_bag(rows, values, offsets, mode="mean")
    means: Tensor = _MeanBags.apply(values, rows, offsets)  # type: ignore[no-untyped-call]
    return means


class _MeanBags(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
        """Compute the means."""
        ctx.save_for_backward(rows, offsets)
        ctx.num_rows = len(values)
        return functional.embedding_bag(rows, values, offsets, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Give each row the sum over its bags of the bag's gradient over the bag's length."""
        rows, offsets = ctx.saved_tensors
        end = offsets.new_full((1,), len(rows))
        lengths = torch.diff(offsets, append=end)
        share = gradients[0] / lengths.clamp_min(1)[:, None]
        bags = torch.repeat_interleave(torch.arange(len(offsets)), lengths)
        bags_by_row = bags.index_select(0, torch.argsort(rows, stable=True))
        counts = torch.bincount(rows, minlength=ctx.num_rows)
        starts = counts.cumsum(0) - counts
        return functional.embedding_bag(bags_by_row, share, starts, mode="sum"), None, None
