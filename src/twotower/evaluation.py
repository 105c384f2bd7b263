"""The temporal protocol: rank all items for every user of a day, knowing only the days before.

A user-day is a user with at least one target: an item with the wanted outcome on that day that the
user was not shown before. Everything shown before is left out of ranking and targets. A day's
figure is the mean over its user-days, a period's the mean over its days. How well an index
searches is another matter and another number: `twotower.index.tuning.ann_recall`.
Legend: `n` user-days, `K` places ranked, `I` items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.user_state import Ragged, take_ragged
from twotower.errors import DataError
from twotower.index.top_k import top_k
from twotower.metrics import (
    Interval,
    bootstrap_interval,
    coverage,
    find_hits,
    hit_rate_at_k,
    ndcg_at_k,
    ratio_bootstrap,
    recall_at_k,
    reciprocal_rank,
)

__all__ = [
    "Evaluation",
    "Scorer",
    "UserDays",
    "compare_over_days",
    "evaluate",
    "interval_over_days",
    "keep_targets",
    "mean_over_days",
    "measure",
    "rank",
    "segments",
    "user_days",
]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

Scorer = Callable[[IntArray], npt.NDArray[np.float32]]
"""User positions `int64[n]` -> scores `float32[n, I]`, an array made for this call."""


class UserDays(NamedTuple):
    """Who is asked about on one day, what was right, and what may not be recommended."""

    users: IntArray
    """`int64[n]`, positions, ascending."""
    targets: Ragged
    """`n` lists of distinct item positions, none empty."""
    excluded: Ragged
    """`n` lists of item positions shown before the day; disjoint from the targets."""


class Evaluation(NamedTuple):
    """The figures of every user-day, by the name of the metric."""

    users: IntArray
    """`int64[n]`"""
    values: Mapping[str, npt.NDArray[np.float64]]
    """`recall_at_20`, `ndcg_at_20`, `hit_rate_at_20`, ..., `mrr`: `float64[n]` each."""
    coverage: Mapping[str, float]
    """`coverage_at_20`, ...: share of all items in anybody's list."""

    def means(self) -> dict[str, float]:
        """Return the mean of every metric over the user-days, and the coverages."""
        return {
            **{name: float(values.mean()) for name, values in self.values.items()},
            **self.coverage,
        }


def user_days(users: IntArray, items: IntArray, is_positive: BoolArray, seen: Ragged) -> UserDays:
    """Return the user-days of one day's impressions.

    Args:
        users: `int64[m]`, positions.
        items: `int64[m]`, positions.
        is_positive: `bool[m]`.
        seen: Per user position, everything shown before the day, unlimited; users beyond its end
            were shown nothing.
    """
    pairs = np.unique(np.stack([users[is_positive], items[is_positive]], axis=1), axis=0)
    known = _lists_of(seen, np.unique(pairs[:, 0]))
    stride = 1 + max(int(pairs[:, 1].max(initial=0)), int(known.values.max(initial=0)))
    shown = np.unique(pairs[:, 0])[known.owners()] * stride + known.values
    pairs = pairs[~np.isin(pairs[:, 0] * stride + pairs[:, 1], shown)]
    asked, counts = np.unique(pairs[:, 0], return_counts=True)
    return UserDays(asked, Ragged(pairs[:, 1], _offsets(counts)), _lists_of(seen, asked))


def _lists_of(lists: Ragged, owners: IntArray) -> Ragged:
    """Return the lists of `owners`, empty for those beyond the end."""
    last = len(lists.offsets) - 1
    start = lists.offsets[np.minimum(owners, last)]
    return take_ragged(lists, start, lists.offsets[np.minimum(owners + 1, last)])


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def evaluate(
    days: UserDays, scorer: Scorer, ks: Sequence[int] = (20, 50, 200), batch: int = 1000
) -> Evaluation:
    """Return the figures of a scorer on one day's user-days; see `rank` and `measure`."""
    ranked, num_items = rank(days, scorer, max(ks), batch)
    return measure(ranked, days, num_items, ks)


def rank(days: UserDays, scorer: Scorer, k: int, batch: int = 1000) -> tuple[IntArray, int]:
    """Return each user-day's best `k` items not shown before, and how many items were scored.

    Equal scores are ranked by the lower position, so that ties cost a model the same every time.

    Returns:
        `int64[n, k]` with -1 padding, and `I`.

    Raises:
        DataError: there is no user-day, or the scorer returned another shape or type, or NaN.
    """
    if not len(days.users):
        raise DataError("expected at least one user-day with a target not seen before, found none")
    ranked = np.full((len(days.users), k), -1, np.int64)
    num_items = 0
    for start in range(0, len(days.users), batch):
        part = slice(start, start + batch)
        scores = _checked(scorer(days.users[part]), len(days.users[part]))
        num_items = scores.shape[1]
        offsets = days.excluded.offsets[start : start + len(scores) + 1]
        rows = np.repeat(np.arange(len(scores)), np.diff(offsets))
        scores[rows, days.excluded.values[offsets[0] : offsets[-1]]] = -np.inf
        ranked[part] = top_k(scores, k).columns
    return ranked, num_items


