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
)
from twotower.index.native import NativeEngine, NativeSearch
from twotower.index.row_mask import RowMask, SharedMask
from twotower.index.rows import VectorRows
from twotower.index.top_k import TopK, best_candidates, top_k

__all__ = ["MaskedSearch"]

_MIN_ALLOWED_SHARE: Final = 0.15
"""From this share of the items allowed on, they are never scanned."""
_FEW_ROWS: Final = 20_000
"""Below that share, so many are always scanned: exact, in some tenths of a millisecond."""
_LOOKS_A_PRODUCT: Final = 2
"""Rows of lists that are looked up in a mask in the time of one inner product with a row."""
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
        return self.shared.hiding(self.rows.named(labels))

    def _masked(self, queries: FloatArray, k: int, mask: RowMask) -> SearchResult:
        num_allowed, num_rows = mask.fewest_allowed, len(mask.shared.allowed)
        if num_allowed < _MIN_ALLOWED_SHARE * num_rows and self._is_scanned(num_allowed, num_rows):
            return self._scan(queries, k, mask)
        depth = min(self._depth(k), num_rows)
        if num_allowed == num_rows:
            how = NativeSearch(depth, self.effort, None)
        else:  # a mask thins out every list and every neighbourhood alike
            how = NativeSearch(depth, round(self.effort * num_rows / num_allowed), mask)
        answer = self._rerank(queries, self.engine.search(self.native, queries, how), k)
        if _has_padding(answer.ids[:, min(k, mask.shared.num_allowed) - 1]):
            short = answer.ids[:, min(k, mask.num_allowed) - 1] < 0
            answer.ids[short], answer.scores[short] = self._scan(queries[short], k, mask)
        return answer

    def _is_scanned(self, num_allowed: int, num_rows: int) -> bool:
        """Return whether scanning the few allowed rows takes less than the index, or is exact.

        Of millions of rows even a tenth is more than lists look at to find as many of them.
        """
        if num_allowed <= _FEW_ROWS:
            return True
        looked_at = self.engine.looked_at(self.native, round(self.effort * num_rows / num_allowed))
        return looked_at is None or looked_at > _LOOKS_A_PRODUCT * num_allowed

    def _scan(self, queries: FloatArray, k: int, mask: RowMask) -> SearchResult:
        rows = mask.allowed_rows()
        if len(queries) != 1:
            return self.rows.search(queries, k, among=rows)
        best = top_k(self.engine.products(self.rows.vectors, queries, rows[None]), k)
        return SearchResult(self.rows.labels(np.append(rows, PADDING)[best.columns]), best.scores)

    def _depth(self, k: int) -> int:
        """Return how many candidates `k` items are chosen from; of few, relatively more."""
        share = self.engine.candidates
        return k if share == 1 else max(math.ceil(share * k), k + _FEWEST_SPARE)

    def _rerank(self, queries: FloatArray, candidates: IntArray, k: int) -> SearchResult:
        """Score candidates `int64[n, C]` (-1 padding) with the float32 vectors; keep the best.

        A single query costs a few calls of numpy and no pass over more than its candidates.
        """
        # In the order of their rows, so that equal scores come in the order of their labels.
        candidates.sort(axis=1)
        scores = self.engine.products(self.rows.vectors, queries, candidates)
        best = best_candidates(TopK(candidates, scores), k)
        return SearchResult(self.rows.labels(best.columns), best.scores)


def _has_padding(column: IntArray) -> bool:
    """Return whether an answer ends before this column of its labels."""
    return bool(column[0] < 0 if len(column) == 1 else np.count_nonzero(column < 0))
