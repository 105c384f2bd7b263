"""Increments killed anywhere and started again end as if nothing had happened."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from increment_project import append_examples, increment_project, some_examples
from test_increments import assert_equal, assert_same_rows, learned_arrays, published_rows
from twotower.config import Project, load_project
from twotower.failpoints import VARIABLE
from twotower.increment_runs import run_increment
from warm_process import KILLED, run, run_twotower

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One delta is published, and sixty examples are to be learned in two portions."""
    folder = tmp_path_factory.mktemp("template")
    project = increment_project(folder, examples=40, more='rows = "user_and_item"')
    run_increment(project)
    append_examples(project, some_examples(60, first_offset=40))
    return folder


@pytest.fixture(scope="module")
def untouched(template: Path) -> Project:
    """The run that was never stopped."""
    folder = template.with_name("untouched-increments")
    shutil.copytree(template, folder)
    assert increment(folder) == 0
    return load_project(folder / "twotower.toml")


def increment(folder: Path, failpoint: str = "") -> int:
    words = ("-q", "increment", "--config", str(folder / "twotower.toml"))
    return run(run_twotower, *words, variables={VARIABLE: failpoint} if failpoint else {})


def test_killed_at_every_fail_point(template: Path, untouched: Project, tmp_path: Path) -> None:
    expected = learned_arrays(untouched), published_rows(untouched)

    def is_killed(count: int) -> bool:
        folder = tmp_path / str(count)
        shutil.copytree(template, folder)
        exit_code = increment(folder, f"*:{count}")
        assert exit_code in (0, KILLED), (folder / "output").read_text()
        if exit_code == KILLED:
            assert increment(folder) == 0, (folder / "output").read_text()
        project = load_project(folder / "twotower.toml")
        assert_equal(learned_arrays(project), expected[0])
        assert_same_rows(published_rows(project), expected[1])
        shutil.rmtree(folder)
        return exit_code == KILLED

    with ThreadPoolExecutor(2) as pool:
        for first in itertools.count(1, 10):
            killed = list(pool.map(is_killed, range(first, first + 10)))
            if not all(killed):
                break
    assert killed == sorted(killed, reverse=True)
    assert first > 10
