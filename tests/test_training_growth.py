"""Rows are earned, and freed again: nothing that stays may change by it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_checkpoint import tiny_checkpoint
from toy import write_project
from toy_lineage import ToyLineage
from twotower.checkpoint import Checkpoint, Turnover
from twotower.data.ids import IdMap
from twotower.training.growth import admit, evict, forget
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


def lists_of(state: Checkpoint) -> list[tuple[list[int], list[int]]]:
    seen, recent = state.user_state.seen, state.user_state.recent
    return [(seen.list_at(n).tolist(), recent.list_at(n).tolist()) for n in range(len(state.users))]


def test_who_had_no_event_for_long_is_forgotten_and_nobody_else(state: Checkpoint) -> None:
    before = lists_of(state)
    assert forget(state, np.arange(6), 80, 14) == 0  # nobody was met before: all count from now
    assert forget(state, np.array([0, 3]), 94, 14) == 0
    assert lists_of(state) == before
    absent = [user for user in range(len(before)) if user not in (0, 3)]
    assert forget(state, np.array([0]), 95, 14) == sum(any(before[user]) for user in absent) > 3
    assert lists_of(state) == [([], []) if user in absent else before[user] for user in range(12)]
    assert forget(state, np.array([0]), 96, 14) == 0  # once each
    assert lists_of(state)[3] == before[3]


def test_impressions_without_a_click_keep_a_user_in_mind_and_zero_forgets_nobody(
    state: Checkpoint,
) -> None:
    before = lists_of(state)
    for day in range(80, 120):
        assert forget(state, np.array([5]), day, 0) == 0
    assert lists_of(state) == before
    assert state.last_event_day.tolist() == [80] * 5 + [119] + [80] * 6
    forget(state, np.array([], np.int64), 120, 1)
    assert lists_of(state)[5] == before[5]
    assert not any(map(any, lists_of(state)[:5]))


def test_newcomers_count_from_their_first_night(state: Checkpoint) -> None:
    state.last_event_day = np.full(8, 70, np.int64)
    before = lists_of(state)
    forget(state, np.array([], np.int64), 80, 5)
    assert not any(map(any, lists_of(state)[:8]))
    assert lists_of(state)[8:] == before[8:]


def test_the_newest_seen_items_are_kept_from_the_history_on(tmp_path: Path) -> None:
    limit = 7
    free = ToyLineage(write_project(tmp_path / "free", num_days=1))
    text = f"[training.user_state]\nseen_limit = {limit}"
    bounded = ToyLineage(write_project(tmp_path / "bounded", num_days=1, training=text))
    for state, all_seen in (
        (bounded.base, free.base),
        (bounded.full(bounded.base, "2024-03-01"), free.full(free.base, "2024-03-01")),
    ):
        for user in range(len(state.users)):
            found, everything = (s.user_state.seen.list_at(user) for s in (state, all_seen))
            assert found.tolist() == everything[-limit:].tolist()
    assert (all_seen.user_state.seen.lengths() > limit).all()
