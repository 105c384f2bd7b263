"""The listwise loss and both gradients in tiles: the matrix of all logits is never held.

The plain form, `training_logits` followed by `listwise`, writes `B x C` logits out and passes over
them about ten times. Here a tile of rows stays in cache from its scores to its gradients, and three
things that the plain form does to every logit are done to every column instead:

- columns with the same vector, such as those of an item that occurs several times in the batch,
  are one column: `sum_j exp(s - c_j) = exp(s) sum_j exp(-c_j)`. Almost every accidental hit is so a
  row's own column, which counts for the row with its own expected count alone;
- the correction is a weight of the column, `exp(s - c) = exp(s) exp(-c)`, and so part of a product;
- scores are bounded by the lengths of the vectors, so that no row needs its maximum, unless the
  bound leaves the range of float32: then every row is shifted by it as usual. So it is on other
  devices than the CPU, where asking for the bound costs more than the shift.

Where the batch is no source of negatives the uniform columns stand alone, each a vector of its own,
and a row's positive is a term beside them.
The two forms are tested against each other. Legend: `B` examples, `C` columns, `V` distinct vectors
of the columns, `D` dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from twotower.model.column_table import ColumnTable, weigh, weigh_uniform
from twotower.model.lanes import num_lanes, run_in_lanes, split_rows
from twotower.model.logits import Columns, LogitRules

__all__ = ["tiled_listwise"]

_TILE_LOGITS: Final = 2**19
"""Two megabytes of float32, which stay in the cache of a core."""
_DEVICE_TILE_LOGITS: Final = 2**24
"""64 megabytes on another device, for which small tiles are little work each."""
_MIN_TILE_ROWS: Final = 16


def tiled_listwise(
    users: Tensor,
    vectors: Tensor,
    places: Tensor,
    columns: Columns,
    rules: LogitRules,
    weight: Tensor,
) -> Tensor:
    """Return the weighted mean of the listwise loss over the batch, a scalar.

    Args:
        users: `[B, D]` user vectors.
        vectors: `[V, D]` item vectors, each of at least one column.
        places: `int64[C]`, each column's vector; row `i`'s positive is column `i`.
        columns: what the columns hold.
        rules: settings; all negatives must be used.
        weight: `[B]`.
    """
    share = weight / weight.sum()
    loss: Tensor = _TiledListwise.apply(users, vectors, places, columns, rules, share)  # type: ignore[no-untyped-call]
    return loss


class _TiledListwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        vectors: Tensor,
        places: Tensor,
        columns: Columns,
        rules: LogitRules,
        share: Tensor,
    ) -> Tensor:
        """Compute the loss tile by tile and, as the tile is at hand, the gradients asked for."""
        wants_items: bool = ctx.needs_input_grad[1]
        scaled = users / rules.temperature
        own = places[: len(users)]
        own_vectors = vectors[own]
        own_log_weight = scaled.new_zeros(len(scaled))
        if rules.correct_positive:
            own_log_weight = -columns.log_count[: len(scaled)]
        positives = (scaled * own_vectors).sum(1) + own_log_weight
        if rules.in_batch:
            table = weigh(scaled, vectors, places, columns, own_log_weight)
        else:
            table = weigh_uniform(scaled, vectors, places, columns, positives)
        log_total, user_gradient, item_gradient = _run(table, scaled, share, wants_items)
        pull = -share
        if table.positives is not None:
            pull = share * (table.positives - log_total).exp().sub_(1)
        user_gradient.addcmul_(own_vectors, pull[:, None]).div_(rules.temperature)
        if wants_items:
            item_gradient = item_gradient.mul_(table.weight[:, None])
            if not rules.in_batch:
                of_columns, item_gradient = item_gradient, torch.zeros_like(vectors)
                item_gradient.index_add_(0, places[len(users) :], of_columns)
            item_gradient.index_add_(0, own, scaled * pull[:, None])
        ctx.save_for_backward(user_gradient, item_gradient)
        return ((log_total - positives) * share).sum()

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        """Hand out the gradients that `forward` computed."""
        user_gradient, item_gradient = ctx.saved_tensors
        (outer,) = gradients
        of_items = item_gradient * outer if ctx.needs_input_grad[1] else None
        return user_gradient * outer, of_items, None, None, None, None


class _Found(NamedTuple):
    log_total: Tensor
    """`[B]`, log of the sum over the table's vectors and the positive."""
    user_gradient: Tensor
    """`[B, D]`, of that sum alone, times the temperature."""
    item_gradient: Tensor
    """`[V, D]`, of that sum alone, without the vectors' weights; of no width if not wanted."""


