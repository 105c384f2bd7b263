"""Easy negatives, in-batch and uniform: which items, how often expected, which are no negatives.

Legend: `B` examples of a batch, `U` uniform items, `C = B + U` columns (in-batch ones first),
`N` items of the corpus, `k` negatives a positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "accidental_hits",
    "choose_columns",
    "columns_holding",
    "draw_uniform",
    "log_expected_count",
]


def draw_uniform(corpus: Tensor, num_items: int, generator: torch.Generator) -> Tensor:
    """Return `num_items` items drawn uniformly, with replacement, from `corpus`: `int64[U]`."""
    places = torch.randint(len(corpus), (num_items,), generator=generator)
    return corpus[places]


def accidental_hits(positive_items: Tensor, column_items: Tensor) -> Tensor:
    """Return where a column's item is the row's positive, `bool[B, C]`: those are no negatives.

    Args:
        positive_items: `[B]`.
        column_items: `[C]`.
    """
    return positive_items[:, None] == column_items[None, :]


def columns_holding(
    rows: Tensor, items: Tensor, column_items: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Return every pair of a row and a column that holds one of the row's items, by rows.

    The row's own column is left out, and no `B x C` mask is written.

    Args:
        rows: `int64[E]`, rows of the batch.
        items: `int64[E]`, an item of each of them.
        column_items: `[C]`.
        own: `int64[B]`, the column of each row's positive.

    Returns:
        Rows, ascending, and their columns, `int64[H]` each; a pair may occur more than once.
    """
    in_order, order = torch.sort(column_items, stable=True)
    first = torch.searchsorted(in_order, items)
    counts = torch.searchsorted(in_order, items, right=True) - first
    before = counts.cumsum(0) - counts
    numbers = torch.arange(int(counts.sum()), device=counts.device)
    place = numbers - torch.repeat_interleave(before - first, counts)
    found, columns = torch.repeat_interleave(rows, counts), order[place]
    is_other = columns != own[found]
    by_row = torch.argsort(found[is_other], stable=True)
    return found[is_other][by_row], columns[is_other][by_row]


def log_expected_count(
    log_probability: Tensor,
    *,
    num_in_batch: int,
    num_uniform: int,
    num_corpus: int,
    correction: str,
) -> Tensor:
    """Return the log of each column's expected count, `[.., C]`: what its logit is corrected by.

    An item can come from either source, so under `mixture` every column is corrected by
    `log(B p + U / N)`, whichever source it came from (Yang et al. 2020, mixed negative
    sampling); under `per_source` in-batch columns by `log(B p)` and uniform ones by `log(U / N)`.

    Args:
        log_probability: `[.., C]`, log `p` of each column's item among examples, first those of
            the batch.
        num_in_batch: `B`, 0 when the batch is no source.
        num_uniform: `U`.
        num_corpus: `N`.
        correction: mixture, per_source or none.
    """
    if correction == "none":
        return torch.zeros_like(log_probability)
    uniform = math.log(max(num_uniform, 1e-12) / num_corpus)
    if num_in_batch == 0:  # the columns of the batch hold the positives, and no negatives
        return torch.full_like(log_probability, uniform)
    in_batch = log_probability + math.log(num_in_batch)
    if correction == "mixture":
        return torch.logaddexp(in_batch, torch.full_like(in_batch, uniform))
    counts = in_batch.clone()
    counts[..., counts.shape[-1] - num_uniform :] = uniform
    return counts


def choose_columns(
    num_rows: int, num_columns: int, per_row: int, generator: torch.Generator
) -> Tensor:
    """Return `per_row` columns drawn uniformly for each row, `int64[B, k]`."""
    return torch.randint(num_columns, (num_rows, per_row), generator=generator)
