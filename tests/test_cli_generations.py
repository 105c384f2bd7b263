"""`twotower generations` and `twotower retrieve` as their user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny_checkpoint import tiny_checkpoint
from twotower.cli import app as cli
from twotower.errors import ConfigError, CorruptArtifact, GateRefused, NotReady, TwoTowerError
from twotower.index.settings import IndexSettings
from twotower.publishing.generation import Generation
from twotower.publishing.publisher import publish
from twotower.publishing.settings import GateSettings, PublishingSettings
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

PROJECT = """
config_version = 1
[events]
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good generations, the first one live, and a third that a gate refused."""
    root = tmp_path_factory.mktemp("project")
    (root / "twotower.toml").write_text(PROJECT)
    store = ModelStore(root / "twotower-data")
    for seed in (1, 2):
        publish(tiny_checkpoint(seed=seed), store, index=IndexSettings())
    strict = PublishingSettings(gates=GateSettings(max_mean_cosine=0.0))
    publish(tiny_checkpoint(seed=3), store, index=IndexSettings(), settings=strict)
    store.activate("g-000001")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


def call(project: Path, *words: str) -> str:
    """Run a command; return what it wrote to stdout, or raise what it refused with."""
    arguments = [*words, "--config", str(project / "twotower.toml")]
    done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    if isinstance(done.exception, TwoTowerError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def call_json(project: Path, *words: str) -> Any:
    return json.loads(call(project, *words, "--json"))


def test_list_shows_what_is_live_and_what_was_refused(project: Path) -> None:
    lines = {line.split()[1]: line for line in call(project, "generations", "list").splitlines()
             if "g-0" in line}  # fmt: skip
    assert [name for name, line in lines.items() if " live " in line] == ["g-000001"]
    assert "refused by not_collapsed" in lines["g-000003"]
    assert "passed" in lines["g-000002"]
    assert "2022-05-01" in lines["g-000001"]


def test_a_generation_is_published_once_more_for_another_engine(project: Path) -> None:
    told = call_json(project, "generations", "republish", "g-000001", "--engine", "faiss_ivf")
    folder = project / "twotower-data" / "generations"
    one, other = (Generation.open(folder / name) for name in ("g-000001", told["name"]))
    assert (told["name"], told["parent"]) == ("g-000004", one.manifest.parent)
    assert (one.manifest.index.engine, other.manifest.index.engine) == ("exact", "faiss_ivf")
    for member in ("item_vectors.npy", "items/display.npy", "user_id_embeddings.npy"):
        assert one.read(member) == other.read(member)
    answers = [Retriever(generation).retrieve(700).candidates for generation in (one, other)]
    assert [found.item_id for found in answers[0]] == [found.item_id for found in answers[1]]
    assert call_json(project, "generations", "list")["live"]["generation"] == "g-000001"


def test_an_unknown_engine_publishes_nothing(project: Path) -> None:
    with pytest.raises(ConfigError, match="unknown index engine 'fais'; known: auto, exact"):
        call(project, "generations", "republish", "g-000001", "--engine", "fais")
    assert len(call_json(project, "generations", "list")["generations"]) == 3


def test_list_as_json(project: Path) -> None:
    listed = call_json(project, "generations", "list")
    assert listed["live"]["generation"] == "g-000001"
    assert [entry["live"] for entry in listed["generations"]] == [True, False, False]
    assert listed["generations"][2]["refused_by"] == ["not_collapsed"]


def test_a_damaged_generation_does_not_hide_the_others(project: Path) -> None:
    path = project / "twotower-data" / "generations" / "g-000002" / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(b"{}")
    assert "damaged" in call(project, "generations", "list")
    listed = call_json(project, "generations", "list")["generations"]
    assert "manifest.json was altered" in listed[1]["damaged"]
    assert listed[0]["live"]


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "twotower.toml").write_text(PROJECT)
    assert "nothing is published yet" in call(tmp_path, "generations", "list")
    assert call_json(tmp_path, "generations", "list") == {"live": None, "generations": []}
    assert not (tmp_path / "twotower-data").exists()


def test_show(project: Path) -> None:
    text = call(project, "generations", "show", "g-000003")
    for wanted in ("9 rows", "57 corpus", "exact", "ann_recall_at_100", "not_collapsed", "refused"):
        assert wanted in text
    shown = call_json(project, "generations", "show", "g-000003")
    assert shown["trained"]["rows"] == 9
    assert "item_vectors.npy" in shown["files"]


def test_verify_finds_damage(project: Path) -> None:
    assert "g-000002 is whole" in call(project, "generations", "verify", "g-000002")
    assert call_json(project, "generations", "verify", "g-000002")["whole"] is True
    path = project / "twotower-data" / "generations" / "g-000002" / "user_tower.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=r"user_tower\.onnx"):
        call(project, "generations", "verify", "g-000002")


def test_activate_and_roll_back(project: Path) -> None:
    assert "g-000002 is live, sequence 2" in call(project, "generations", "activate", "g-000002")
    back = call_json(project, "generations", "roll-back", "--reason", "repeats")
    assert (back["generation"], back["sequence"], back["reason"]) == ("g-000001", 3, "repeats")
    assert ModelStore(project / "twotower-data").open().name == "g-000001"


def test_force_is_needed_for_a_refused_generation_and_is_audited(project: Path) -> None:
    with pytest.raises(GateRefused, match="--force"):
        call(project, "generations", "activate", "g-000003")
    forced = call(project, "generations", "activate", "g-000003", "--force")
    assert "overruling not_collapsed" in forced
    audit = ModelStore(project / "twotower-data").activations()
    assert audit[-1].forced == ["not_collapsed"]


def test_retrieve_shows_generation_clicks_and_items(project: Path) -> None:
    text = call(project, "retrieve", "--user", "697", "-k", "4")
    assert "user 697 · generation g-000001, sequence 1" in text
    assert "recent clicks, newest first" in text
    assert "genre" in text
    answer = call_json(project, "retrieve", "--user", "697", "-k", "4")
    assert answer["user_id"] == 697
    assert answer["generation"] == "g-000001"
    assert [candidate["rank"] for candidate in answer["candidates"]] == [1, 2, 3, 4]
    for candidate in answer["candidates"]:
        assert str(candidate["item_id"]) in text
        assert f"{candidate['score']:.4f}" in text


def test_retrieve_for_a_user_never_seen(project: Path) -> None:
    features = json.dumps({"city": "Oslo", "age": 33})
    plain = call_json(project, "retrieve", "--user", "99", "-k", "3")
    told = call_json(project, "retrieve", "--user", "99", "-k", "3", "--features", features)
    assert plain["degraded"] == ["unknown_user"]
    assert told["degraded"] == [
        "unknown_user",
        *(f"feature:{n}=missing" for n in ("tags", "joined")),
    ]
    assert plain["candidates"] != told["candidates"]
    text = call(project, "retrieve", "--user", "99", "--features", features)
    assert "degraded: unknown_user" in text


def test_retrieve_from_a_named_generation(project: Path) -> None:
    text = call(project, "retrieve", "--user", "697", "--generation", "g-000002")
    assert "generation g-000002, not live" in text
    with pytest.raises(NotReady, match="g-000099"):
        call(project, "retrieve", "--user", "697", "--generation", "g-000099")


def test_given_clicks_and_seen_items(project: Path) -> None:
    best = str(
        call_json(project, "retrieve", "--user", "697", "-k", "1")["candidates"][0]["item_id"]
    )
    clicked = call_json(project, "retrieve", "--user", "697", "-k", "60", "--recent", best)
    assert [str(click["item_id"]) for click in clicked["recent"]] == [best]
    assert best not in [str(candidate["item_id"]) for candidate in clicked["candidates"]]
    everything = call_json(project, "retrieve", "--user", "697", "-k", "60", "--include-seen")
    assert len(everything["candidates"]) == 57


@pytest.mark.parametrize("features", ["{", "[1]", '"Oslo"', "null"])
def test_features_must_be_an_object(project: Path, features: str) -> None:
    with pytest.raises(TwoTowerError, match="expected --features to be a JSON object") as refusal:
        call(project, "retrieve", "--user", "697", "--features", features)
    assert refusal.value.exit_code == 2


def test_k_below_one_is_a_usage_error(project: Path) -> None:
    arguments = ["retrieve", "--user", "1", "-k", "0", "-c", str(project / "twotower.toml")]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 2
