"""The listwise loss and both gradients in tiles: the matrix of all logits is never held.

The plain form, `training_logits` followed by `listwise`, writes `B x C` logits out and passes over
them about ten times. Here a tile of rows stays in cache from its scores to its gradients, and three
things that the plain form does to every logit are done to every column instead:

- columns with the same vector, such as those of an item that occurs several times in the batch,
  are one column: `sum_j exp(s - c_j) = exp(s) sum_j exp(-c_j)`. Almost every accidental hit is so a
  row's own column, which counts for the row with its own expected count alone;
- the correction is a weight of the column, `exp(s - c) = exp(s) exp(-c)`, and so part of a product;
- scores are bounded by the lengths of the vectors, so that no row needs its maximum, unless the
  bound leaves the range of float32: then every row is shifted by it as usual.

The two forms are tested against each other. Legend: `B` examples, `C` columns, `V` distinct vectors
of the columns, `D` dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from twotower.model.lanes import num_lanes, run_in_lanes
from twotower.model.logits import Columns, LogitRules
from twotower.model.negatives import columns_holding

__all__ = ["tiled_listwise"]

_TILE_LOGITS: Final = 2**19
"""Two megabytes of float32, which stay in the cache of a core."""
_MIN_TILE_ROWS: Final = 16
_MAX_EXPONENT: Final = 75.0
"""`exp` of it, summed over a batch, and its inverse are normal numbers of float32."""


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
        rules: settings; the batch must be one of the sources and all negatives used.
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
        table = _weigh(scaled, vectors, places, columns, rules)
        log_total, user_gradient = torch.empty(len(users)), torch.empty_like(users)
        parts: list[Callable[[], Tensor]] = [
            partial(_walk, table, scaled, share, rows, log_total, user_gradient, wants_items)
            for rows in _split(len(users), num_lanes())
        ]
        first, *others = run_in_lanes(parts)
        item_gradient = sum(others, start=first)
        own_vectors = vectors[own]
        user_gradient.addcmul_(own_vectors, share[:, None], value=-1).div_(rules.temperature)
        if wants_items:
            item_gradient = item_gradient.mul_(table.weight[:, None])
            item_gradient.index_add_(0, own, scaled * -share[:, None])
        ctx.save_for_backward(user_gradient, item_gradient)
        positives = (scaled * own_vectors).sum(1) + table.own_log_weight
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


class _Table(NamedTuple):
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
    own: Tensor
    """`int64[B]`, where each row's positive is."""
    own_log_weight: Tensor
    """`[B]`, log weight of the positive alone."""
    own_factor: Tensor
    """`[B]`, what makes of that vector's weight the positive's own; a logarithm where shifted."""
    hit_rows: Tensor
    """`int64[h]`, ascending: rows with a column that is no negative of theirs; see `_find_hits`."""
    hit_places: Tensor
    """`int64[h]`, that column."""


def _weigh(
    scaled: Tensor, vectors: Tensor, places: Tensor, columns: Columns, rules: LogitRules
) -> _Table:
    own = places[: len(scaled)]
    log_weight = _log_sum(-columns.log_count, places, len(vectors))
    highest = log_weight.max()
    log_weight -= highest
    own_log_weight = torch.zeros(len(scaled))
    if rules.correct_positive:
        own_log_weight = -columns.log_count[: len(scaled)]
    own_log_factor = own_log_weight - highest - log_weight[own]
    bound = scaled.norm(dim=1).max() * vectors.norm(dim=1).max()
    spread = own_log_factor.abs().max() - log_weight.min()
    is_bounded = bool(bound + spread <= _MAX_EXPONENT)
    weight = log_weight.exp() if is_bounded else torch.ones_like(log_weight)
    hit_rows, hit_places = _find_hits(columns, places, len(scaled))
    return _Table(
        vectors.T.contiguous(), vectors * weight[:, None], weight,
        None if is_bounded else log_weight, highest, own, own_log_weight,
        own_log_factor.exp() if is_bounded else own_log_factor, hit_rows, hit_places,
    )  # fmt: skip


def _log_sum(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Return the log of the sum of `exp(value)` by place, `[size]`; minus infinity of none."""
    highest = torch.full((size,), -torch.inf).scatter_reduce_(0, places, values, "amax")
    total = torch.zeros(size).index_add_(0, places, (values - highest[places]).exp())
    return total.log() + highest


def _split(num_rows: int, parts: int) -> list[range]:
    """Return the rows in as many runs, or fewer, as even as can be."""
    size = -(-num_rows // parts)
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _walk(
    table: _Table,
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
    size = max(_MIN_TILE_ROWS, _TILE_LOGITS // len(table.weight))
    tiles = [slice(n, min(n + size, rows.stop)) for n in range(rows.start, rows.stop, size)]
    bounds = torch.tensor([rows.start, *(tile.stop for tile in tiles)])
    hits = torch.searchsorted(table.hit_rows, bounds).tolist()
    item_gradient = torch.zeros_like(table.weighted if wants_items else table.weighted[:, :0])
    buffer = torch.empty(min(size, len(rows)), len(table.weight))
    for tile, first, last in zip(tiles, hits, hits[1:], strict=False):
        mass = buffer[: tile.stop - tile.start]
        shift = _fill_mass(mass, table, scaled, tile, slice(first, last))
        total = torch.mv(mass, table.weight)
        log_total[tile] = total.log() + shift
        torch.mm(mass, table.weighted, out=user_gradient[tile])
        scale = (share[tile] / total)[:, None]
        user_gradient[tile] *= scale
        if wants_items:
            item_gradient.addmm_(mass.T, scaled[tile] * scale)
    return item_gradient


def _fill_mass(mass: Tensor, table: _Table, scaled: Tensor, tile: slice, hits: slice) -> Tensor:
    """Write `exp(logit - shift)` of a tile, but for the columns' weights; return the shift."""
    own = (torch.arange(len(mass)), table.own[tile])
    hit = (table.hit_rows[hits] - tile.start, table.hit_places[hits])
    torch.mm(scaled[tile], table.transposed, out=mass)
    if table.log_weight is None:
        mass.exp_()
        mass[own] *= table.own_factor[tile]
        mass[hit] = 0.0
        return table.highest
    mass.add_(table.log_weight)
    mass[own] += table.own_factor[tile]
    mass[hit] = -torch.inf
    highest = mass.amax(1)
    mass.sub_(highest[:, None]).exp_()
    return highest + table.highest


def _find_hits(columns: Columns, places: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return what is no negative but a row's own vector, as ascending rows and places.

    Without a `B x V` mask: the row's positive under another vector, such as one of a hidden ID, and
    the known positives of its user.
    """
    item_of_place = columns.items.new_empty(int(places.max()) + 1)
    item_of_place[places] = columns.items
    rows, items = torch.arange(num_rows), columns.items[:num_rows]
    if columns.known is not None:
        rows = torch.cat([rows, columns.known.rows])
        items = torch.cat([items, columns.known.items])
    return columns_holding(rows, items, item_of_place, places[:num_rows])
