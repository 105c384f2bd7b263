"""The cheapest search effort that reaches an ANN recall, found by measuring.

Good values differ by a factor of ten between corpora of one size, so none is built in.
Legend: `n` queries, `D` dimensions, `K` asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twotower.errors import DataError
from twotower.index.interface import FloatArray, SearchResult, TunableIndex

__all__ = ["Tuning", "ann_recall", "tune"]


class Tuning(NamedTuple):
    """What was measured, and what was chosen."""

    effort: int
    ann_recall: float
    """Of the chosen effort, on the queries it was chosen with."""
    reached: bool
    """False: even the greatest effort stayed below the target, and that one was set."""
    measured: tuple[tuple[int, float], ...]
    """Every effort tried with its ANN recall, ascending."""


def tune(index: TunableIndex, queries: FloatArray, k: int, target: float) -> Tuning:
    """Set the smallest effort with which `index` finds `target` of what an exact search finds.

    Call it on some 500 real user vectors `float32[n, D]`, before the index serves.
    """
    exact = index.search_exactly(queries, k)
    measured: list[tuple[int, float]] = []
    for effort in index.efforts():
        index.effort = effort
        measured.append((effort, ann_recall(index.search(queries, k), exact)))
        if measured[-1][1] >= target:
            break
    effort, recall = measured[-1]
    return Tuning(effort, recall, recall >= target, tuple(measured))


def ann_recall(found: SearchResult, exact: SearchResult) -> float:
    """Return the share of the exact answers that were found, over all queries.

    1 where there was nothing to find. Says how well the index searches, nothing about the model.

    Raises:
        DataError: the two answer different numbers of queries.
    """
    if len(found.ids) != len(exact.ids):
        raise DataError(
            f"expected as many answers as exact ones, found {len(found.ids)} and {len(exact.ids)}"
        )
    stride = 1 + max(int(exact.ids.max(initial=0)), int(found.ids.max(initial=0)))
    base = np.arange(len(exact.ids))[:, None] * stride
    wanted = (exact.ids + base)[exact.ids >= 0]
    got = (found.ids + base)[found.ids >= 0]
    return float(np.isin(wanted, got).mean()) if len(wanted) else 1.0
