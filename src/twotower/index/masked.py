"""Searching a native index under a mask: candidates, true scores, and never a short answer.

Legend: `M` items in the native index, `n` queries, `D` dimensions, `C` candidates, `K` asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from twotower.index.interface import (
    PADDING,
    FloatArray,
    IntArray,
    SearchResult,
    check_ids,
)
from twotower.index.native import NativeEngine, NativeSearch
from twotower.index.row_mask import RowMask, SharedMask
from twotower.index.rows import VectorRows
from twotower.index.top_k import TopK, best_candidates

__all__ = ["MaskedSearch"]

_MIN_ALLOWED_SHARE: Final = 0.15
"""Below this share of the items allowed, scanning those is faster than the index, and exact."""
_RERANKED_FLOATS: Final = 150_000
"""Of candidates gathered at a time: what stays in a cache until they are multiplied."""
_FEWEST_SPARE: Final = 16
"""Candidates more than are asked for, where codes propose them."""


class MaskedSearch(NamedTuple):
    """A native index, the vectors it was built from, and which of them an answer may hold."""

    engine: NativeEngine
    native: Any
    rows: VectorRows
    shared: SharedMask
    """Over all `M` rows."""
    effort: int

    def search(
        self, queries: FloatArray, k: int, exclude: Sequence[IntArray] | None
    ) -> SearchResult:
        """Return the best `k` allowed rows of each query, as labels."""
        if exclude is None:
            return self._masked(queries, k, self.shared.hiding_nothing())
        if len(queries) == 1:
            return self._masked(queries, k, self._hiding(exclude[0]))
        ids = np.full((len(queries), k), PADDING, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, labels in enumerate(exclude):
            answer = self._masked(queries[row : row + 1], k, self._hiding(labels))
            ids[row], scores[row] = answer.ids[0], answer.scores[0]
        return SearchResult(ids, scores)

    def _hiding(self, labels: IntArray) -> RowMask:
        return self.shared.hiding(self.rows.known(check_ids(labels)))

    def _masked(self, queries: FloatArray, k: int, mask: RowMask) -> SearchResult:
        num_allowed = mask.num_allowed
        if num_allowed < _MIN_ALLOWED_SHARE * mask.num_rows:
            return self._scan(queries, k, mask)
        answer = self._rerank(queries, self._candidates(queries, k, mask), k)
        # Padding stands at the end of an answer.
        short = answer.ids[:, min(k, num_allowed) - 1] < 0
        if np.count_nonzero(short):
            answer.ids[short], answer.scores[short] = self._scan(queries[short], k, mask)
        return answer

    def _scan(self, queries: FloatArray, k: int, mask: RowMask) -> SearchResult:
        return self.rows.search(queries, k, among=mask.allowed_rows())

    def _candidates(self, queries: FloatArray, k: int, mask: RowMask) -> IntArray:
        num_allowed, num_rows = mask.num_allowed, mask.num_rows
        how = NativeSearch(
            depth=min(self._depth(k), num_rows),
            # A mask thins out every list and every neighbourhood alike.
            effort=round(self.effort * num_rows / num_allowed),
            mask=None if num_allowed == num_rows else mask,
        )
        return self.engine.search(self.native, queries, how)

    def _depth(self, k: int) -> int:
        """Return how many candidates `k` items are chosen from; of few, relatively more."""
        share = self.engine.candidates
        return k if share == 1 else max(math.ceil(share * k), k + _FEWEST_SPARE)

    def _rerank(self, queries: FloatArray, candidates: IntArray, k: int) -> SearchResult:
        """Score candidates `int64[n, C]` (-1 padding) with the float32 vectors; keep the best.

        A single query costs a dozen calls of numpy and no pass over more than its candidates.
        """
        # In the order of their rows, so that equal scores come in the order of their labels.
        rows = candidates
        rows.sort(axis=1)
        scores = np.empty(rows.shape, np.float32)
        block = max(1, _RERANKED_FLOATS // max(1, rows.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            vectors = self.rows.vectors.take(rows[part], axis=0, mode="wrap")
            np.matmul(vectors, queries[part, :, None], out=scores[part, :, None])
        if np.count_nonzero(rows[:, :1] < 0):  # padding, which was scored as the last item
            scores[rows < 0] = -np.inf
        best = best_candidates(TopK(rows, scores), k)
        return SearchResult(self.rows.labels(best.columns), best.scores)
