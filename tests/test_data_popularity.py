"""Decayed click counts: what a half-life means, and what a cut leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.data.popularity import DecayedCounts
from twotower.errors import DataError

HOUR = 3_600_000


def counted(items: list[int], hours: list[float], cut_h: float) -> DecayedCounts:
    counts = DecayedCounts(12, num_items=4)
    times = (np.array(hours) * HOUR).astype(np.int64)
    counts.advance(np.array(items, np.int64), times, int(cut_h * HOUR))
    return counts


def test_a_half_life_halves_exactly() -> None:
    counts = counted([0, 1, 1, 2], [0, 0, 12, -12], 12 + 1e-6)
    assert counts.at(counts.as_of_ms or 0) == pytest.approx([0.5, 1.5, 0.25, 0], rel=1e-6)
    assert counted([0], [0], 24).counts.tolist() == [0.25, 0, 0, 0]
    assert counted([0], [0], 12).at(24 * HOUR).tolist() == [0.25, 0, 0, 0]


def test_fading_in_two_steps_equals_one() -> None:
    generator = np.random.default_rng(0)
    items = generator.integers(0, 4, 500)
    times = generator.integers(0, 72 * HOUR, 500)
    once, twice = DecayedCounts(12), DecayedCounts(12)
    once.advance(items, times, 72 * HOUR)
    early = times < 31 * HOUR
    twice.advance(items[early], times[early], 31 * HOUR)
    twice.advance(items[~early], times[~early], 72 * HOUR)
    assert np.allclose(once.counts, twice.counts, rtol=1e-12)


def test_a_future_click_is_not_counted() -> None:
    planted = counted([0, 3, 3], [1, 24, 30], 24)
    assert (planted.counts == counted([0], [1], 24).counts).all()
    planted.advance(np.array([3, 3]), np.array([24, 30]) * HOUR, 36 * HOUR)
    assert planted.counts[3] == pytest.approx(0.5 + 0.5**0.5)


def test_a_late_click_is_counted_with_its_true_age() -> None:
    late = counted([], [], 24)
    late.advance(np.array([1]), np.array([12 * HOUR]), 36 * HOUR)
    assert late.counts[1] == 0.25


def test_time_never_runs_back() -> None:
    counts = counted([0], [1], 24)
    with pytest.raises(DataError, match="not before"):
        counts.at(23 * HOUR)
    with pytest.raises(DataError, match="not before"):
        counts.advance(np.array([0]), np.array([0]), 23 * HOUR)
    assert counts.as_of_ms == 24 * HOUR


def test_counts_grow_with_new_items() -> None:
    counts = counted([0], [23], 24)
    counts.advance(np.array([6]), np.array([24 * HOUR]), 36 * HOUR)
    assert len(counts.counts) == 7
    counts.grow(3)
    assert len(counts.counts) == 7
    counts.grow(9)
    assert counts.at(36 * HOUR)[7:].tolist() == [0, 0]


def test_log_popularity_is_the_log_of_the_smoothed_count() -> None:
    counts = counted([0, 0, 1], [0, 0, 0], 12)
    log_popularity = counts.log_popularity(12 * HOUR, 0.5)
    assert log_popularity.dtype == np.float32
    assert log_popularity == pytest.approx(np.log([1.5, 1.0, 0.5, 0.5]))
    with pytest.raises(DataError, match="smoothing"):
        counts.log_popularity(12 * HOUR, 0)


def test_the_state_round_trips() -> None:
    for counts in (counted([0, 1], [0, 5], 24), DecayedCounts(3)):
        again = DecayedCounts.from_arrays(counts.arrays())
        assert (again.counts == counts.counts).all()
        assert (again.as_of_ms, again.half_life_h) == (counts.as_of_ms, counts.half_life_h)
    with pytest.raises(DataError, match="half-life"):
        DecayedCounts(0)
