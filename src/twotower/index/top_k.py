"""The largest entries of each row of a score matrix, with one answer where scores are equal.

Legend: `n` rows, `N` columns, `K` asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twotower.index.interface import PADDING, FloatArray, IntArray, SearchResult

__all__ = ["TopK", "merge", "top_k"]


class TopK(NamedTuple):
    """Columns `int64[n, K]` and their scores `float32[n, K]`, best first; -1 and -inf padding."""

    columns: IntArray
    scores: FloatArray


def top_k(scores: FloatArray, k: int) -> TopK:
    """Return the `k` best columns of each row of `scores[n, N]`, equal scores by lower column.

    A column whose score is -inf is never returned. `argpartition` alone would choose among equal
    scores at the border by its pivots; so everything from the border score up is collected and
    sorted stably instead.
    """
    num_rows, num_columns = scores.shape
    kept = min(k, num_columns)
    if kept == 0 or num_rows == 0:
        return _padded(num_rows, k)
    rows, columns, values = _from_border_up(scores, kept)
    starts = np.searchsorted(rows, np.arange(num_rows))
    counts = np.diff(starts, append=len(rows))
    place = np.arange(len(rows)) - np.repeat(starts, counts)
    width = max(int(counts.max()), k)
    found = _padded(num_rows, width)
    found.columns[rows, place], found.scores[rows, place] = columns, values
    order = np.argsort(-found.scores, axis=1, kind="stable")[:, :k]
    return TopK(
        np.take_along_axis(found.columns, order, 1), np.take_along_axis(found.scores, order, 1)
    )


def _padded(num_rows: int, width: int) -> TopK:
    return TopK(
        np.full((num_rows, width), PADDING, np.int64),
        np.full((num_rows, width), -np.inf, np.float32),
    )


def _from_border_up(scores: FloatArray, kept: int) -> tuple[IntArray, IntArray, FloatArray]:
    num_columns = scores.shape[1]
    border = np.partition(scores, num_columns - kept, axis=1)[:, num_columns - kept]
    # A -inf border would collect every excluded column only to drop it again.
    border = np.maximum(border, np.finfo(np.float32).min)
    flat = np.flatnonzero(scores >= border[:, None])
    rows, columns = np.divmod(flat, num_columns)
    return rows, columns, scores[rows, columns]


def merge(first: SearchResult, second: SearchResult, k: int) -> SearchResult:
    """Return the best `k` of two answers to the same queries, over disjoint sets of items."""
    ids = np.concatenate([first.ids, second.ids], axis=1)
    scores = np.concatenate([first.scores, second.scores], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return SearchResult(np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1))
