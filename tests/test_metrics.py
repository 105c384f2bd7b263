"""Metrics against values computed by hand, and the effects that they must show."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.errors import DataError
from twotower.metrics import (
    bootstrap_interval,
    coverage,
    find_hits,
    hit_rate_at_k,
    ndcg_at_k,
    paired_bootstrap,
    ratio_bootstrap,
    recall_at_k,
    reciprocal_rank,
)

RANKED = np.array([[5, 1, 9, 3], [2, 4, -1, -1], [7, 8, 6, 0]])
TARGETS = np.array([1, 3, 8, 4, 0])
OFFSETS = np.array([0, 3, 4, 5])
NUM_TARGETS = np.diff(OFFSETS)
HITS = find_hits(RANKED, TARGETS, OFFSETS)


def test_hits_are_the_targets_of_the_own_case() -> None:
    assert HITS.tolist() == [
        [False, True, False, True],
        [False, True, False, False],
        [False, False, False, True],
    ]


def test_padding_is_never_a_hit() -> None:
    hits = find_hits(np.array([[-1, 2]]), np.array([-1, 2]), np.array([0, 2]))
    assert hits.tolist() == [[False, True]]


def test_recall_by_hand() -> None:
    assert recall_at_k(HITS, NUM_TARGETS, 2).tolist() == [1 / 3, 1, 0]
    assert recall_at_k(HITS, NUM_TARGETS, 4).tolist() == [2 / 3, 1, 1]


def test_recall_divides_by_all_targets_even_beyond_k() -> None:
    hits = find_hits(np.array([[1]]), np.array([1, 2]), np.array([0, 2]))
    assert recall_at_k(hits, np.array([2]), 1).tolist() == [0.5]


def test_ndcg_by_hand() -> None:
    third, half = np.log2(3), np.log2(5)
    ideal = 1 + 1 / third + 1 / 2
    wanted = [(1 / third + 1 / half) / ideal, 1 / third, 1 / half]
    assert np.allclose(ndcg_at_k(HITS, NUM_TARGETS, 4), wanted)
    assert np.allclose(ndcg_at_k(HITS, NUM_TARGETS, 2)[0], (1 / third) / (1 + 1 / third))


def test_a_perfect_ranking_has_ndcg_one_and_a_swapped_one_less() -> None:
    targets, offsets, num = np.array([1, 2]), np.array([0, 2]), np.array([2])
    perfect = find_hits(np.array([[2, 1, 3, 4]]), targets, offsets)
    swapped = find_hits(np.array([[2, 3, 1, 4]]), targets, offsets)
    assert ndcg_at_k(perfect, num, 4)[0] == pytest.approx(1)
    assert 0.5 < ndcg_at_k(swapped, num, 4)[0] < 1
    assert recall_at_k(perfect, num, 4) == recall_at_k(swapped, num, 4)


def test_hit_rate_and_reciprocal_rank_by_hand() -> None:
    assert hit_rate_at_k(HITS, 1).tolist() == [0, 0, 0]
    assert hit_rate_at_k(HITS, 2).tolist() == [1, 1, 0]
    assert reciprocal_rank(HITS).tolist() == [1 / 2, 1 / 2, 1 / 4]
    assert reciprocal_rank(np.zeros((2, 3), np.bool_)).tolist() == [0, 0]


def test_coverage_counts_distinct_items_without_padding() -> None:
    assert coverage(RANKED, 10, 1) == 0.3
    assert coverage(RANKED, 10, 4) == 1.0
    assert coverage(np.array([[1, -1], [1, 2]]), 10, 2) == 0.2


def test_cases_without_targets_and_misfits_are_refused() -> None:
    with pytest.raises(DataError, match="at least one target"):
        recall_at_k(HITS, np.array([1, 0, 1]), 2)
    with pytest.raises(DataError, match="k from 1 to the 4"):
        recall_at_k(HITS, NUM_TARGETS, 5)
    with pytest.raises(DataError, match="offsets"):
        find_hits(RANKED, TARGETS, np.array([0, 3, 5]))


def test_an_interval_holds_its_mean_and_narrows_with_more_cases() -> None:
    values = np.random.default_rng(0).random(4000)
    few = bootstrap_interval(values[:100], np.arange(100), seed=1)
    many = bootstrap_interval(values, np.arange(4000), seed=1)
    assert few.estimate == pytest.approx(values[:100].mean())
    assert few.low < few.estimate < few.high
    assert many.high - many.low < (few.high - few.low) / 4
    # A mean of n uniform values has a standard error of sqrt(1/12/n).
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(12 * 4000), rel=0.15)


def test_repeating_users_widen_the_interval() -> None:
    users = np.repeat(np.arange(100), 10)
    values = np.repeat(np.random.default_rng(0).random(100), 10)
    clustered = bootstrap_interval(values, users, seed=1)
    naive = bootstrap_interval(values, np.arange(1000), seed=1)
    assert clustered.estimate == pytest.approx(naive.estimate)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    generator = np.random.default_rng(0)
    easy = generator.random(1000)
    first, second = easy + 0.02, easy + 0.01 * generator.random(1000)
    paired = paired_bootstrap(first, second, np.arange(1000), seed=1)
    assert paired.estimate == pytest.approx(0.015, abs=1e-3)
    assert 0 < paired.low < paired.estimate < paired.high < 0.02
    single = bootstrap_interval(first, np.arange(1000), seed=1)
    assert single.high - single.low > 10 * (paired.high - paired.low)
    assert paired_bootstrap(second, first, np.arange(1000), seed=1).high < 0


def test_a_ratio_of_means_and_its_interval() -> None:
    generator = np.random.default_rng(0)
    second = generator.random(2000)
    first = 1.1 * second + 0.01 * generator.standard_normal(2000)
    ratio = ratio_bootstrap(first, second, np.arange(2000), seed=1)
    assert ratio.low < 1.1 < ratio.high
    assert ratio.high - ratio.low < 0.01


def test_weights_make_the_mean_of_daily_means() -> None:
    day = np.array([0, 0, 0, 1])
    values = np.array([0.0, 0.3, 0.6, 1.0])
    weights = 1 / np.bincount(day)[day]
    interval = bootstrap_interval(values, np.arange(4), seed=0, weights=weights)
    assert interval.estimate == pytest.approx((0.3 + 1.0) / 2)


def test_one_seed_gives_one_interval() -> None:
    values, users = np.random.default_rng(0).random(300), np.arange(300)
    assert bootstrap_interval(values, users, 1) == bootstrap_interval(values, users, 1)
    assert bootstrap_interval(values, users, 1) != bootstrap_interval(values, users, 2)
    with pytest.raises(DataError):
        bootstrap_interval(values[:0], users[:0], 1)
