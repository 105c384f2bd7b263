"""Searching a native index under a mask: candidates, true scores, and never a short answer.

Legend: `M` items in the native index, `n` queries, `D` dimensions, `C` candidates, `K` asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from twotower.index.interface import (
    PADDING,
    BoolArray,
    FloatArray,
    IntArray,
    SearchResult,
    check_ids,
)
from twotower.index.native import NativeEngine, NativeSearch
from twotower.index.rows import VectorRows
from twotower.index.top_k import TopK, best_of

__all__ = ["MaskedSearch"]

_MIN_ALLOWED_SHARE: Final = 0.15
"""Below this share of the items allowed, scanning those is faster than the index, and exact."""
_RERANKED_FLOATS: Final = 4_000_000


class MaskedSearch(NamedTuple):
    """A native index, the vectors it was built from, and which of them an answer may hold."""

    engine: NativeEngine
    native: Any
    rows: VectorRows
    mask: BoolArray
    """`bool[M]`"""
    effort: int

    def search(
        self, queries: FloatArray, k: int, exclude: Sequence[IntArray] | None
    ) -> SearchResult:
        """Return the best `k` allowed rows of each query, as labels."""
        if exclude is None:
            return self._search_shared(queries, k)
        ids = np.full((len(queries), k), PADDING, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, labels in enumerate(exclude):
            answer = self._less(labels)._search_shared(queries[row : row + 1], k)
            ids[row], scores[row] = answer.ids[0], answer.scores[0]
        return SearchResult(ids, scores)

    def _less(self, labels: IntArray) -> MaskedSearch:
        gone = self.rows.known(check_ids(labels))
        if not len(gone):
            return self
        mask = self.mask.copy()
        mask[gone] = False
        return self._replace(mask=mask)

    def _search_shared(self, queries: FloatArray, k: int) -> SearchResult:
        num_allowed = int(np.count_nonzero(self.mask))
        if num_allowed < _MIN_ALLOWED_SHARE * len(self.mask):
            return self._scan(queries, k)
        answer = self._rerank(queries, self._candidates(queries, k, num_allowed), k)
        short = np.count_nonzero(answer.ids >= 0, axis=1) < min(k, num_allowed)
        if short.any():
            answer.ids[short], answer.scores[short] = self._scan(queries[short], k)
        return answer

    def _scan(self, queries: FloatArray, k: int) -> SearchResult:
        return self.rows.take(np.flatnonzero(self.mask)).search(queries, k)

    def _candidates(self, queries: FloatArray, k: int, num_allowed: int) -> IntArray:
        share = num_allowed / len(self.mask)
        how = NativeSearch(
            depth=min(self.engine.candidates * k, len(self.mask)),
            # A mask thins out every list and every neighbourhood alike.
            effort=int(np.ceil(self.effort / share)),
            mask=None if num_allowed == len(self.mask) else self.mask,
        )
        return self.engine.search(self.native, queries, how)

    def _rerank(self, queries: FloatArray, candidates: IntArray, k: int) -> SearchResult:
        """Score candidates `int64[n, C]` (-1 padding) with the float32 vectors; keep the best."""
        # In the order of their rows, so that equal scores come in the order of their labels.
        rows = np.sort(candidates, axis=1)
        scores = np.empty(rows.shape, np.float32)
        block = max(1, _RERANKED_FLOATS // max(1, rows.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            vectors = self.rows.vectors[rows[part]]
            scores[part] = np.einsum("nd,ncd->nc", queries[part], vectors)
        scores[rows < 0] = -np.inf
        best = best_of(TopK(rows, scores), k)
        return SearchResult(self.rows.labels(best.columns), best.scores)
