"""A history that is pooled from the item ID table: one table while a pass trains, a copy after."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from test_training_device import examples_of, train, training_of
from tiny_checkpoint import tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.model.lanes import run_in_lanes
from twotower.model.settings import HistoryTable


def state_with(table: HistoryTable) -> Checkpoint:
    return tiny_checkpoint(sizes={"id_dim": 5, "history_table": table})


def test_both_tables_are_equal_before_and_after_a_pass_and_apart_afterwards() -> None:
    state = state_with("item_id")
    tables = state.model.tables
    before = tables["item_id"].weight.clone()
    assert torch.equal(tables["history"].weight, before)
    train(state, training_of())
    assert not torch.equal(tables["item_id"].weight, before)
    assert torch.equal(tables["history"].weight, tables["item_id"].weight)
    assert torch.equal(tables["history"].accumulator, tables["item_id"].accumulator)
    tables["item_id"].weight += 1
    assert not torch.equal(tables["history"].weight, tables["item_id"].weight)


def test_a_table_of_its_own_stays_apart() -> None:
    state = state_with("own")
    train(state, training_of())
    assert not torch.equal(
        state.model.tables["history"].weight, state.model.tables["item_id"].weight
    )


def test_a_row_moves_by_what_both_sides_learn() -> None:
    """An item that is in histories and in no column moves all the same."""
    state = state_with("item_id")
    past = examples_of(state).past.values
    with state.model.one_item_table():
        weight = state.model.tables["item_id"].weight
        before = weight.clone()
        row = int(state.items.rows[past[0]])
        looked_up = state.model.tables["history"].lookup(torch.tensor([row]))
        looked_up.embed().sum().backward()
        looked_up.apply_gradient(0.1)
        assert not torch.equal(weight[row], before[row])
    assert torch.equal(state.model.tables["history"].weight, weight)


def test_the_two_sides_take_turns_on_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[int] = []

    def counting(parts: Any) -> Any:
        lanes.append(len(parts))
        return run_in_lanes(parts)

    monkeypatch.setattr("twotower.training.step.run_in_lanes", counting)
    train(state_with("item_id"), training_of())
    assert lanes == []
    train(state_with("own"), training_of())
    assert set(lanes) == {2}


def test_a_pass_that_fails_leaves_two_tables() -> None:
    state = state_with("item_id")
    tables: list[bool] = []

    def failing(*_: Any) -> bool:
        tables.append(state.model.has_one_item_table)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        train(state, training_of(), after_epoch=failing)
    assert tables == [True]
    assert not state.model.has_one_item_table


def test_the_copy_is_what_the_next_pass_begins_with() -> None:
    """What is stored between two nights is two equal tables; the second of them is no state."""
    once = state_with("item_id")
    train(once, training_of())
    again = copy.deepcopy(once)
    again.model.tables["history"].weight = torch.zeros_like(again.model.tables["history"].weight)
    first, second = train(once, training_of()), train(again, training_of())
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), second[name].numpy(), name)