def _checked(scores: npt.NDArray[np.float32], num_users: int) -> npt.NDArray[np.float32]:
    if scores.ndim != 2 or len(scores) != num_users or scores.dtype != np.float32:
        raise DataError(
            f"expected scores float32[{num_users}, items], found {scores.dtype}"
            f"{list(scores.shape)}; nothing was evaluated"
        )
    if np.isnan(scores).any():
        raise DataError("expected scores without NaN; nothing was evaluated")
    return scores if scores.flags.writeable else scores.copy()


def measure(
    ranked: IntArray, days: UserDays, num_items: int, ks: Sequence[int] = (20, 50, 200)
) -> Evaluation:
    """Return the figures of rankings `int64[n, K]`, `K` at least the largest of `ks`."""
    hits = find_hits(ranked, days.targets.values, days.targets.offsets)
    num_targets = days.targets.lengths()
    values = {"mrr": reciprocal_rank(hits)}
    for k in ks:
        values[f"recall_at_{k}"] = recall_at_k(hits, num_targets, k)
        values[f"ndcg_at_{k}"] = ndcg_at_k(hits, num_targets, k)
        values[f"hit_rate_at_{k}"] = hit_rate_at_k(hits, k)
    shown = {f"coverage_at_{k}": coverage(ranked, num_items, k) for k in ks}
    return Evaluation(days.users, values, shown)


def keep_targets(days: UserDays, is_kept: BoolArray) -> tuple[UserDays, IntArray]:
    """Return the user-days with only the targets of a kind, and the rows that have any left.

    Args:
        days: `n` user-days.
        is_kept: `bool[I]`, by item position.
    """
    owners, kept = days.targets.owners(), is_kept[days.targets.values]
    counts = np.bincount(owners[kept], minlength=len(days.users)).astype(np.int64)
    rows = np.flatnonzero(counts)
    targets = Ragged(days.targets.values[kept], _offsets(counts[rows]))
    excluded = _lists_of(days.excluded, rows)
    return UserDays(days.users[rows], targets, excluded), rows


def segments(
    ranked: IntArray,
    days: UserDays,
    num_known: IntArray,
    is_cold: BoolArray,
    ks: Sequence[int] = (20, 50, 200),
    light_max: int = 20,
) -> dict[str, Evaluation]:
    """Return the figures by kind of user and for cold items; a kind without any is left out.

    Args:
        ranked: `int64[n, K]`, of all user-days.
        days: the same `n` user-days.
        num_known: `int64[n]`, how many positives of each user were known before the day.
        is_cold: `bool[I]`, items without a positive before the day.
        ks: as for `measure`.
        light_max: the most known positives of a light user.
    """
    chosen = {
        "new_users": num_known == 0,
        "light_users": (num_known > 0) & (num_known <= light_max),
        "heavy_users": num_known > light_max,
    }
    parts = {name: (_take(days, np.flatnonzero(rows)), rows) for name, rows in chosen.items()}
    cold, cold_rows = keep_targets(days, is_cold)
    num_items = len(is_cold)
    measured = {
        name: measure(ranked[rows], part, num_items, ks) for name, (part, rows) in parts.items()
    }
    measured["cold_items"] = measure(ranked[cold_rows], cold, num_items, ks)
    return {name: evaluation for name, evaluation in measured.items() if len(evaluation.users)}


def _take(days: UserDays, rows: IntArray) -> UserDays:
    return UserDays(days.users[rows], _lists_of(days.targets, rows), _lists_of(days.excluded, rows))


def mean_over_days(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the mean over days of each day's mean, by metric."""
    means = [evaluation.means() for evaluation in evaluations]
    return {name: float(np.mean([mean[name] for mean in means])) for name in means[0]}


def interval_over_days(evaluations: Sequence[Evaluation], metric: str, seed: int) -> Interval:
    """Return the mean over days of a metric with its interval, users resampled over all days."""
    users, weights = _users_and_weights(evaluations)
    values = np.concatenate([evaluation.values[metric] for evaluation in evaluations])
    return bootstrap_interval(values, users, seed, weights=weights)


def compare_over_days(
    first: Sequence[Evaluation], second: Sequence[Evaluation], metric: str, seed: int
) -> Interval:
    """Return the mean over days of a metric of `first` over that of `second`, paired by user-day.

    Raises:
        DataError: the two were not evaluated on the same user-days.
    """
    users, weights = _users_and_weights(first)
    if not np.array_equal(users, _users_and_weights(second)[0]):
        raise DataError("expected two models evaluated on the same user-days, found different ones")
    ours = np.concatenate([evaluation.values[metric] for evaluation in first])
    theirs = np.concatenate([evaluation.values[metric] for evaluation in second])
    return ratio_bootstrap(ours, theirs, users, seed, weights=weights)


def _users_and_weights(
    evaluations: Sequence[Evaluation],
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    users = np.concatenate([evaluation.users for evaluation in evaluations])
    sizes = np.array([len(evaluation.users) for evaluation in evaluations])
    return users, np.repeat(1 / np.maximum(sizes, 1), sizes)
