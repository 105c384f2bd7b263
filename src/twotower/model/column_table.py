"""What every row of a batch is scored against in `tiled_listwise`: vectors, their weights, hits.

Legend: `B` examples, `C` columns, `V` distinct vectors of the columns, `D` dimension.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from twotower.model.logits import Columns, Hits
from twotower.model.negatives import columns_holding

__all__ = ["MAX_EXPONENT", "ColumnTable", "OwnVectors", "find_hits", "weigh", "weigh_uniform"]

MAX_EXPONENT: Final = 75.0
"""`exp` of it, summed over a batch, and its inverse are normal numbers of float32."""


class OwnVectors(NamedTuple):
    """The rows' positives among the vectors."""

    places: Tensor
    """`int64[B]`."""
    factor: Tensor
    """`[B]`, what makes of that vector's weight the positive's own; a logarithm where shifted."""


class ColumnTable(NamedTuple):
    """The distinct vectors that every row is scored against."""

    transposed: Tensor
    """`[D, V]`."""
    weighted: Tensor
    """`[V, D]`, the vectors times their weights."""
    weight: Tensor
    """`[V]`, of each vector's `exp(score)`; ones where logits are shifted row by row."""
    log_weight: Tensor | None
    """`[V]`, to be added to the logits there; None where no shift is needed."""
    highest: Tensor
    """Scalar, log of the largest weight, by which all were divided."""
    hits: Hits
    """Vectors that are no negatives of a row."""
    own: OwnVectors | None = None
    """None where the rows' positives are not among the vectors."""
    positives: Tensor | None = None
    """`[B]`, their logits then."""


def weigh(
    scaled: Tensor, vectors: Tensor, places: Tensor, columns: Columns, own_log_weight: Tensor
) -> ColumnTable:
    """Return the vectors of a batch that is a source of negatives.

    Args:
        scaled: `[B, D]` user vectors over the temperature.
        vectors: `[V, D]`.
        places: `int64[C]`, each column's vector; row `i`'s positive is column `i`.
        columns: what the columns hold.
        own_log_weight: `[B]`, log weight of the positive alone.
    """
    own = places[: len(scaled)]
    log_weight = _log_sum(-columns.log_count, places, len(vectors))
    highest = log_weight.max()
    log_weight -= highest
    own_log_factor = own_log_weight - highest - log_weight[own]
    bound = scaled.norm(dim=1).max() * vectors.norm(dim=1).max()
    spread = own_log_factor.abs().max() - log_weight.min()
    is_bounded = _can_bound(scaled) and bool(bound + spread <= MAX_EXPONENT)
    hits = columns.hits or find_hits(columns, places, len(scaled), in_batch=True)
    factors = OwnVectors(own, own_log_factor.exp() if is_bounded else own_log_factor)
    return _table(vectors, log_weight, highest, hits, is_bounded)._replace(own=factors)


def weigh_uniform(
    scaled: Tensor, vectors: Tensor, places: Tensor, columns: Columns, positives: Tensor
) -> ColumnTable:
    """Return the vectors of the uniform columns, the only negatives, each by itself.

    Args:
        scaled: see `weigh`.
        vectors: see `weigh`.
        places: see `weigh`; the uniform columns are those behind the first `B`.
        columns: see `weigh`.
        positives: `[B]`, logits of the positives.
    """
    own_vectors = vectors.index_select(0, places[len(scaled) :])
    log_weight = -columns.log_count[len(scaled) :]
    highest = log_weight.max()
    log_weight = log_weight - highest
    bound = scaled.norm(dim=1).max() * own_vectors.norm(dim=1).max() - log_weight.min()
    most = torch.maximum(bound, (positives - highest).abs().max())
    is_bounded = _can_bound(scaled) and bool(most <= MAX_EXPONENT)
    hits = columns.hits or find_hits(columns, places, len(scaled), in_batch=False)
    table = _table(own_vectors, log_weight, highest, hits, is_bounded)
    return table._replace(positives=positives)


def _table(
    vectors: Tensor, log_weight: Tensor, highest: Tensor, hits: Hits, is_bounded: bool
) -> ColumnTable:
    """Return vectors with their weights, as products where bounded, else to be added to logits."""
    weight = log_weight.exp() if is_bounded else torch.ones_like(log_weight)
    weighted, shifts = vectors * weight[:, None], None if is_bounded else log_weight
    return ColumnTable(vectors.T.contiguous(), weighted, weight, shifts, highest, hits)


def find_hits(columns: Columns, places: Tensor, num_rows: int, *, in_batch: bool) -> Hits:
    """Return what is no negative of a row, without a `B x V` mask.

    With the batch as a source: the row's positive under another vector, such as one of a hidden
    ID, and the known positives of its user, as places of vectors. Without: the same, and the row's
    positive wherever it was drawn, as places among the uniform columns.

    Args:
        columns: what the columns hold.
        places: `int64[C]`, see `weigh`.
        num_rows: `B`.
        in_batch: whether the batch is a source of negatives.
    """
    rows, items = _rows_and_items(columns, torch.arange(num_rows, device=places.device))
    if not in_batch:
        nowhere = places.new_full((num_rows,), -1)
        return Hits(*columns_holding(rows, items, columns.items[num_rows:], nowhere))
    item_of_place = columns.items.new_empty(int(places.max()) + 1)
    item_of_place[places] = columns.items
    return Hits(*columns_holding(rows, items, item_of_place, places[:num_rows]))


def _rows_and_items(columns: Columns, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return every row with its positive, and with what its user is known to like."""
    items = columns.items[: len(rows)]
    if columns.known is None:
        return rows, items
    return torch.cat([rows, columns.known.rows]), torch.cat([items, columns.known.items])


def _can_bound(scaled: Tensor) -> bool:
    return scaled.device.type == "cpu"


def _log_sum(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Return the log of the sum of `exp(value)` by place, `[size]`; minus infinity of none."""
    highest = values.new_full((size,), -torch.inf).scatter_reduce_(0, places, values, "amax")
    total = values.new_zeros(size).index_add_(0, places, (values - highest[places]).exp())
    return total.log() + highest
