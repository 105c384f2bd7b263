"""`twotower increment`, `publish-delta` and `deltas`: what they say, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from increment_project import append_examples, increment_project, publish_tiny, some_examples
from test_cli_events import Twotower
from twotower.config import Project
from twotower.increments import Increments
from twotower.publishing.delta import delta_folder, list_deltas
from twotower.publishing.store import ModelStore


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return increment_project(tmp_path, examples=80)


@pytest.fixture
def twotower(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Twotower:
    return Twotower(project.path, monkeypatch, capsys)


def learn(project: Project) -> None:
    """And store, and publish nothing."""
    with Increments.open(project, ModelStore(project.data_path).open()) as running:
        running.learn_all()


def test_what_is_learned_is_published_and_listed(twotower: Twotower, project: Project) -> None:
    assert twotower.json("publish-delta") == []
    assert "nothing new to publish" in twotower.text("publish-delta")
    learn(project)
    tried = twotower.json("publish-delta", "--dry-run")
    assert (tried["base"], tried["first_offset"], tried["through_offset"]) == ("g-000001", 0, 80)
    assert f"would publish over g-000001: {tried['users']} users" in twotower.text(
        "publish-delta", "--dry-run"
    )
    assert list_deltas(project.data_path, "g-000001") == []
    (written,) = twotower.json("publish-delta")
    assert (written["sequence"], written["span"]["through_offset"]) == (1, 80)
    assert (written["counts"]["users"], written["counts"]["items"]) == (tried["users"], 0)
    assert twotower.json("deltas", "list") == [written]
    assert twotower.json("deltas", "show", "1") == written
    assert "80" in twotower.text("deltas", "list")
    assert written["base_manifest"][:12] in twotower.text("deltas", "show", "1")
    append_examples(project, some_examples(20, first_offset=80))
    (second,) = twotower.json("increment")
    assert second["span"]["first_offset"] == 80
    assert "nothing new to publish" in twotower.text("increment")


def test_deltas_belong_to_their_generation(twotower: Twotower, project: Project) -> None:
    twotower.json("increment")
    other = publish_tiny(project, seed=1)
    assert twotower.json("deltas", "list") == [], "the live generation has none"
    assert len(twotower.json("deltas", "list", "--generation", "g-000001")) == 1
    delta_folder(project.data_path, "g-000001").rename(delta_folder(project.data_path, other))
    code, words = twotower.refusal("deltas", "list")
    assert code == 4
    assert "is delta 1 of 'g-000001'" in words


def test_deltas_over_another_generation_of_that_name_are_refused(
    twotower: Twotower, project: Project
) -> None:
    twotower.json("increment")
    shutil.rmtree(project.data_path / "generations")
    (project.data_path / "CURRENT").unlink(missing_ok=True)
    assert publish_tiny(project, seed=2) == "g-000001"
    code, words = twotower.refusal("deltas", "list")
    assert code == 1
    assert "publish a delta against 'g-000001'" in words
    append_examples(project, some_examples(20, first_offset=80))
    code, words = twotower.refusal("increment")
    assert code == 1
    assert "nothing was written; remove the folder of that generation's deltas" in words


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("deltas", "lsit"), "list"),
        (("publish-dleta",), "publish-delta"),
        (("deltas", "show", "0"), "1"),
        (("--set", "increment.rwos=user", "increment"), "rows"),
    ],
)
def test_misspelt_names_are_refused(
    twotower: Twotower, words: tuple[str, ...], nearest: str
) -> None:
    code, said = twotower.refusal(*words)
    assert code == 2
    assert nearest in said


def test_what_is_not_there_is_said(twotower: Twotower) -> None:
    code, words = twotower.refusal("deltas", "show", "7")
    assert (code, "there is no delta 7; the last one is none" in words) == (5, True)
    code, words = twotower.refusal("deltas", "list", "--generation", "g-000009")
    assert (code, "g-000009" in words) == (5, True)
