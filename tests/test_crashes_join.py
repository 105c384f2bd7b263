"""The label join, killed at every step: it ends where a join that ran through ends."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from label_join_reference import random_log
from stored_events import store, without_repeats
from test_data_joiner import files, join
from twotower.errors import TwoTowerError
from twotower.failpoints import VARIABLE
from warm_process import KILLED, run

LOG = without_repeats(random_log(5, 400))
NOW_MS = LOG[-1].received_ms + 700_000


def join_all(data_path: Path) -> None:
    """Two batches, with shards that are full, that grow and that begin."""
    join(data_path, NOW_MS, batch_events=200, shard_examples=60)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    store(folder, LOG)
    return folder


@pytest.fixture(scope="module")
def unkilled(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = shutil.copytree(stored, tmp_path_factory.mktemp("unkilled") / "data")
    join_all(folder)
    return files(folder)


@pytest.mark.slow
def test_killed_at_every_step(stored: Path, unkilled: dict[str, bytes], tmp_path: Path) -> None:
    for count in itertools.count(1):
        folder = shutil.copytree(stored, tmp_path / "data")
        exit_code = run(join_all, folder, variables={VARIABLE: f"*:{count}"})
        if exit_code == 0:
            break
        assert exit_code == KILLED
        join_all(folder)
        assert files(folder) == unkilled, f"killed at step {count}"
        shutil.rmtree(folder)
    assert count > 20


@pytest.mark.slow
def test_killed_again_and_again(stored: Path, unkilled: dict[str, bytes], tmp_path: Path) -> None:
    """Every start dies at a later step than the one before, until one comes through."""
    folder = shutil.copytree(stored, tmp_path / "data")
    for count in itertools.count(1):
        if run(join_all, folder, variables={VARIABLE: f"*:{count}"}) == 0:
            break
    assert files(folder) == unkilled


@pytest.mark.parametrize("name", ["examples.shard.rename", "examples.state.rename"])
def test_stopped_between_its_files(
    stored: Path, unkilled: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """The quick one: a full disk behind the second batch's files, before they count."""
    folder = shutil.copytree(stored, tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"{name}:2:full")
        with pytest.raises((OSError, TwoTowerError)):
            join_all(folder)
    assert files(folder) != unkilled
    join_all(folder)
    assert files(folder) == unkilled
