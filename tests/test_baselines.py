"""Each baseline on a world small enough to know its answer, and on a checkerboard."""

from __future__ import annotations

import sys

import msgspec
import numpy as np
import pytest

from twotower.baselines import (
    AlsPopularitySettings,
    AlsSettings,
    Interactions,
    ItemToItemSettings,
    als,
    als_popularity,
    fit_als,
    item_to_item,
    popularity,
    popularity_decayed,
    popularity_previous_day,
)
from twotower.data.user_state import Ragged
from twotower.errors import MissingExtra
from twotower.evaluation import Scorer, UserDays, evaluate

HOUR = 3_600_000
USERS = np.arange(3)
NONE = np.zeros(0, np.int64)


def clicks(users: list[int], items: list[int], hours: list[int]) -> Interactions:
    times = np.array(hours, np.int64) * HOUR
    return Interactions(
        users=np.array(users, np.int64),
        items=np.array(items, np.int64),
        event_time_ms=times,
        day=times // (24 * HOUR),
        history_users=NONE,
        history_items=NONE,
        num_users=3,
        num_items=5,
        next_day=3,
        cut_ms=72 * HOUR,
    )


def ranking(scorer: Scorer, user: int = 0) -> list[int]:
    order: list[int] = np.argsort(-scorer(np.array([user]))[0], kind="stable").tolist()
    return order


def test_before_leaves_the_asked_day_and_later_ones_out() -> None:
    known = clicks([0, 1, 2], [1, 2, 3], [1, 25, 49]).before(1, 24 * HOUR)
    assert (known.items.tolist(), known.next_day, known.cut_ms) == ([1], 1, 24 * HOUR)
    assert len(known.event_time_ms) == len(known.users) == len(known.day) == 1


def test_the_popularity_lists_differ_in_what_they_count() -> None:
    known = clicks([0, 1, 2, 0, 1, 2], [1, 1, 1, 2, 2, 3], [1, 2, 3, 50, 51, 71])
    assert ranking(popularity(known)) == [1, 2, 3, 0, 4]
    assert ranking(popularity_previous_day(known)) == [2, 3, 0, 1, 4]
    assert ranking(popularity_decayed(known, half_life_h=1)) == [3, 2, 1, 0, 4]
    assert ranking(popularity_decayed(known, half_life_h=1e6)) == [1, 2, 3, 0, 4]
    assert popularity(known)(USERS).dtype == np.float32


def test_item_to_item_by_hand() -> None:
    # Items 0 and 1 share users 0 and 1; items 1 and 2 share user 2.
    known = clicks([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 1, 2], [1, 2, 3, 4, 5, 6])
    cosine_01, cosine_12 = 2 / np.sqrt(2 * 3), 1 / np.sqrt(3 * 1)
    scores = item_to_item(known, ItemToItemSettings(shrinkage=0))(USERS)
    assert np.allclose(scores[0], [cosine_01, cosine_01, cosine_12, 0, 0])
    assert np.allclose(scores[2], [cosine_01, cosine_12, cosine_12, 0, 0])
    shrunk = item_to_item(known, ItemToItemSettings(shrinkage=10))(USERS)
    assert shrunk[0, 0] == pytest.approx(2 / (np.sqrt(6) + 10))


