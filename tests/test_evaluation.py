"""The temporal protocol on a small world, and a checkerboard whose answers are known."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from twotower.data.user_state import Ragged
from twotower.errors import DataError
from twotower.evaluation import (
    Evaluation,
    UserDays,
    compare_over_days,
    evaluate,
    interval_over_days,
    keep_targets,
    mean_over_days,
    rank,
    segments,
    user_days,
)

IntArray = npt.NDArray[np.int64]


def ragged(*lists: list[int]) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Ragged(np.array(list(chain(*lists)), np.int64), offsets)


def as_lists(lists: Ragged) -> list[list[int]]:
    return [lists.list_at(index).tolist() for index in range(len(lists.offsets) - 1)]


SEEN = ragged([3, 4], [], [0, 1, 2])


def days() -> UserDays:
    users = np.array([2, 0, 0, 0, 2, 1, 7])
    items = np.array([2, 5, 5, 3, 5, 1, 4])
    clicked = np.array([1, 1, 1, 1, 1, 0, 1], np.bool_)
    return user_days(users, items, clicked, SEEN)


def descending(users: IntArray) -> npt.NDArray[np.float32]:
    return np.tile(-np.arange(6, dtype=np.float32), (len(users), 1))


def test_targets_are_new_distinct_clicks_and_users_without_any_are_left_out() -> None:
    assert days().users.tolist() == [0, 2, 7]
    assert as_lists(days().targets) == [[5], [5], [4]]
    assert as_lists(days().excluded) == [[3, 4], [0, 1, 2], []]


def test_an_impression_without_a_click_is_no_target() -> None:
    nothing = user_days(np.array([1]), np.array([1]), np.array([False]), SEEN)
    assert len(nothing.users) == 0
    with pytest.raises(DataError, match="at least one user-day"):
        evaluate(nothing, descending)


def test_what_was_shown_before_is_left_out_of_the_ranking() -> None:
    ranked, num_items = rank(days(), descending, 6)
    assert num_items == 6
    assert ranked.tolist() == [[0, 1, 2, 5, -1, -1], [3, 4, 5, -1, -1, -1], [0, 1, 2, 3, 4, 5]]


def test_figures_by_hand() -> None:
    evaluation = evaluate(days(), descending, ks=(3, 5))
    assert evaluation.values["recall_at_3"].tolist() == [0, 1, 0]
    assert evaluation.values["recall_at_5"].tolist() == [1, 1, 1]
    assert evaluation.values["mrr"].tolist() == [1 / 4, 1 / 3, 1 / 5]
    assert np.allclose(evaluation.values["ndcg_at_5"], 1 / np.log2([5, 4, 6]))
    assert evaluation.coverage["coverage_at_3"] == 1.0
    assert evaluation.means()["recall_at_3"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_batches_do_not_change_the_figures(batch: int) -> None:
    whole = evaluate(days(), descending, ks=(3, 5)).values
    for name, values in evaluate(days(), descending, ks=(3, 5), batch=batch).values.items():
        assert (values == whole[name]).all()


def test_a_scorer_is_asked_for_positions_and_its_array_may_be_read_only() -> None:
    asked: list[int] = []

    def scorer(users: IntArray) -> npt.NDArray[np.float32]:
        asked.extend(users.tolist())
        return np.broadcast_to(-np.arange(6, dtype=np.float32), (len(users), 6))

    assert evaluate(days(), scorer, ks=(3,)).values["recall_at_3"].tolist() == [0, 1, 0]
    assert asked == [0, 2, 7]


def test_malformed_scores_are_refused() -> None:
    malformed: list[npt.NDArray[Any]] = [
        np.zeros((3, 6)),
        np.zeros((2, 6), np.float32),
        np.full((3, 6), np.nan, "f4"),
    ]
    for _ in range(3):
        with pytest.raises(DataError, match="scores"):
            evaluate(days(), lambda _: malformed.pop(), ks=(3,))


def test_a_checkerboard_is_solved_by_its_colour_and_not_by_the_other() -> None:
    num_users, num_items = 100, 100
    board = (np.arange(num_users)[:, None] + np.arange(num_items)) % 2 == 0
    generator = np.random.default_rng(0)
    shown_before = generator.random(board.shape) < 0.5
    seen = ragged(*[np.flatnonzero(row).tolist() for row in shown_before & board])
    users, items = np.nonzero(board)
    checkerboard = user_days(users, items, np.ones(len(users), np.bool_), seen)
    right = evaluate(checkerboard, lambda u: board[u].astype(np.float32), ks=(50,)).means()
    wrong = evaluate(checkerboard, lambda u: (~board[u]).astype(np.float32), ks=(50,)).means()
    assert right["recall_at_50"] == right["ndcg_at_50"] == right["mrr"] == 1
    assert wrong["recall_at_50"] == wrong["mrr"] == 0
    without_exclusion = checkerboard._replace(excluded=Ragged.empty(num_users))
    assert evaluate(without_exclusion, lambda u: board[u].astype("f4")).means()["mrr"] < 0.8


def test_segments_split_the_users_and_cold_items_keep_only_their_targets() -> None:
    ranked, num_items = rank(days(), descending, 6)
    is_cold = np.zeros(num_items, np.bool_)
    is_cold[4] = True
    found = segments(ranked, days(), np.array([21, 20, 0]), is_cold, ks=(3,))
    assert {name: part.users.tolist() for name, part in found.items()} == {
        "new_users": [7],
        "light_users": [2],
        "heavy_users": [0],
        "cold_items": [7],
    }
    assert found["light_users"].means()["recall_at_3"] == 1
    assert found["cold_items"].means()["mrr"] == 1 / 5
    assert "cold_items" not in segments(
        ranked, days(), np.zeros(3, np.int64), is_cold & False, ks=(3,)
    )


def test_keeping_some_targets() -> None:
    is_kept = np.array([0, 0, 0, 0, 0, 1], np.bool_)
    kept, rows = keep_targets(days(), is_kept)
    assert rows.tolist() == [0, 1]
    assert (as_lists(kept.targets), as_lists(kept.excluded)) == ([[5], [5]], [[3, 4], [0, 1, 2]])


def evaluation(users: list[int], values: list[float]) -> Evaluation:
    return Evaluation(np.array(users), {"mrr": np.array(values)}, {"coverage_at_5": 0.5})


def test_a_period_is_the_mean_of_its_days() -> None:
    first, second = evaluation([1, 2, 3], [0.0, 0.0, 0.6]), evaluation([1], [1.0])
    assert mean_over_days([first, second]) == {"mrr": pytest.approx(0.6), "coverage_at_5": 0.5}
    assert interval_over_days([first, second], "mrr", seed=0).estimate == pytest.approx(0.6)


def test_two_models_are_compared_on_the_same_user_days_only() -> None:
    users = list(range(200))
    generator = np.random.default_rng(0)
    one = [evaluation(users, generator.random(200).tolist()) for _ in range(3)]
    better = [day._replace(values={"mrr": 1.2 * day.values["mrr"]}) for day in one]
    ratio = compare_over_days(better, one, "mrr", seed=0)
    assert ratio == pytest.approx((1.2, 1.2, 1.2))
    assert compare_over_days(one, better, "mrr", seed=0).high < 1
    with pytest.raises(DataError, match="same user-days"):
        compare_over_days(one, better[:2], "mrr", seed=0)
