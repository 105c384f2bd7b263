"""A full update killed anywhere and started again ends as if nothing had happened."""

from __future__ import annotations

import itertools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from toy import write_project
from twotower.config import load_project
from twotower.data.importing import import_tables
from twotower.failpoints import VARIABLE
from twotower.nightly import prune_project, start_lineage
from twotower.publishing.manifest import Trained
from twotower.publishing.store import ModelStore
from twotower.training import training_pass
from warm_process import KILLED, end, run, run_twotower, start

pytestmark = pytest.mark.slow

NUM_MOMENTS = 20
SAVES = "save_every_steps = 2"

STEP = "            loss = losses.add(self._stepper.start("
SAVED = "start=cursor.start + len(made.indices), times_stepped=cursor.times_stepped + stepped"
SAVE_BEFORE_STEP = f"""
            if self.keeper is not None:
                stepped = np.isin(np.arange(len(order)), made.indices).astype(np.uint8)
                early = cursor._replace({SAVED})
                self.keeper.save(self._state, self.adam, early, -(-early.start // self._batch_size))
"""
SAVE_AFTER_STEP = "self.keeper.save(self._state, self.adam, cursor, step)"


class Result(NamedTuple):
    """What a night leaves behind."""

    arrays: dict[str, npt.NDArray[np.generic]]
    features: list[bytes]
    trained: Trained


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project with its base model live and the first day to train."""
    folder = tmp_path_factory.mktemp("template")
    project = write_project(folder, num_days=1, training=SAVES)
    config = (folder / "twotower.toml").read_text().replace("batch_size = 64", "batch_size = 32")
    (folder / "twotower.toml").write_text(config)
    import_tables(project)
    start_lineage(load_project(project.path))
    return folder


@pytest.fixture(scope="module")
def untouched(template: Path) -> Result:
    """The night that was never stopped."""
    folder = template.with_name("untouched")
    shutil.copytree(template, folder)
    assert full(folder) == 0
    return result_of(folder)


def full(folder: Path, failpoint: str = "") -> int:
    variables = {VARIABLE: failpoint} if failpoint else {}
    return run(run_twotower, *full_command(folder), variables=variables)


def full_command(folder: Path) -> list[str]:
    return ["-q", "full", "--day", "2024-03-01", "--config", str(folder / "twotower.toml")]


def result_of(folder: Path, name: str | None = None) -> Result:
    generation = ModelStore(folder / "twotower-data").open(name)
    checkpoint = generation.path / "checkpoint"
    specs = [(checkpoint / f"{side}_features.json").read_bytes() for side in ("user", "item")]
    return Result(load_file(checkpoint / "arrays.safetensors"), specs, generation.manifest.trained)


def assert_same(found: Result, expected: Result) -> None:
    """Every tensor, accumulator, frequency, ID map, user state, popularity and count."""
    assert found.arrays.keys() == expected.arrays.keys()
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values, err_msg=name, strict=True)
    assert found.features == expected.features
    counts = ("rows", "distinct_event_ids", "digest", "epochs", "steps", "loss")
    for name in counts:
        assert getattr(found.trained, name) == getattr(expected.trained, name), name


def assert_no_orphan(folder: Path) -> None:
    """Nothing is left but whole generations; the killed night's save is gone with its night."""
    data = folder / "twotower-data"
    hidden = {path.name for path in (data / "generations").iterdir() if path.name[0] == "."}
    assert hidden <= {".publish.lock", ".activate.lock"}
    assert [path.name for path in (data / "work").iterdir()] == [".night.lock"]


def killed_and_begun_again(template: Path, folder: Path, failpoint: str) -> tuple[bool, Result]:
    """Kill a night at a fail-point and run it again; return whether it was killed."""
    shutil.copytree(template, folder)
    exit_code = full(folder, failpoint)
    assert exit_code in (0, KILLED), (folder / "output").read_text()
    store = ModelStore(folder / "twotower-data")
    if store.open().name == "g-000001":
        assert full(folder) == 0, (folder / "output").read_text()
    else:
        prune_project(load_project(folder / "twotower.toml"), keep=0)
    return exit_code == KILLED, result_of(folder)


