"""A full disk at any moment: one clear line, the live generation untouched, the next try succeeds.

Two ways to fill a disk without being root: the process may write no file above a size
(`RLIMIT_FSIZE`, which every library meets at its own write), and a fail-point raises `ENOSPC`.
"""

from __future__ import annotations

import itertools
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from test_publishing_generation import publish_small
from toy import write_project
from twotower.config import load_project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.failpoints import VARIABLE
from twotower.index import build_index
from twotower.index.settings import IndexSettings
from twotower.nightly import start_lineage
from twotower.publishing.store import ModelStore
from warm_process import run, run_twotower

pytestmark = pytest.mark.slow

REFUSED = 1
FULL_NIGHT = ("-q", "full", "--day", "2024-03-01")
SAVES = "save_every_steps = 2"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project with its base model live and the first day to train."""
    folder = tmp_path_factory.mktemp("template")
    project = write_project(folder, num_days=1, training=SAVES)
    import_tables(project)
    start_lineage(load_project(project.path))
    return folder


def run_with_small_files(max_bytes: int, *words: str) -> None:
    """Be `twotower` in a process that can write no file of more than `max_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))
    run_twotower(*words)


def command(folder: Path, *words: str) -> tuple[str, ...]:
    return (*words, "--config", str(folder / "twotower.toml"))


def assert_one_clear_line(folder: Path, expected: str) -> None:
    output = (folder / "output").read_text()
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert expected in errors[0], output


def assert_whole(folder: Path) -> None:
    """What was live is live, verified; nothing half written has a name or takes space."""
    data = folder / "twotower-data"
    generation, activation = ModelStore(data).open_live()
    assert (generation.name, activation.sequence) == ("g-000001", 1)
    hidden = {path.name for path in (data / "generations").iterdir() if path.name[0] == "."}
    assert hidden <= {".publish.lock", ".activate.lock"}
    assert not [path for path in (data / "work").glob("*") if path.suffix == ".writing"]
    imported = ImportedData.open(data)
    assert len(imported.day("2024-03-01"))
    folders = {path.name for path in (data / "imported").iterdir() if path.is_dir()}
    assert folders == {imported.digest}


@pytest.mark.parametrize("save_every_steps", [2, 500])
def test_a_night_that_meets_a_full_disk(
    template: Path, tmp_path: Path, save_every_steps: int
) -> None:
    """The first file that is too large is the night's save, or any of the generation."""
    whole = shutil.copytree(template, tmp_path / "whole")
    night = ("--set", f"training.save_every_steps={save_every_steps}", *FULL_NIGHT)
    assert run(run_twotower, *command(whole, *night)) == 0, (whole / "output").read_text()
    generation = ModelStore(whole / "twotower-data").open("g-000002")
    sizes = sorted({entry.bytes for entry in generation.manifest.files.values()})

    def check(max_bytes: int) -> None:
        folder = shutil.copytree(template, tmp_path / str(max_bytes))
        limited = command(folder, *night)
        assert run(run_with_small_files, max_bytes, *limited) == REFUSED
        assert_one_clear_line(folder, "what was live is unchanged")
        assert_whole(folder)
        assert run(run_twotower, *limited) == 0, (folder / "output").read_text()
        shutil.rmtree(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, [size - 1 for size in sizes[:: len(sizes) // 8]]))


def test_a_night_whose_disk_is_full_at_any_step(template: Path, tmp_path: Path) -> None:
    """Every seventh step of a night, from its first save to the audit of its activation."""

    def ends_well(count: int) -> bool:
        folder = shutil.copytree(template, tmp_path / str(count))
        words = command(folder, *FULL_NIGHT)
        if run(run_twotower, *words, variables={VARIABLE: f"*:{count}:full"}) == 0:
            return True
        assert_one_clear_line(folder, "No space left on device")
        if ModelStore(folder / "twotower-data").open_live()[0].name == "g-000001":
            assert run(run_twotower, *words) == 0, (folder / "output").read_text()
        shutil.rmtree(folder)
        return False

    with ThreadPoolExecutor(2) as pool:
        for first in itertools.count(1, 28):
            done = list(pool.map(ends_well, range(first, first + 28, 7)))
            if any(done):
                break
    assert first > 60


def test_a_publish_and_an_activation_whose_disk_is_full_at_any_step(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.activate(publish_small(store, 1).name)
    for count in itertools.count(1):
        steps = itertools.count(1)

        def fail(step: str, count: int = count, steps: itertools.count[int] = steps) -> None:
            if next(steps) == count:
                raise OSError(28, "No space left on device", step)

        before, activation = store.open_live()
        failing = ModelStore(tmp_path, at_step=fail)
        try:
            failing.activate(publish_small(failing, 2).name)
        except OSError:
            after, now = ModelStore(tmp_path).open_live()
            assert now.sequence in (activation.sequence, activation.sequence + 1)
            assert now.sequence > activation.sequence or after.name == before.name
            following = store.activate(publish_small(store, 3).name)
            assert following.sequence == now.sequence + 1
            hidden = {path.name for path in store.root.iterdir() if path.name[0] == "."}
            assert hidden == {".publish.lock", ".activate.lock"}
        else:
            break
    assert count > 15


def test_an_import_that_meets_a_full_disk(template: Path, tmp_path: Path) -> None:
    imported = ImportedData.open(template / "twotower-data")
    sizes = [file.bytes for file in imported.manifest.files.values()]
    for max_bytes in (1000, min(sizes) - 1, max(sizes) - 1):
        folder = shutil.copytree(template, tmp_path / str(max_bytes))
        events = folder / "events.csv"
        events.write_text(events.read_text() + "u1,1,1709251201,1\n")
        assert run(run_with_small_files, max_bytes, *command(folder, "import")) == REFUSED
        assert_one_clear_line(folder, "the earlier import is still live")
        assert_whole(folder)
        assert run(run_twotower, *command(folder, "import")) == 0
        assert ImportedData.open(folder / "twotower-data").digest != imported.digest


def test_an_index_that_meets_a_full_disk(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    index = build_index("faiss_hnsw", np.arange(5000), vectors, IndexSettings())
    with files_of_at_most(vectors.nbytes + 1000), pytest.raises(OSError, match="could not write"):
        index.save(tmp_path / "index")


@contextmanager
def files_of_at_most(max_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_may_not_be_written(template: Path, tmp_path: Path) -> None:
    """Root may write everywhere; a file where a folder is expected refuses everybody."""
    folder = shutil.copytree(template, tmp_path / "project")
    shutil.rmtree(folder / "twotower-data" / "work", ignore_errors=True)
    (folder / "twotower-data" / "work").write_text("in the way")
    assert run(run_twotower, *command(folder, *FULL_NIGHT)) == REFUSED
    assert_one_clear_line(folder, "expected to read and write freely at")
