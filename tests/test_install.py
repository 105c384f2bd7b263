"""The wheel with the serving extra alone, in a new environment: it retrieves without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import msgspec
import pytest

from tiny_checkpoint import tiny_checkpoint
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
NOT_SERVING = ("torch", "polars", "pyarrow", "onnx", "scipy", "implicit", "pandas", "safetensors")
PROJECT = """
config_version = 1
[events]
files = "events.csv"
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
"""
NO_INDEX = ("No matching distribution", "NewConnectionError", "Temporary failure in name")


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with `twotower[serve]` from the wheel."""
    folder = tmp_path_factory.mktemp("install")
    built = run(
        sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("twotower-*.whl")
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    done = run(binaries / "python", "-m", "pip", "install", f"{wheel}[serve]", folder=folder)
    if done.returncode != 0 and any(sign in done.stderr for sign in NO_INDEX):
        pytest.skip("no package index is reachable to install twotower[serve] from")
    assert done.returncode == 0, done.stderr
    return binaries


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose live generation has random parameters."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "twotower.toml").write_text(PROJECT)
    store = ModelStore(folder / "twotower-data")
    generation = publish(tiny_checkpoint(), store, index=IndexSettings(engine="faiss_hnsw"))
    store.activate(generation.name, force=True, reason="random parameters")
    return folder


def test_the_serving_extra_brings_no_training(serving: Path, tmp_path: Path) -> None:
    listed = run(serving / "python", "-m", "pip", "list", "--format", "json", folder=tmp_path)
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"twotower", "onnxruntime", "faiss-cpu"} <= installed
    assert installed & set(NOT_SERVING) == set()


def test_it_answers_as_the_whole_installation_does(serving: Path, project: Path) -> None:
    done = run(
        serving / "twotower", "retrieve", "--user", "695", "-k", "5", "--json", folder=project
    )
    assert done.returncode == 0, done.stderr
    expected = Retriever.open(project / "twotower-data").retrieve(695, 5)
    assert json.loads(done.stdout) == msgspec.to_builtins(expected)
    assert len(expected.candidates) == 5


def test_what_is_not_installed_is_one_clear_line(serving: Path, project: Path) -> None:
    done = run(serving / "twotower", "import", folder=project)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'twotower[" in done.stderr