def test_killed_at_every_fail_point(template: Path, untouched: Result, tmp_path: Path) -> None:
    def is_killed(count: int) -> bool:
        folder = tmp_path / str(count)
        was_killed, result = killed_and_begun_again(template, folder, f"*:{count}")
        assert_same(result, untouched)
        assert_no_orphan(folder)
        shutil.rmtree(folder)
        return was_killed

    with ThreadPoolExecutor(2) as pool:
        for first in itertools.count(1, 20):
            killed = list(pool.map(is_killed, range(first, first + 20)))
            if not all(killed):
                break
    assert killed == sorted(killed, reverse=True)
    assert first > 100


def test_killed_at_random_moments(template: Path, untouched: Result, tmp_path: Path) -> None:
    """Twenty times; a run that ended before its moment came is killed earlier the next time."""
    began = time.monotonic()
    assert full(shutil.copytree(template, tmp_path / "timed")) == 0
    longest_s = time.monotonic() - began
    moments = np.random.default_rng(0).uniform(0.2, 1, NUM_MOMENTS) * longest_s

    def check(number: int) -> None:
        for earlier in itertools.count():
            folder = shutil.copytree(template, tmp_path / f"{number}-{earlier}")
            running = start(run_twotower, *full_command(folder))
            was_killed = end(running, moments[number] * 0.8**earlier) == KILLED
            if ModelStore(folder / "twotower-data").open().name == "g-000001":
                assert full(folder) == 0, (folder / "output").read_text()
            assert_same(result_of(folder), untouched)
            if was_killed:
                break

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(NUM_MOMENTS)))


FROM_NOTHING = (
    "pass.after_step:3",
    "pass.before_rename:2",
    "pass.after_rename:1",
    "stage.made",
    "commit.rename",
    "activate.locked",
    "pass.after_rename:7",  # of the night that follows
)


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project with nothing trained."""
    folder = tmp_path_factory.mktemp("nothing")
    import_tables(write_project(folder, num_days=1, training=SAVES))
    return folder


def test_a_killed_base_model_goes_on_from_its_save(from_nothing: Path, tmp_path: Path) -> None:
    unstopped = shutil.copytree(from_nothing, tmp_path / "unstopped")
    assert full(unstopped) == 0
    base, expected = result_of(unstopped, "g-000001"), result_of(unstopped)

    def check(failpoint: str) -> None:
        folder = shutil.copytree(from_nothing, tmp_path / failpoint)
        assert full(folder, failpoint) == KILLED
        assert full(folder) == 0, (folder / "output").read_text()
        assert_same(result_of(folder), expected)
        parent = ModelStore(folder / "twotower-data").open().manifest.parent
        assert_same(result_of(folder, parent), base)
        assert_no_orphan(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, FROM_NOTHING))


def test_a_base_model_goes_on_and_does_not_begin_again(from_nothing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(from_nothing, tmp_path / "project")
    command = [*full_command(folder)[1:]]
    assert run(run_twotower, *command, variables={VARIABLE: "pass.after_rename:4"}) == KILLED
    assert (folder / "twotower-data" / "work" / "base.pass").exists()
    assert run(run_twotower, *command) == 0
    assert 'base.pass","epoch":' in (folder / "output").read_text()


def full_with_cursor_saved_before_the_step(*words: str) -> None:
    """Be `twotower`, with the fault that the comparison has to notice planted."""
    source = Path(training_pass.__file__).read_text()
    for found, planted in ((STEP, SAVE_BEFORE_STEP + STEP), (SAVE_AFTER_STEP, "pass")):
        assert source.count(found) == 1
        source = source.replace(found, planted)
    exec(compile(source, training_pass.__file__, "exec"), vars(training_pass))
    run_twotower(*words)


def test_a_cursor_saved_before_its_step_is_noticed(
    template: Path, untouched: Result, tmp_path: Path
) -> None:
    folder = shutil.copytree(template, tmp_path / "planted")
    planted = full_with_cursor_saved_before_the_step
    variables = {VARIABLE: "pass.before_write:3"}
    assert run(planted, *full_command(folder), variables=variables) == KILLED
    assert run(planted, *full_command(folder)) == 0, (folder / "output").read_text()
    with pytest.raises(AssertionError, match="dense"):
        assert_same(result_of(folder), untouched)
    unstopped = shutil.copytree(template, tmp_path / "unstopped")
    assert run(planted, *full_command(unstopped)) == 0
    assert_same(result_of(unstopped), untouched)