def test_item_to_item_counts_a_repeated_pair_once_and_the_history_too() -> None:
    once = clicks([0, 0, 1], [0, 1, 0], [1, 2, 3])
    again = clicks([0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [1, 1, 2, 2, 3])
    assert (item_to_item(once)(USERS) == item_to_item(again)(USERS)).all()
    history = once._replace(history_users=np.array([1]), history_items=np.array([3]))
    assert item_to_item(once)(USERS)[1, 3] == 0
    assert item_to_item(history)(USERS)[0, 3] > 0


def checkerboard() -> tuple[Interactions, UserDays]:
    """Even users like even items, odd ones odd; a tenth is held out as targets."""
    generator = np.random.default_rng(0)
    board = (np.arange(60)[:, None] + np.arange(80)) % 2 == 0
    shown = generator.random(board.shape)
    users, items = np.nonzero(board & (shown < 0.3))
    targets = board & (shown > 0.9)
    asked = np.flatnonzero(targets.any(1))
    offsets = np.append(0, np.cumsum(targets[asked].sum(1)))
    known = Interactions(
        users, items, np.zeros_like(users), np.zeros_like(users), NONE, NONE, 60, 80, 1, HOUR
    )
    seen = [items[users == user] for user in asked]
    excluded = Ragged(np.concatenate(seen), np.append(0, np.cumsum([len(one) for one in seen])))
    return known, UserDays(asked, Ragged(np.nonzero(targets[asked])[1], offsets), excluded)


def test_the_personal_baselines_solve_a_checkerboard_and_popularity_does_not() -> None:
    known, asked = checkerboard()
    settings = AlsSettings(factors=4, num_threads=1)
    num_left = 40 - 12
    personal = [item_to_item(known), als(known, settings)]
    recalls = [
        evaluate(asked, scorer, ks=(num_left,)).means()[f"recall_at_{num_left}"]
        for scorer in [*personal, popularity(known)]
    ]
    assert recalls[0] > 0.9
    assert recalls[1] > 0.9
    assert recalls[2] < 0.6


def test_als_is_repeatable_whatever_the_threads() -> None:
    known, _ = checkerboard()
    first = fit_als(known, AlsSettings(seed=3, num_threads=1))
    again = fit_als(known, AlsSettings(seed=3, num_threads=2))
    other = fit_als(known, AlsSettings(seed=4, num_threads=1))
    assert np.allclose(first.items, again.items)
    assert not np.allclose(first.items, other.items)


def test_every_setting_of_als_is_heeded() -> None:
    known, _ = checkerboard()
    settings = AlsSettings(num_threads=1)
    usual = fit_als(known, settings)
    regular = fit_als(known, msgspec.structs.replace(settings, regularization=1000.0))
    assert np.linalg.norm(regular.items) < 0.8 * np.linalg.norm(usual.items)
    for changed in ({"iterations": 1}, {"alpha": 1.0}):
        other = fit_als(known, msgspec.structs.replace(settings, **changed))
        assert not np.allclose(other.items, usual.items, atol=1e-3)
    assert fit_als(known, AlsSettings(factors=5)).items.shape == (80, 5)


def test_the_history_weight_decides_between_history_and_clicks() -> None:
    known, _ = checkerboard()
    # The history says the opposite: even users like odd items.
    contrary = known._replace(
        history_users=known.users, history_items=np.bitwise_xor(known.items, 1)
    )

    def share_of_own_colour(weight: float) -> float:
        scores = als(contrary, AlsSettings(factors=8, history_weight=weight))(np.array([0]))[0]
        return float((np.argsort(-scores)[:20] % 2 == 0).mean())

    assert share_of_own_colour(0.0) > 0.9
    assert share_of_own_colour(0.05) > share_of_own_colour(20)
    assert share_of_own_colour(20) < 0.4


def test_what_was_only_shown_is_a_weak_positive() -> None:
    known = clicks([0, 1, 1], [0, 0, 1], [1, 2, 3])
    known = known._replace(history_users=np.array([1]), history_items=np.array([1]))
    shown = known._replace(seen_users=np.array([0, 1, 1]), seen_items=np.array([3, 1, 3]))

    def score_of_shown(weight: float) -> float:
        settings = AlsSettings(factors=2, seen_weight=weight, num_threads=1)
        return float(als(shown, settings)(USERS)[0, 3])

    assert score_of_shown(0) == pytest.approx(0, abs=1e-6)
    assert 0.01 < score_of_shown(0.01) < score_of_shown(1)
    without = fit_als(known, AlsSettings(factors=2, num_threads=1))
    unweighted = fit_als(shown, AlsSettings(factors=2, num_threads=1, seen_weight=0))
    assert (without.items == unweighted.items).all()
    item_1_only = known._replace(seen_users=np.array([1]), seen_items=np.array([1]))
    ignored = fit_als(item_1_only, AlsSettings(factors=2, num_threads=1, seen_weight=5))
    assert (ignored.items == without.items).all()


def test_als_popularity_adds_the_log_of_the_decayed_counts() -> None:
    known, _ = checkerboard()
    known = known._replace(history_users=known.users[:50], history_items=known.items[:50])
    settings = AlsPopularitySettings(
        als=AlsSettings(num_threads=1), weight=3, half_life_h=1, smoothing=0.5, history_smoothing=2
    )
    factors = fit_als(known, settings.als)
    users = np.arange(5)
    added = als_popularity(known, settings, factors)(users) - 3 * als(known, factors=factors)(users)
    history = np.bincount(known.history_items, minlength=80) + 1
    # Everything was clicked one half-life before the cut.
    counts = 0.5 * np.bincount(known.items, minlength=80)
    wanted = np.log(counts + 0.5 + 2 * history / history.mean())
    assert np.allclose(added, wanted, atol=1e-4)
    assert np.allclose(
        als_popularity(known, settings)(users),
        als_popularity(known, settings, factors)(users),
        atol=1e-4,
    )


@pytest.mark.parametrize("package", ["implicit.cpu.als", "scipy.sparse"])
def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"twotower\[baselines\]"):
        fit_als(clicks([0], [0], [0]))
