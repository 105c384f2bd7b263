"""Effect tests of the streaming frequency estimate."""

import numpy as np
import numpy.typing as npt
import pytest

from twotower.model.frequency import FrequencyEstimator

NUM_ITEMS = 30


def stream(length: int, seed: int = 0) -> npt.NDArray[np.int64]:
    weights = 1 / np.arange(1, NUM_ITEMS + 1)
    drawn = np.random.default_rng(seed).choice(NUM_ITEMS, length, p=weights / weights.sum())
    return drawn.astype(np.int64)


def estimator(learning_rate: float = 0.01) -> FrequencyEstimator:
    made = FrequencyEstimator(learning_rate, floor=1e-6)
    made.grow(NUM_ITEMS)
    return made


def test_it_finds_the_probability_of_each_item() -> None:
    items = stream(200_000)
    made = estimator()
    estimates = made.observe(items)
    true = np.bincount(items, minlength=NUM_ITEMS) / len(items)
    at_end = np.zeros(NUM_ITEMS)
    at_end[items] = estimates  # the last one of each item
    np.testing.assert_allclose(np.exp(at_end), true, rtol=0.5)
    assert np.corrcoef(made.log_probability(), np.log(true))[0, 1] > 0.9


def test_it_does_not_depend_on_how_the_stream_is_cut() -> None:
    items = stream(1000)
    whole, pieces = estimator(), estimator()
    expected = whole.observe(items)
    found = np.concatenate([pieces.observe(part) for part in np.array_split(items, 7)])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pieces.log_probability(), whole.log_probability())


def test_an_estimate_depends_on_nothing_that_comes_later() -> None:
    items = stream(500)
    changed = items.copy()
    changed[300:] = 0
    np.testing.assert_array_equal(
        estimator().observe(items)[:300], estimator().observe(changed)[:300]
    )


def test_it_follows_an_item_that_becomes_popular() -> None:
    made = estimator(learning_rate=0.1)
    made.observe(np.repeat(np.arange(NUM_ITEMS), 20))
    before = made.log_probability()[3]
    made.observe(np.tile([3, 4], 100))
    assert np.exp(made.log_probability()[3]) == pytest.approx(0.5, rel=0.05)
    assert made.log_probability()[3] > before


def test_unseen_items_have_the_floor_and_no_estimate_exceeds_one() -> None:
    made = estimator()
    found = made.observe(np.zeros(50, np.int64))
    assert made.log_probability()[7] == pytest.approx(np.log(1e-6))
    assert found.max() <= 0
    assert made.log_probability()[0] == pytest.approx(0)


def test_a_new_item_is_not_frequent_because_its_first_click_is_early() -> None:
    made = estimator(learning_rate=0.2)
    made.observe(stream(1000))
    made.grow(NUM_ITEMS + 1)
    (first,) = made.observe(np.array([NUM_ITEMS]))
    assert np.exp(first) <= 1 / NUM_ITEMS
    made.observe(np.tile([0, NUM_ITEMS], 40))
    assert np.exp(made.log_probability()[NUM_ITEMS]) == pytest.approx(0.5, rel=0.05)


def test_an_item_that_is_gone_becomes_rare() -> None:
    made = estimator()
    made.observe(np.tile([3, 4], 100))
    made.observe(np.zeros(5000, np.int64))
    assert np.exp(made.log_probability()[3]) == pytest.approx(1 / 5000, rel=0.01)


def test_its_arrays_continue_it() -> None:
    made, items = estimator(), stream(800)
    made.observe(items[:400])
    copy = estimator()
    copy.load_arrays(made.arrays())
    np.testing.assert_array_equal(copy.observe(items[400:]), made.observe(items[400:]))
