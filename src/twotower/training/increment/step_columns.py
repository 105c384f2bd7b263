"""What the steps of a pass are scored against, for a run of steps at once.

Which columns a step has, how they are weighted and which of them are no negatives of which row
follows from the stream alone, so it is found in front of the steps, where one operation serves many
of them: at mini-batches of 512 that is most of what a step would cost besides its arithmetic.
Legend: `S` steps, `B` examples of each, `U` uniform items, `C = B + U` columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twotower.data.schema import IntArray
from twotower.model.logits import KnownPositives
from twotower.model.negatives import columns_holding

__all__ = ["StepColumns", "columns_of_steps"]


class StepColumns(NamedTuple):
    """The columns of a step; row `i`'s positive is column `i`."""

    items: Tensor
    """`int64[C]` item positions."""
    log_weight: Tensor
    """`[C]`, added to the logits: minus the log of the expected count, and at most 0."""
    weight: Tensor
    """`[C]`, what `exp(score)` counts with: `exp` of that."""
    lowest: float
    """Of the log weights."""
    hits: IntArray
    """`[H]`, places of the step's flat `[B, C]` that hold no negatives, ascending by row."""

    def hits_of(self, rows: range) -> Tensor:
        """Return the places of a flat `[rows, C]` that hold no negatives."""
        width = len(self.items)
        first, last = np.searchsorted(self.hits, (rows.start * width, rows.stop * width))
        return torch.from_numpy(self.hits[first:last] - rows.start * width)


def columns_of_steps(
    items: Tensor, log_count: Tensor, num_rows: int, known: KnownPositives | None
) -> Iterator[StepColumns]:
    """Return the columns of each of a run of steps.

    Args:
        items: `int64[S, C]`, the steps' columns.
        log_count: `[S, C]`, see `log_expected_count`.
        num_rows: `B`.
        known: by rows over all steps, besides their positives; None for none.
    """
    hits, size = _find_hits(items, num_rows, known), num_rows * items.shape[1]
    bounds = np.searchsorted(hits, np.arange(len(items) + 1) * size).tolist()
    log_weight = log_count.amin(1, keepdim=True) - log_count
    weight, lowest = log_weight.exp(), log_weight.amin(1).tolist()
    for number, (first, last) in enumerate(pairwise(bounds)):
        own = hits[first:last] - number * size
        yield StepColumns(items[number], log_weight[number], weight[number], lowest[number], own)


def _find_hits(items: Tensor, num_rows: int, known: KnownPositives | None) -> IntArray:
    """Return places of a flat `[S * B, C]`, ascending by row."""
    steps, width = items.shape
    step = torch.arange(steps)[:, None]
    rows, wanted = torch.arange(steps * num_rows), items[:, :num_rows].flatten()
    own = (step * width + torch.arange(num_rows)).flatten()
    if known is not None:
        rows, wanted = torch.cat([rows, known.rows]), torch.cat([wanted, known.items])
    num_items = int(torch.maximum(items.max(), wanted.max())) + 1
    key = rows // num_rows * num_items + wanted
    found, columns = columns_holding(rows, key, (step * num_items + items).flatten(), own)
    places: IntArray = (found * width + columns % width).numpy()
    return places