def _run(table: ColumnTable, scaled: Tensor, share: Tensor, wants_items: bool) -> _Found:
    log_total, user_gradient = scaled.new_empty(len(scaled)), torch.empty_like(scaled)
    parts: list[Callable[[], Tensor]] = [
        partial(_walk, table, scaled, share, rows, log_total, user_gradient, wants_items)
        for rows in split_rows(len(scaled), num_lanes() if scaled.device.type == "cpu" else 1)
    ]
    first, *others = run_in_lanes(parts)
    return _Found(log_total, user_gradient, sum(others, start=first))


def _walk(
    table: ColumnTable,
    scaled: Tensor,
    share: Tensor,
    rows: range,
    log_total: Tensor,
    user_gradient: Tensor,
    wants_items: bool,
) -> Tensor:
    """Fill the rows' log totals and softmax means; return their `[V, D]` for the items.

    Where item vectors are constants nothing is computed for them, and zeros of no width returned.
    """
    size = _tile_rows(len(table.weight), scaled.device)
    tiles = [slice(n, min(n + size, rows.stop)) for n in range(rows.start, rows.stop, size)]
    hits = _split_hits(table.hits.rows, tiles, is_all=len(tiles) == 1 and len(rows) == len(scaled))
    item_gradient = torch.zeros_like(table.weighted if wants_items else table.weighted[:, :0])
    buffer = scaled.new_empty(min(size, len(rows)), len(table.weight))
    for tile, first, last in zip(tiles, hits, hits[1:], strict=False):
        mass = buffer[: tile.stop - tile.start]
        shift = _fill_mass(mass, table, scaled, tile, slice(first, last))
        total = torch.mv(mass, table.weight)
        if table.positives is not None:
            total += (table.positives[tile] - shift).exp()
        log_total[tile] = total.log() + shift
        torch.mm(mass, table.weighted, out=user_gradient[tile])
        scale = (share[tile] / total)[:, None]
        user_gradient[tile] *= scale
        if wants_items:
            item_gradient.addmm_(mass.T, scaled[tile] * scale)
    return item_gradient


def _tile_rows(width: int, device: torch.device) -> int:
    if device.type != "cpu":
        return max(_MIN_TILE_ROWS, _DEVICE_TILE_LOGITS // width)
    return max(_MIN_TILE_ROWS, _TILE_LOGITS // width)


def _split_hits(hit_rows: Tensor, tiles: list[slice], *, is_all: bool) -> list[int]:
    """Return where the hits of each tile begin, and where those of the last one end."""
    if is_all:
        return [0, len(hit_rows)]
    bounds = torch.tensor([tiles[0].start, *(tile.stop for tile in tiles)], device=hit_rows.device)
    found: list[int] = torch.searchsorted(hit_rows, bounds).tolist()
    return found


def _fill_mass(
    mass: Tensor, table: ColumnTable, scaled: Tensor, tile: slice, hits: slice
) -> Tensor:
    """Write `exp(logit - shift)` of a tile, but for the columns' weights; return the shift."""
    rows = torch.arange(len(mass), device=mass.device)
    hit = (table.hits.rows[hits] - tile.start, table.hits.places[hits])
    torch.mm(scaled[tile], table.transposed, out=mass)
    if table.log_weight is None:
        mass.exp_()
        if table.own is not None:
            mass[rows, table.own.places[tile]] *= table.own.factor[tile]
        mass[hit] = 0.0
        return table.highest
    mass.add_(table.log_weight)
    if table.own is not None:
        mass[rows, table.own.places[tile]] += table.own.factor[tile]
    mass[hit] = -torch.inf
    highest = mass.amax(1)
    if table.positives is not None:
        highest = torch.maximum(highest, table.positives[tile] - table.highest)
    mass.sub_(highest[:, None]).exp_()
    return highest + table.highest
