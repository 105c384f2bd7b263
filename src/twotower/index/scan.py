"""Exact search in tiles: the matrix of all scores is never written out.

A tile of queries times a tile of items is small enough to stay in a cache between the product that
makes it and the comparison that reads it. From the second tile of items on, a score is collected
only if it beats the worst of the best so far, which few do: about `K ln(N / K)` of `N` in all.
Legend: `n` queries, `N` items, `D` dimensions, `K` asked for, `b` queries and `w` items of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from twotower.index.interface import FloatArray, IntArray
from twotower.index.top_k import TopK, best_of, padded, top_k

__all__ = ["TILE_QUERIES", "Hidden", "Picked", "scan"]

TILE_QUERIES: Final = 512
_TILE_SCORES: Final = 4_000_000
"""16 MB: a single query is compared with a million items at a time."""
_FEWEST_ITEMS: Final = 8_192
_GATHERED_ROWS: Final = 1_024
_ITEMS_A_RESULT: Final = 16
"""At least so many items a tile for each of `K`: the first tile should set a high bar."""


class Hidden(NamedTuple):
    """Rows that answers may not hold, ascending: some of all queries, some of one query each."""

    of_all: IntArray
    rows: IntArray
    queries: IntArray
    """The query of each of `rows`."""

    @classmethod
    def of(cls, gone: IntArray, each: Sequence[IntArray]) -> Hidden:
        """Return what is hidden: rows `gone` of all queries, and a list of rows for each query."""
        rows = np.concatenate([np.zeros(0, np.int64), *each])
        queries = np.repeat(np.arange(len(each)), [len(some) for some in each])
        order = np.argsort(rows, kind="stable")
        return cls(gone, rows[order], queries[order])

    def cover(self, scores: FloatArray, first_row: int) -> None:
        """Put -inf in the place of what is hidden, in `scores[b, w]` from that row on."""
        end = first_row + scores.shape[1]
        if len(self.of_all):
            start, stop = np.searchsorted(self.of_all, [first_row, end])
            scores[:, self.of_all[start:stop] - first_row] = -np.inf
        if len(self.rows):
            start, stop = np.searchsorted(self.rows, [first_row, end])
            scores[self.queries[start:stop], self.rows[start:stop] - first_row] = -np.inf


class Picked(NamedTuple):
    """Some rows of an array, gathered only as they are multiplied; no copy of them all is made."""

    vectors: FloatArray
    rows: IntArray
    """Ascending."""

    def __len__(self) -> int:
        return len(self.rows)


def scan(vectors: FloatArray | Picked, queries: FloatArray, k: int, hidden: Hidden) -> TopK:
    """Return the best `k` rows of `vectors[N, D]` for each of `queries[n, D]`.

    Equal scores come in the order of their rows. At most `TILE_QUERIES` queries at a time.
    """
    width = max(_FEWEST_ITEMS, _ITEMS_A_RESULT * k, _TILE_SCORES // max(1, len(queries)))
    room = np.empty((len(queries), min(width, len(vectors))), np.float32)
    best: TopK | None = None
    for start in range(0, max(1, len(vectors)), width):
        scores = room[:, : len(vectors) - start]
        _multiply(vectors, start, queries, scores)
        hidden.cover(scores, start)
        best = top_k(scores, k) if best is None else _improved(best, scores, start)
    return padded(len(queries), k) if best is None else best


def _multiply(
    vectors: FloatArray | Picked, start: int, queries: FloatArray, scores: FloatArray
) -> None:
    """Write the products of queries and the rows from `start` on into `scores[b, w]`."""
    stop = start + scores.shape[1]
    if isinstance(vectors, np.ndarray):
        np.matmul(queries, vectors[start:stop].T, out=scores)
        return
    for first in range(start, stop, _GATHERED_ROWS):
        rows = vectors.rows[first : min(stop, first + _GATHERED_ROWS)]
        some = vectors.vectors.take(rows, axis=0)
        np.matmul(queries, some.T, out=scores[:, first - start : first - start + len(rows)])


def _improved(best: TopK, scores: FloatArray, start: int) -> TopK:
    """Return the best of what was found and of `scores[b, w]`, whose rows begin at `start`.

    A score that equals the worst so far loses to it, whose row is lower.
    """
    (num_queries, k), width = best.scores.shape, scores.shape[1]
    near = np.flatnonzero(scores > best.scores[:, -1:])
    if not len(near):
        return best
    queries, columns = np.divmod(near, width)
    ends = np.searchsorted(near, np.arange(num_queries + 1) * width)
    place = k + np.arange(len(near)) - ends[queries]
    together = padded(num_queries, k + int(np.diff(ends).max()))
    together.columns[:, :k], together.scores[:, :k] = best
    together.columns[queries, place] = columns + start
    together.scores[queries, place] = scores[queries, columns]
    return best_of(together, k)
