"""From scores to the logits that enter a loss: temperature, logQ, masks.

Corrected logits are for training only: at serving the score is what it is.
Legend: `B` examples, `C` columns (in-batch ones first), `k` chosen negatives a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twotower.model.negatives import accidental_hits, choose_columns, columns_holding

__all__ = ["Columns", "Hits", "KnownPositives", "LogitRules", "training_logits"]


class KnownPositives(NamedTuple):
    """Items that a row's user is known to like, besides the row's positive."""

    rows: Tensor
    """`int64[E]`, rows of the batch."""
    items: Tensor
    """`int64[E]` item positions."""


class Hits(NamedTuple):
    """Pairs of a row and what is no negative of it; a pair may occur more than once."""

    rows: Tensor
    """`int64[h]`, ascending."""
    places: Tensor
    """`int64[h]`, see `column_table.find_hits`."""


class Columns(NamedTuple):
    """The items that every row of a batch is scored against; row `i`'s positive is column `i`."""

    items: Tensor
    """`int64[C]` item positions."""
    log_count: Tensor
    """`float32[C]`, log of the expected count among the sampled columns."""
    known: KnownPositives | None = None
    """No negatives of their rows either; None for none."""
    hits: Hits | None = None
    """For `tiled_listwise`, found beforehand; None where the loss should find them."""


class LogitRules(NamedTuple):
    """The settings by which scores become logits."""

    temperature: float
    correct_positive: bool
    in_batch: bool
    per_positive: int | None
    """Negatives chosen a row; None for all."""
    is_corrected: bool = True
    """Whether expected counts enter the logits; where not, those of the columns are zero."""


def training_logits(
    scores: Tensor, columns: Columns, rules: LogitRules, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the logits of the positives `[B]` and of the negatives `[B, C]` or `[B, k]`.

    `logit = score / temperature - log expected count`, the correction of Yi et al. 2019
    (equation 3). A column that holds the row's own positive, or another known one of its user, is
    minus infinity.

    Args:
        scores: `[B, C]` cosines.
        columns: what the columns hold.
        rules: settings.
        generator: chooses the negatives when not all are used.
    """
    num_rows, num_columns = scores.shape
    plain = scores / rules.temperature
    logits = plain - columns.log_count
    positives = (logits if rules.correct_positive else plain).diagonal()
    hits = accidental_hits(columns.items[:num_rows], columns.items)
    if columns.known is not None:
        own = torch.arange(num_rows, device=scores.device)
        hits[columns_holding(*columns.known, columns.items, own)] = True
    negatives = logits.masked_fill(hits, -torch.inf)
    first = 0 if rules.in_batch else num_rows
    negatives = negatives[:, first:]
    if rules.per_positive is None:
        return positives, negatives
    width = num_columns - first
    chosen = choose_columns(num_rows, width, rules.per_positive, generator).to(scores.device)
    # Only k of the columns are drawn, so every expected count shrinks by k / width.
    shrink = math.log(rules.per_positive / width) if rules.is_corrected else 0.0
    if rules.correct_positive:
        positives = positives - shrink
    return positives, negatives.gather(1, chosen) - shrink
