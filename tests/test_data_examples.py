"""Histories hold only what came before; user state continues them."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from twotower.data.examples import Examples, build_examples
from twotower.data.user_state import Ragged, UserState, append_ragged

IntArray = npt.NDArray[np.int64]


def ints(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


def examples(user: IntArray, item: IntArray, time: IntArray, length: int = 50) -> Examples:
    return build_examples(
        event_id=np.arange(len(user), dtype=np.uint64),
        user=user,
        item=item,
        event_time_ms=time,
        recent=Ragged(ints(90, 91, 92), ints(0, 2, 3, 3)),
        num_users=4,
        history_length=length,
    )


def histories(made: Examples) -> list[list[int]]:
    found = made.histories(np.arange(len(made)))
    return [found.list_at(i).tolist() for i in range(len(made))]


def test_a_history_is_what_came_before_the_window_and_strictly_earlier_in_it() -> None:
    made = examples(ints(0, 1, 0, 0, 3, 0), ints(10, 20, 11, 12, 30, 13), ints(1, 2, 3, 3, 4, 5))
    assert histories(made) == [
        [90, 91],
        [92],
        [90, 91, 10],
        [90, 91, 10],
        [],
        [90, 91, 10, 11, 12],
    ]


def test_a_planted_later_click_changes_no_earlier_history() -> None:
    made = examples(ints(0, 1, 0), ints(10, 20, 11), ints(1, 2, 3))
    planted = examples(ints(0, 1, 0, 0, 1), ints(10, 20, 11, 77, 77), ints(1, 2, 3, 4, 4))
    assert histories(planted)[:3] == histories(made)


def test_a_history_keeps_the_newest_items() -> None:
    made = examples(ints(0, 0, 0), ints(10, 11, 12), ints(1, 2, 3), length=2)
    assert histories(made) == [[90, 91], [91, 10], [10, 11]]
    assert histories(examples(ints(0), ints(10), ints(1), length=0)) == [[]]


def test_a_history_without_an_order_holds_the_rest_of_the_list() -> None:
    made = examples(ints(0, 1, 0), ints(10, 20, 11), ints(1, 2, 3))
    starts, ends = made.past.offsets[made.user], made.past.offsets[made.user + 1]
    whole = dataclasses.replace(made, history_start=starts, history_end=ends, leaves_out_own=True)
    assert histories(whole) == [[90, 91, 11], [92], [90, 91, 10]]
    hidden = whole.histories(ints(0, 1), np.array([True, False]))
    assert [hidden.list_at(0).tolist(), hidden.list_at(1).tolist()] == [[], [92]]


def test_state_advanced_in_two_windows_equals_one() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 5, 200), rng.integers(0, 30, 200)
    positive = rng.random(200) < 0.4
    whole = UserState.empty(0).advance(users, items, positive, num_users=5, recent_limit=7)
    halves = UserState.empty(0)
    for part in (slice(0, 90), slice(90, 200)):
        halves = halves.advance(
            users[part], items[part], positive[part], num_users=5, recent_limit=7
        )
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(halves.arrays()[name], values)


def test_state_keeps_recent_positives_and_distinct_seen_items() -> None:
    state = UserState.empty(2).advance(
        ints(0, 0, 1, 0, 0),
        ints(5, 6, 5, 5, 7),
        np.array([True, False, False, True, True]),
        num_users=2,
        recent_limit=2,
        seen_limit=2,
    )
    assert state.recent.list_at(0).tolist() == [5, 7]
    assert state.seen.list_at(0).tolist() == [5, 7]
    assert state.seen.list_at(1).tolist() == [5]
    assert UserState.from_arrays(state.arrays()).seen.list_at(0).tolist() == [5, 7]


@pytest.mark.parametrize("limit", [0, 3])
def test_appending_keeps_the_order_of_each_list(limit: int) -> None:
    lists = append_ragged(
        Ragged(ints(1, 2), ints(0, 2)), ints(1, 0, 1), ints(7, 8, 9), num_lists=3, limit=limit
    )
    assert [lists.list_at(i).tolist() for i in range(3)] == [[1, 2, 8], [7, 9], []]
