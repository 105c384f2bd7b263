"""The save of a running pass is trusted only when every byte of it is this run's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_checkpoint import tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.training.resume import Cursor, PassKeeper, pass_key
from twotower.training.step import load_adam

CURSOR = Cursor(1, 96, np.array([1, 0, 1], np.uint8), 3.25, np.array([7, 0]))


def keeper_at(folder: Path, day: str = "2024-03-01") -> PassKeeper:
    return PassKeeper(folder / "full.pass", pass_key(tiny_checkpoint(), day), every_steps=2)


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """A state that one step of Adam has moved, saved in `tmp_path`."""
    state = tiny_checkpoint(seed=3)
    adam = load_adam(state.model, {}, 0.1)
    for parameter in state.model.dense_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    keeper_at(tmp_path).save(state, adam, CURSOR, step=4)
    return state


def test_it_continues_with_what_was_saved(saved: Checkpoint, tmp_path: Path) -> None:
    state = tiny_checkpoint(seed=3)
    cursor = keeper_at(tmp_path).load(state)
    assert cursor is not None
    assert cursor[:2] == (1, 96)
    assert cursor.total_loss == 3.25
    np.testing.assert_array_equal(cursor.times_stepped, CURSOR.times_stepped)
    for name, parameter in saved.model.dense_parameters().items():
        assert torch.equal(state.model.dense_parameters()[name], parameter)
    assert state.optimizer
    state.model.tables["user_id"].weight[0] += 1  # what was loaded can be trained


def test_steps_between_two_saves_write_nothing(tmp_path: Path) -> None:
    state = tiny_checkpoint()
    keeper_at(tmp_path).save(state, load_adam(state.model, {}, 0.1), CURSOR, step=3)
    assert list(tmp_path.iterdir()) == []
    assert keeper_at(tmp_path).load(state) is None


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content[:20], lambda content: b"",
     lambda content: content + b"\0", lambda content: content[:4096] + bytes(4096)],
)  # fmt: skip
def test_a_torn_save_is_ignored_and_the_log_says_so(
    saved: Checkpoint,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "full.pass"
    path.write_bytes(damage(path.read_bytes()))
    assert_ignored(tmp_path, caplog)


def test_any_flipped_bit_is_ignored(
    saved: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "full.pass"
    sound = path.read_bytes()
    header = range(0, 400, 7)
    for offset in [*header, *np.random.default_rng(0).integers(0, len(sound), 60).tolist()]:
        damaged = bytearray(sound)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        assert_ignored(tmp_path, caplog)
    path.write_bytes(sound)
    assert keeper_at(tmp_path).load(tiny_checkpoint()) is not None


def test_the_save_of_another_run_is_ignored(
    saved: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_ignored(tmp_path, caplog, day="2024-03-02")


def assert_ignored(folder: Path, caplog: pytest.LogCaptureFixture, **run: str) -> None:
    """Nothing of the file reaches the state, and one line says why."""
    state, caplog.handler.records = tiny_checkpoint(seed=3), []
    before = {name: values.copy() for name, values in state.arrays().items()}
    with caplog.at_level(logging.WARNING, "twotower"):
        logging.getLogger("twotower").propagate = True
        assert keeper_at(folder, **run).load(state) is None
    assert "the pass starts anew" in caplog.text
    for name, values in state.arrays().items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
