"""The cheapest search effort that reaches an ANN recall, found by measuring.

Good values differ by a factor of ten between corpora of one size, so none is built in.
Legend: `n` queries, `D` dimensions, `K` asked for.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np

from twotower.errors import DataError
from twotower.index.interface import FloatArray, IntArray, SearchResult, TunableIndex, VectorIndex

__all__ = ["Point", "Tuning", "ann_recall", "measure_point", "num_found", "tune", "tune_filters"]

_TIMED_S: Final = 0.25
_LEAST_TIMED: Final = 5
"""Single queries are timed for a quarter of a second, five at least."""


class Point(NamedTuple):
    """What a search effort brings and costs."""

    effort: int
    ann_recall: float
    p50_us: float
    """Of one query a call, on this machine, one after the other."""
    p99_us: float
    queries_per_s: float
    """Of all queries in one call, with the threads that the engine was given."""


class Tuning(NamedTuple):
    """What was measured, and what was chosen."""

    effort: int
    ann_recall: float
    """Of the chosen effort, on the queries it was chosen with."""
    reached: bool
    """False: even the greatest effort stayed below the target, and that one was set."""
    measured: tuple[Point, ...]
    """Every effort tried, ascending."""


def tune(index: TunableIndex, queries: FloatArray, k: int, target: float) -> Tuning:
    """Set the smallest effort with which `index` finds `target` of what an exact search finds.

    Call it on some 500 real user vectors `float32[n, D]`, before the index serves. More effort
    costs more in every engine, so the smallest that is enough is the cheapest.
    """
    exact = index.search_exactly(queries, k)
    measured: list[Point] = []
    for effort in index.efforts():
        index.effort = effort
        measured.append(measure_point(index, queries, exact, effort))
        if measured[-1].ann_recall >= target:
            break
    best = measured[-1]
    return Tuning(best.effort, best.ann_recall, best.ann_recall >= target, tuple(measured))


def tune_filters(
    index: TunableIndex, queries: FloatArray, k: int, target: float, half: IntArray
) -> float:
    """Set how many times its effort a tuned index makes where there are conditions.

    The smallest number with which it finds `target` of what an exact search finds among `half` of
    the labels; fewer are easier, because the effort grows as they thin out.

    Returns:
        The recall that was reached, below `target` where no effort is enough.
    """
    exact = index.search_exactly(queries, k, half)
    recall, least = 0.0, index.effort
    for effort in (each for each in index.efforts() if each >= least):
        index.filter_factor = effort / least
        recall = ann_recall(index.search(queries, k, allowed=half), exact)
        if recall >= target:
            break
    return recall


def measure_point(
    index: VectorIndex, queries: FloatArray, exact: SearchResult, effort: int
) -> Point:
    """Return recall and cost of an index as it is set; `exact` are the true answers."""
    k = exact.ids.shape[1]
    began = time.perf_counter()
    recall = ann_recall(index.search(queries, k), exact)
    all_s = time.perf_counter() - began
    singles = np.array(_single_times_s(index, queries, k)) * 1e6
    p50, p99 = np.percentile(singles, [50, 99]).tolist()
    return Point(effort, recall, p50, p99, len(queries) / max(all_s, 1e-9))


def _single_times_s(index: VectorIndex, queries: FloatArray, k: int) -> list[float]:
    times: list[float] = []
    for row in range(len(queries)):
        began = time.perf_counter()
        index.search(queries[row : row + 1], k)
        times.append(time.perf_counter() - began)
        if len(times) >= _LEAST_TIMED and sum(times) > _TIMED_S:
            break
    return times


def ann_recall(found: SearchResult, exact: SearchResult) -> float:
    """Return the share of the exact answers that were found, over all queries.

    1 where there was nothing to find. Says how well the index searches, nothing about the model.

    Raises:
        DataError: the two answer different numbers of queries.
    """
    num_right, num_exact = num_found(found, exact)
    return num_right / num_exact if num_exact else 1.0


def num_found(found: SearchResult, exact: SearchResult) -> tuple[int, int]:
    """Return how many of the exact answers were found, and how many there are.

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
    return int(np.count_nonzero(np.isin(wanted, got))), len(wanted)
