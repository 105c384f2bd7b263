"""The largest entries of each row of a score matrix, with one answer where scores are equal.

Legend: `n` rows, `N` columns, `K` asked for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from twotower.index.interface import PADDING, FloatArray, IntArray, SearchResult

__all__ = ["TopK", "merge", "top_k"]


_SLAB_COLUMNS: Final = 1024


class TopK(NamedTuple):
    """Columns `int64[n, K]` and their scores `float32[n, K]`, best first; -1 and -inf padding."""

    columns: IntArray
    scores: FloatArray


def top_k(scores: FloatArray, k: int) -> TopK:
    """Return the `k` best columns of each row of `scores[n, N]`, equal scores by lower column.

    A column whose score is -inf is never returned. `argpartition` alone would choose among equal
    scores at the border by its pivots; so what is above the border score is collected, then
    the lowest columns at it, and all is sorted stably.
    """
    num_rows, num_columns = scores.shape
    kept = min(k, num_columns)
    found = _padded(num_rows, k)
    if kept == 0 or num_rows == 0:
        return found
    border = np.partition(scores, num_columns - kept, axis=1)[:, num_columns - kept]
    # A -inf border would collect every excluded column only to drop it again.
    border = np.maximum(border, np.finfo(np.float32).min)[:, None]
    above = np.flatnonzero(scores > border)
    filled = _fill(found, scores, above // num_columns, above % num_columns, None)
    _fill_equal(found, scores, border, kept, filled)
    order = np.argsort(-found.scores, axis=1, kind="stable")
    return TopK(
        np.take_along_axis(found.columns, order, 1), np.take_along_axis(found.scores, order, 1)
    )


def _padded(num_rows: int, width: int) -> TopK:
    return TopK(
        np.full((num_rows, width), PADDING, np.int64),
        np.full((num_rows, width), -np.inf, np.float32),
    )


def _fill(
    found: TopK, scores: FloatArray, rows: IntArray, columns: IntArray, filled: IntArray | None
) -> IntArray:
    """Put entries, grouped by row, behind the `filled[n]` that are there; return the new counts.

    Entries that no longer fit are dropped.
    """
    counts = np.bincount(rows, minlength=len(scores)).astype(np.int64)
    before = np.zeros_like(counts) if filled is None else filled
    shift = before - np.cumsum(counts) + counts
    place = np.arange(len(rows)) + shift[rows]
    fits = place < found.columns.shape[1]
    rows, columns, place = rows[fits], columns[fits], place[fits]
    found.columns[rows, place], found.scores[rows, place] = columns, scores[rows, columns]
    return before + counts


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
