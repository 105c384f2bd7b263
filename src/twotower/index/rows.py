"""Labelled vectors in ascending order of their labels, and the exact search over them.

Every engine keeps its items this way and never changes such a set in place: a change makes a new
set, so that a search that began with the old one ends with it. Because the order is that of the
labels, the lower column of two equal scores is also the lower label.
Legend: `N` items, `n` queries, `D` dimensions, `K` asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twotower.index.interface import (
    PADDING,
    BoolArray,
    FloatArray,
    IntArray,
    SearchResult,
    check_ids,
)
from twotower.index.scan import TILE_QUERIES, Hidden, Picked, scan

__all__ = ["VectorRows", "empty_rows", "make_rows"]


class VectorRows(NamedTuple):
    """An immutable set of labelled vectors."""

    ids: IntArray
    """`int64[N]`, strictly ascending."""
    vectors: FloatArray
    """`float32[N, D]`, possibly memory-mapped."""

    def find(self, ids: IntArray) -> IntArray:
        """Return the row of each label of 0 or more, -1 where it is unknown."""
        if len(self.ids) == 0:
            return np.full(len(ids), PADDING, np.int64)
        if self._are_rows():
            return np.where(ids < len(self.ids), ids, PADDING)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, place, PADDING)

    def known(self, ids: IntArray) -> IntArray:
        """Return the distinct rows of those labels that are known, ascending."""
        ordered = ids.copy()
        ordered.sort()
        is_again = ordered[1:] == ordered[:-1]
        if np.count_nonzero(is_again):
            ordered = np.delete(ordered, np.flatnonzero(is_again))
        rows = self.find(ordered)  # in order, each is found near the one before
        return rows[rows >= 0] if np.count_nonzero(rows < 0) else rows

    def named(self, ids: IntArray) -> IntArray:
        """Return the rows of those labels that are known, in any order, which may repeat.

        Raises:
            DataError: they are no labels.
        """
        if self._are_labels(ids):
            return ids
        return self.known(check_ids(ids))

    def _are_labels(self, ids: IntArray) -> bool:
        """Return whether labels are rows here, and each of these is one: seen with one look."""
        is_list = isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype == np.int64
        if not is_list or not len(ids) or not len(self.ids) or not self._are_rows():
            return False
        return bool(ids.view(np.uint64).max() < len(self.ids))  # what is below 0 is beyond 2**63

    def take(self, rows: IntArray) -> VectorRows:
        """Return a copy of the set's `rows`, which ascend."""
        return VectorRows(self.ids.take(rows), self.vectors.take(rows, axis=0))

    def without(self, ids: IntArray) -> VectorRows:
        """Return the set less those labels."""
        gone = self.known(ids)
        return self.take(np.delete(np.arange(len(self.ids)), gone)) if len(gone) else self

    def with_items(self, ids: IntArray, vectors: FloatArray) -> VectorRows:
        """Return the set with items added or replaced; of a repeated label the last one wins."""
        distinct, last = _last_of_each(np.concatenate([self.ids, ids]))
        merged = np.empty((len(last), self.vectors.shape[1]), np.float32)
        is_new = last >= len(self.ids)
        merged[is_new] = vectors[last[is_new] - len(self.ids)]
        merged[~is_new] = self.vectors[last[~is_new]]
        return VectorRows(distinct, merged)

    def allowed_rows(self, allowed: BoolArray | IntArray) -> IntArray:
        """Return the rows whose labels are allowed, ascending; see `VectorIndex.search`."""
        wanted = np.asarray(allowed)
        if wanted.dtype != np.bool_:
            return self.known(check_ids(wanted))
        covered = self.ids[: np.searchsorted(self.ids, len(wanted))]
        return np.flatnonzero(wanted[covered])

    def allowed_mask(self, allowed: BoolArray | IntArray) -> BoolArray:
        """Return which rows' labels are allowed, `bool[N]`; see `VectorIndex.search`."""
        wanted: Any = np.asarray(allowed)
        mask = np.zeros(len(self.ids), np.bool_)
        if wanted.dtype == np.bool_ and len(self.ids) and self._are_rows():
            mask[: len(wanted)] = wanted[: len(mask)]
        else:
            mask[self.allowed_rows(wanted)] = True
        return mask

    def search(
        self,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None = None,
        gone: IntArray | None = None,
        among: IntArray | None = None,
    ) -> SearchResult:
        """Return the best `k` rows of each query by scanning all of them, or those of `among`.

        Args:
            queries: `float32[n, D]`.
            k: How many.
            exclude: One array of labels a query.
            gone: Rows that no answer may hold, ascending: cheaper than excluding their labels.
            among: Rows, ascending; with it neither `exclude` nor `gone`.
        """
        if among is not None:
            return self._search_among(queries, k, among)
        of_all = np.zeros(0, np.int64) if gone is None else gone
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), TILE_QUERIES):
            part = slice(start, start + TILE_QUERIES)
            each = [self.known(check_ids(labels)) for labels in (exclude or ())[part]]
            best = scan(self.vectors, queries[part], k, Hidden.of(of_all, each))
            ids[part], scores[part] = self.labels(best.columns), best.scores
        return SearchResult(ids, scores)

    def _search_among(self, queries: FloatArray, k: int, among: IntArray) -> SearchResult:
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        nothing = Hidden.of(np.zeros(0, np.int64), [])
        for start in range(0, len(queries), TILE_QUERIES):
            part = slice(start, start + TILE_QUERIES)
            best = scan(Picked(self.vectors, among), queries[part], k, nothing)
            rows = np.append(among, PADDING)[best.columns]
            ids[part], scores[part] = self.labels(rows), best.scores
        return SearchResult(ids, scores)

    def labels(self, rows: IntArray) -> IntArray:
        """Return the label of each row, leaving -1 as it is; any shape."""
        if len(self.ids) == 0:
            return np.full(rows.shape, PADDING, np.int64)
        return rows if self._are_rows() else np.where(rows < 0, PADDING, self.ids[rows])

    def _are_rows(self) -> bool:
        """Return whether every label is its row: distinct and ascending, they end at the last."""
        return bool(self.ids[-1] == len(self.ids) - 1)


def make_rows(ids: IntArray, vectors: FloatArray) -> VectorRows:
    """Return a set of labelled vectors; of a repeated label the last one wins."""
    distinct, last = _last_of_each(ids)
    return VectorRows(distinct, vectors[last])


def _last_of_each(ids: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct labels, ascending, and where each of them is last."""
    distinct, first = np.unique(ids[::-1], return_index=True)
    return distinct, len(ids) - 1 - first


def empty_rows(dimensions: int) -> VectorRows:
    """Return a set without items."""
    return VectorRows(np.zeros(0, np.int64), np.zeros((0, dimensions), np.float32))
