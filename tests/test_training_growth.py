"""Rows are earned, and freed again: nothing that stays may change by it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tiny_checkpoint import tiny_checkpoint
from twotower.checkpoint import Checkpoint, Turnover
from twotower.data.ids import IdMap
from twotower.training.growth import admit, evict
from twotower.training.settings import AdmissionSettings

DAY = 100
OLD_USERS, OLD_ITEMS = [0, 4], [3, 10, 11]


@pytest.fixture
def state() -> Checkpoint:
    """Everybody was seen on day 95, two users and three items on day 80; rows tell themselves."""
    state = tiny_checkpoint()
    state.users.last_seen_day[:] = state.items.last_seen_day[:] = 95
    state.users.last_seen_day[OLD_USERS] = state.items.last_seen_day[OLD_ITEMS] = 80
    for table in state.model.tables.values():
        table.accumulator = torch.arange(len(table), dtype=torch.float32)
    return state


def rows_of(state: Checkpoint, table: str) -> list[tuple[list[float], float]]:
    """The embedding and the accumulator of every position."""
    rows = (state.users if table == "user_id" else state.items).rows
    weight, accumulator = state.model.tables[table].weight, state.model.tables[table].accumulator
    return [(weight[row].tolist(), float(accumulator[row])) for row in rows]


@pytest.mark.parametrize(
    ("table", "old"), [("user_id", OLD_USERS), ("item_id", OLD_ITEMS), ("history", OLD_ITEMS)]
)
def test_who_stays_keeps_its_row_and_who_goes_gets_the_unknown_one(
    state: Checkpoint, table: str, old: list[int]
) -> None:
    before, num_rows = rows_of(state, table), len(state.model.tables[table])
    unknown = (state.model.tables[table].weight[0].tolist(), 0.0)
    turnover = evict(state, DAY, 14)
    after = rows_of(state, table)
    assert [after[position] for position in old] == [unknown] * len(old)
    for position in set(range(len(before))) - set(old):
        assert after[position] == before[position]
    assert len(state.model.tables[table]) == num_rows - len(old)
    assert turnover == Turnover(evicted_users=len(OLD_USERS), evicted_items=len(OLD_ITEMS))


def test_rows_are_dense_and_distinct_again(state: Checkpoint) -> None:
    evict(state, DAY, 14)
    for ids, table in ((state.users, "user_id"), (state.items, "item_id")):
        own = ids.rows[ids.rows > 0]
        assert sorted(own) == list(range(1, ids.num_rows))
        assert len(state.model.tables[table]) == ids.num_rows


def test_nobody_goes_who_was_seen_in_time_or_without_the_setting(state: Checkpoint) -> None:
    before = copy.deepcopy(state).arrays()
    assert evict(state, DAY, 0) == evict(state, DAY, 20) == Turnover()
    for name, values in state.arrays().items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    assert evict(state, DAY, 19).evicted_users == len(OLD_USERS)


def test_who_returns_is_counted_anew_and_starts_as_unknown(state: Checkpoint) -> None:
    state.users.counts[OLD_USERS] = 5
    evict(state, DAY, 14)
    admission = AdmissionSettings(user_min_occurrences=2)
    nobody, returning = np.zeros(0, np.int64), np.array([OLD_USERS[0]])
    assert admit(state, returning, nobody, DAY + 1, admission).admitted_users == 0
    assert state.users.rows[OLD_USERS[0]] == 0
    assert admit(state, returning, nobody, DAY + 2, admission).admitted_users == 1
    table, row = state.model.tables["user_id"], int(state.users.rows[OLD_USERS[0]])
    assert row == state.users.num_rows - 1
    assert torch.equal(table.weight[row], table.weight[0])
    assert table.accumulator[row] == 0


def test_positions_and_ids_stay(state: Checkpoint) -> None:
    ids = state.users.decode(range(len(state.users)))
    evict(state, DAY, 14)
    assert state.users.decode(range(len(state.users))) == ids
    restored = IdMap.from_arrays(state.users.arrays())
    np.testing.assert_array_equal(restored.rows, state.users.rows)
    assert restored.num_rows == state.users.num_rows
