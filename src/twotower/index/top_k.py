"""The largest entries of each row of a score matrix, with one answer where scores are equal.

Legend: `n` rows, `N` columns, `K` asked for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from twotower.index.interface import PADDING, BoolArray, FloatArray, IntArray, SearchResult

__all__ = ["TopK", "best_candidates", "best_of", "merge", "padded", "top_k"]

_SLAB_COLUMNS: Final = 1024
_MAX_GROUP: Final = 16
_MAX_NEAR: Final = 4
"""Near columns a place wanted, above which a row is taken to have many equal scores."""


_LOW: Final = 2**29 - 1
_FEW_ROWS: Final = 4


class TopK(NamedTuple):
    """Columns `int64[n, K]` and their scores `float32[n, K]`, best first; -1 and -inf padding."""

    columns: IntArray
    scores: FloatArray


def top_k(scores: FloatArray, k: int) -> TopK:
    """Return the `k` best columns of each row of `scores[n, N]`, equal scores by lower column.

    A column whose score is -inf is never returned. The few columns above a bound that is quickly
    had are sorted stably; `argpartition` would choose among equal scores at the border by its
    pivots.
    """
    num_rows, num_columns = scores.shape
    kept = min(k, num_columns)
    if kept == 0 or num_rows == 0:
        return padded(num_rows, k)
    near = scores >= _lower_bound(scores, kept)
    is_wide = np.count_nonzero(near, axis=1) > _MAX_NEAR * kept
    if not is_wide.any():
        return best_of(_all_of(scores, near), k)
    best = padded(num_rows, k)
    best.columns[is_wide], best.scores[is_wide] = best_of(_down_to_border(scores[is_wide], kept), k)
    rest = _all_of(scores[~is_wide], near[~is_wide])
    best.columns[~is_wide], best.scores[~is_wide] = best_of(rest, k)
    return best


def best_of(found: TopK, k: int) -> TopK:
    """Return the best `k` of each row, padded; equal scores as they come."""
    num_rows, width = found.scores.shape
    order = (-found.scores).argsort(axis=1, kind="stable")[:, :k]
    if num_rows > 1:
        order += np.arange(num_rows)[:, None] * width
    best = TopK(found.columns.take(order), found.scores.take(order))
    if width >= k:
        return best
    filled = padded(num_rows, k)
    filled.columns[:, :width], filled.scores[:, :width] = best
    return filled


def best_candidates(found: TopK, k: int) -> TopK:
    """Do what `best_of` does, where columns ascend in each row; many rows in a fifth of the time.

    They are sorted as numbers that hold score and column: a float32 leaves the lower 29 of the 52
    bits of a float64's fraction empty. Padding and columns that do not fit there are left to
    `best_of`.
    """
    if len(found.columns) < _FEW_ROWS or k > found.columns.shape[1]:
        return best_of(found, k)
    if found.columns[:, 0].min() < 0 or found.columns[:, -1].max() > _LOW:
        return best_of(found, k)
    keys = found.scores.astype(np.float64)
    keys += 0.0  # no negative zero
    bits = keys.view(np.int64)
    bits |= _low_bits(found.columns, bits)
    keys.sort(axis=1)
    best = bits[:, : -k - 1 : -1]
    return TopK(_low_bits(best, best), (best & ~_LOW).view(np.float64).astype(np.float32))


def _low_bits(columns: IntArray, bits: IntArray) -> IntArray:
    """Return columns as low bits of floats, and back: turned round where the float is positive.

    So the lower column makes the larger number, whatever the sign.
    """
    return (columns ^ ~(bits >> 63)) & _LOW


def _lower_bound(scores: FloatArray, kept: int) -> FloatArray:
    """Return a score `[n, 1]` that at least `kept` columns reach, or the least finite one.

    It is the `kept`-th largest maximum of groups of columns: as many columns reach it as groups.
    """
    num_rows, num_columns = scores.shape
    group = max(1, min(_MAX_GROUP, num_columns // (2 * kept)))
    num_groups = num_columns // group
    whole = scores[:, : group * num_groups].reshape(num_rows, group, num_groups)
    best = whole.max(axis=1)
    bound = np.partition(best, num_groups - kept, axis=1)[:, num_groups - kept, None]
    # A bound of -inf would collect every excluded column only to drop it again.
    return np.maximum(bound, np.finfo(np.float32).min)


def _all_of(scores: FloatArray, near: BoolArray) -> TopK:
    flat = np.flatnonzero(near)
    rows, columns = np.divmod(flat, scores.shape[1])
    found = padded(len(scores), int(np.bincount(rows, minlength=1).max()))
    _fill(found, scores, rows, columns, np.zeros(len(scores), np.int64))
    return found


def _down_to_border(scores: FloatArray, kept: int) -> TopK:
    """Return what is above the `kept`-th best score, then the lowest columns that equal it."""
    place = scores.shape[1] - kept
    border = np.partition(scores, place, axis=1)[:, place, None]
    border = np.maximum(border, np.finfo(np.float32).min)
    found = padded(len(scores), kept)
    rows, columns = np.nonzero(scores > border)
    filled = _fill(found, scores, rows, columns, np.zeros(len(scores), np.int64))
    _fill_equal(found, scores, border, kept, filled)
    return found


def padded(num_rows: int, width: int) -> TopK:
    """Return nothing but padding."""
    return TopK(
        np.full((num_rows, width), PADDING, np.int64),
        np.full((num_rows, width), -np.inf, np.float32),
    )


def _fill(
    found: TopK, scores: FloatArray, rows: IntArray, columns: IntArray, filled: IntArray
) -> IntArray:
    """Put entries, grouped by row, behind the `filled[n]` that are there; return the new counts.

    Entries that no longer fit are dropped.
    """
    counts = np.bincount(rows, minlength=len(scores)).astype(np.int64)
    shift = filled - np.cumsum(counts) + counts
    place = np.arange(len(rows)) + shift[rows]
    fits = place < found.columns.shape[1]
    rows, columns, place = rows[fits], columns[fits], place[fits]
    found.columns[rows, place], found.scores[rows, place] = columns, scores[rows, columns]
    return filled + counts


def _fill_equal(
    found: TopK, scores: FloatArray, border: FloatArray, kept: int, filled: IntArray
) -> None:
    """Add the lowest columns whose score is the row's border, until `kept` are filled.

    Left to right a slab of columns at a time: a popularity list has thousands of equal scores, of
    which the first few are enough.
    """
    for start in range(0, scores.shape[1], _SLAB_COLUMNS):
        open_rows = np.flatnonzero(filled < kept)
        if not len(open_rows):
            return
        slab = scores[:, start : start + _SLAB_COLUMNS]
        rows, columns = np.nonzero(slab[open_rows] == border[open_rows])
        filled = _fill(found, scores, open_rows[rows], columns + start, filled)


def merge(first: SearchResult, second: SearchResult, k: int) -> SearchResult:
    """Return the best `k` of two answers to the same queries, over disjoint sets of items."""
    ids = np.concatenate([first.ids, second.ids], axis=1)
    scores = np.concatenate([first.scores, second.scores], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return SearchResult(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))
