"""Recall, NDCG, hit rate, reciprocal rank and coverage of rankings, and bootstrap intervals.

Everything stands on `hits`: which place of which ranking holds a target. Numbers come one a case (a
user on a day), so that they can be averaged by segment and resampled by user.
Legend: `n` cases, `K` places of a ranking, `T` targets of all cases together.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.errors import DataError

__all__ = [
    "Interval",
    "bootstrap_interval",
    "coverage",
    "find_hits",
    "hit_rate_at_k",
    "ndcg_at_k",
    "paired_bootstrap",
    "ratio_bootstrap",
    "recall_at_k",
    "reciprocal_rank",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_DRAWS_HELD: Final = 4_000_000


class Interval(NamedTuple):
    """An estimate and the limits within which resampling the clusters leaves it."""

    estimate: float
    low: float
    high: float


def find_hits(ranked: IntArray, target_items: IntArray, target_offsets: IntArray) -> BoolArray:
    """Return which places hold a target of their case, `bool[n, K]`.

    Args:
        ranked: `int64[n, K]`, best first, distinct items in a row; -1 is padding and never a hit.
        target_items: `int64[T]`, the targets of case `i` from `target_offsets[i]` on, distinct.
        target_offsets: `int64[n+1]`.

    Raises:
        DataError: the offsets do not fit the rankings and targets.
    """
    counts = np.diff(target_offsets)
    fits = len(counts) == len(ranked) and int(counts.sum()) == len(target_items)
    if not fits or (counts < 0).any():
        raise DataError(
            f"expected offsets of {len(ranked)} rankings over {len(target_items)} targets, found "
            f"{len(counts)} cases with {int(counts.sum())}"
        )
    case = np.repeat(np.arange(len(ranked)), counts)
    target, place = np.nonzero(ranked[case] == target_items[:, None])
    hits = np.zeros(ranked.shape, np.bool_)
    hits[case[target], place] = target_items[target] >= 0
    return hits


def recall_at_k(hits: BoolArray, num_targets: IntArray, k: int) -> FloatArray:
    """Return the share of each case's targets among its first `k` places, `float64[n]`.

    The divisor is the number of targets, also where that exceeds `k`.
    """
    found: FloatArray = np.count_nonzero(_first(hits, k), axis=1) / _at_least_one(num_targets)
    return found


def ndcg_at_k(hits: BoolArray, num_targets: IntArray, k: int) -> FloatArray:
    """Return the normalised discounted cumulative gain of each case, `float64[n]`.

    A hit at place r (from 1) gains 1 / log2(r + 1); the ideal ranking has all targets first
    (Jaervelin and Kekaelaeinen 2002, with binary relevance).
    """
    first = _first(hits, k)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal: FloatArray = np.cumsum(discounts)[np.minimum(_at_least_one(num_targets), k) - 1]
    return np.divide(first @ discounts, ideal)


def hit_rate_at_k(hits: BoolArray, k: int) -> FloatArray:
    """Return 1 for each case with a target among its first `k` places, else 0, `float64[n]`."""
    return np.asarray(_first(hits, k).any(1), dtype=np.float64)


def reciprocal_rank(hits: BoolArray) -> FloatArray:
    """Return 1 over the place of each case's first hit (from 1), 0 without one, `float64[n]`.

    Its mean is the MRR, cut at `K` places.
    """
    if hits.shape[1] == 0:
        return np.zeros(len(hits))
    return np.asarray(np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0))


def coverage(ranked: IntArray, num_items: int, k: int) -> float:
    """Return the share of `num_items` that stands among anybody's first `k` places."""
    shown = ranked[:, :k]
    is_shown = np.zeros(num_items, np.bool_)
    is_shown[shown[shown >= 0]] = True
    return float(is_shown.mean())


def _first(hits: BoolArray, k: int) -> BoolArray:
    if not 1 <= k <= hits.shape[1]:
        raise DataError(f"expected k from 1 to the {hits.shape[1]} places ranked, found {k}")
    return hits[:, :k]


def _at_least_one(num_targets: IntArray) -> IntArray:
    if len(num_targets) and num_targets.min() < 1:
        raise DataError("expected at least one target a case, found none; leave such cases out")
    return num_targets


def bootstrap_interval(
    values: FloatArray,
    clusters: IntArray,
    seed: int,
    num: int = 1000,
    level: float = 0.95,
    weights: FloatArray | None = None,
) -> Interval:
    """Return the mean of `values[n]` with its percentile interval over resampled clusters.

    Whole clusters (users) are drawn with replacement, so that the cases of one user, which
    resemble each other, do not count as independent evidence.

    Args:
        clusters: `int64[n]`, the cluster of each value.
        weights: `float64[n]`, 1 each by default. For the mean over days of the daily means, one
            over the number of values of that day.
    """
    return ratio_bootstrap(values, np.ones(len(values)), clusters, seed, num, level, weights)


def paired_bootstrap(
    first: FloatArray,
    second: FloatArray,
    clusters: IntArray,
    seed: int,
    num: int = 1000,
    level: float = 0.95,
    weights: FloatArray | None = None,
) -> Interval:
    """Return the mean of `first - second` with its interval; both of the same cases, `[n]`.

    Far narrower than two intervals side by side: what makes a case easy or hard cancels out.
    """
    return bootstrap_interval(first - second, clusters, seed, num, level, weights)


def ratio_bootstrap(
    first: FloatArray,
    second: FloatArray,
    clusters: IntArray,
    seed: int,
    num: int = 1000,
    level: float = 0.95,
    weights: FloatArray | None = None,
) -> Interval:
    """Return mean of `first` over mean of `second` with its interval; of the same cases, `[n]`."""
    if len(first) == 0:
        raise DataError("expected at least one case to resample, found none")
    scale = np.ones(len(first)) if weights is None else weights
    _, cluster = np.unique(clusters, return_inverse=True)
    above = np.bincount(cluster, weights=first * scale).astype(np.float64)
    below = np.bincount(cluster, weights=second * scale).astype(np.float64)
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_HELD // len(above))
    ratios = [
        _resampled_ratios(above, below, min(step, num - start), generator)
        for start in range(0, num, step)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def _resampled_ratios(
    above: FloatArray, below: FloatArray, num: int, generator: np.random.Generator
) -> FloatArray:
    drawn = generator.integers(0, len(above), (num, len(above)))
    ratios: FloatArray = above[drawn].sum(1) / below[drawn].sum(1)
    return ratios
