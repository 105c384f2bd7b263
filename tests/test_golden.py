"""Files that earlier versions wrote are read, answered from and trained on; newer ones refused.

`tests/golden/make.py` wrote each folder with the version of its time; none is ever made again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from twotower.checkpoint import FORMAT_VERSION, Checkpoint
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.errors import ConfigError, CorruptArtifact
from twotower.nightly import run_night
from twotower.publishing.retention import pins
from twotower.publishing.store import ModelStore
from twotower.serving.day import DayFollower, LogReader, NoCounts
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if (folder / "expected.json").exists())


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that may be written to, laid out as a project."""
    copy = shutil.copytree(GOLDEN / request.param, tmp_path / "project")
    (copy / "data").rename(copy / "twotower-data")
    return copy


@pytest.fixture
def project(folder: Path) -> Project:
    return load_project(folder / "twotower.toml")


def test_there_is_one_of_the_newest_format() -> None:
    assert f"checkpoint-{FORMAT_VERSION}" in NAMES


def test_what_was_published_is_whole_and_answers_as_it_did(project: Project) -> None:
    expected = msgspec.json.decode((project.root / "expected.json").read_bytes())
    store = ModelStore(project.data_path)
    live, activation = store.open_live()
    assert live.name == activation.generation == expected["live"]
    assert [entry.generation for entry in store.activations()][-1] == live.name
    assert list(pins(store)) == [expected["pinned"]]
    retriever = Retriever.open(project.data_path)
    for user, answer in expected["answers"].items():
        found = [(c.item_id, c.score) for c in retriever.retrieve(user, k=5).candidates]
        assert [item for item, _ in found] == [item for item, _ in answer]
        assert [score for _, score in found] == pytest.approx([s for _, s in answer], abs=1e-5)


def test_the_lineage_goes_on_from_it(project: Project) -> None:
    before = Checkpoint.load(ModelStore(project.data_path).open().path / "checkpoint")
    assert before.meta.window.through_day == "2024-03-01"
    day = ImportedData.open(project.data_path).day("2024-03-02")
    run_night(project)
    live = ModelStore(project.data_path).open().manifest
    assert live.window.through_day == "2024-03-02"
    assert live.trained.rows == day.outcome.sum() > 0


def newer(path: Path) -> None:
    """Raise the version that a JSON file states; the checksum of the file is not what is tested."""
    content: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    content["format_version"] += 1000
    path.chmod(0o644)
    path.write_bytes(msgspec.json.encode(content))


def test_a_newer_checkpoint_is_refused_with_one_clear_line(project: Project) -> None:
    checkpoint = ModelStore(project.data_path).open().path / "checkpoint"
    newer(checkpoint / "checkpoint.json")
    with pytest.raises(CorruptArtifact, match=r"reads up to \d+; upgrade twotower") as refused:
        Checkpoint.load(checkpoint)
    assert "\n" not in str(refused.value)


def test_a_newer_import_is_refused_with_one_clear_line(project: Project) -> None:
    newer(ImportedData.open(project.data_path).folder / "import.json")
    with pytest.raises(CorruptArtifact, match=r"reads up to \d+; upgrade twotower"):
        ImportedData.open(project.data_path)


@pytest.mark.parametrize("name", ["CURRENT", "pins.json"])
def test_a_newer_store_is_refused_with_one_clear_line(project: Project, name: str) -> None:
    store = ModelStore(project.data_path)
    newer(store.root / name)
    with pytest.raises(CorruptArtifact, match=re.escape("upgrade twotower")):
        pins(store) if name == "pins.json" else store.live()


def test_a_newer_configuration_is_refused(folder: Path) -> None:
    config = folder / "twotower.toml"
    config.write_text(config.read_text().replace("config_version = 1", "config_version = 1000"))
    with pytest.raises(ConfigError, match="upgrade twotower"):
        load_project(config)


@pytest.mark.parametrize("name", ["day-1", "day-2"])
def test_deltas_and_items_of_the_day_are_served_as_they_were(tmp_path: Path, name: str) -> None:
    day = GOLDEN / name
    expected = msgspec.json.decode((day / "answers.json").read_bytes())
    data_path = shutil.copytree(GOLDEN / expected["base"] / "data", tmp_path / "data")
    for kind in ("deltas", "overlays"):
        shutil.copytree(day / kind, data_path / kind)
    written = {path: path.read_bytes() for path in (data_path / "overlays").rglob("*.*")}
    follower = DayFollower(data_path, ServingSettings(), NoCounts(), LogReader(data_path, ()))
    retriever = follower.catch_up(Retriever.open(data_path))
    assert follower.problems == {}
    assert (retriever.delta, retriever.items_number) == (2, expected["items_number"])
    for user, answer in expected["answers"].items():
        found = [(c.item_id, c.score) for c in retriever.retrieve(user, k=8).candidates]
        assert [item for item, _ in found] == [item for item, _ in answer]
        assert [score for _, score in found] == pytest.approx([s for _, s in answer], abs=1e-5)
    assert {path: path.read_bytes() for path in written} == written  # read, not made anew
