"""Prune removes what nobody can need, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from test_publishing_generation import publish_small, small_manifest
from twotower.errors import ConfigError, CorruptArtifact, NotReady
from twotower.publishing.retention import pin, pins, prune, unpin
from twotower.publishing.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Six generations; the fifth is live, trained from the second; the fourth was live before."""
    store = ModelStore(tmp_path)
    for seed in (1, 2, 3, 4):
        publish_small(store, seed)
    with store.stage() as staging:
        staging.write("user_tower.onnx", b"child")
        staging.commit(msgspec.structs.replace(small_manifest(), parent="g-000002"))
    publish_small(store, 6)
    store.activate("g-000004")
    store.activate("g-000005")
    return store


def test_only_what_nobody_needs_is_removed(store: ModelStore) -> None:
    pin(store, "g-000001", "the baseline")
    pruned = prune(store, keep=0)
    assert pruned.removed == ["g-000003", "g-000006"]
    assert store.names() == ["g-000001", "g-000002", "g-000004", "g-000005"]
    assert pruned.kept == {
        "g-000001": ["pinned: the baseline"],
        "g-000002": ["parent of the live one"],
        "g-000004": ["a roll-back returns to it"],
        "g-000005": ["live"],
    }
    assert store.roll_back().generation == "g-000004"
    assert store.open().name == "g-000004"


def test_the_newest_stay(store: ModelStore) -> None:
    assert prune(store, keep=2).removed == ["g-000001", "g-000003"]
    assert prune(store, keep=100).removed == []


def test_a_dry_run_removes_nothing(store: ModelStore) -> None:
    before = sorted(store.root.rglob("*"))
    dry = prune(store, keep=0, dry_run=True)
    assert sorted(store.root.rglob("*")) == before
    done = prune(store, keep=0)
    assert (dry.removed, dry.freed_bytes) == (done.removed, done.freed_bytes)
    assert dry.freed_bytes > 0


def test_orphans_are_removed_and_links_not_followed(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (store.root / ".staging-g-000009").mkdir()
    (store.root / ".removed-g-000001").symlink_to(tmp_path / "precious")
    (store.root / ".CURRENT.new").write_bytes(b"{")
    pruned = prune(store, keep=9)
    assert pruned.orphans == [".CURRENT.new", ".removed-g-000001", ".staging-g-000009"]
    assert (tmp_path / "precious").is_dir()
    assert prune(store, keep=9).orphans == []


def test_a_running_publish_is_not_disturbed(store: ModelStore) -> None:
    with store.stage() as staging:
        with pytest.raises(NotReady, match="another process is publishing"):
            prune(store, keep=0)
        staging.write("user_tower.onnx", b"x")
        staging.commit(small_manifest())
    assert "g-000007" in store.names()


def test_nothing_is_removed_while_what_is_live_cannot_be_known(store: ModelStore) -> None:
    current = store.root / "CURRENT"
    sound = current.read_bytes()
    current.write_bytes(sound[:-9])
    with pytest.raises(CorruptArtifact):
        prune(store, keep=0)
    current.write_bytes(sound)
    (store.root / "pins.json").write_bytes(b"{}")
    with pytest.raises(CorruptArtifact, match=r"pins\.json"):
        prune(store, keep=0)
    assert len(store.names()) == 6


def test_before_the_first_activation_everything_stays(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert prune(store, keep=0).removed == []
    assert not store.root.exists()
    publish_small(store)
    assert prune(store, keep=0).removed == []


def test_pins_come_and_go(store: ModelStore) -> None:
    pin(store, "g-000003")
    pin(store, "g-000001", "x")
    assert pins(store) == {"g-000001": "x", "g-000003": ""}
    assert unpin(store, "g-000003")
    assert not unpin(store, "g-000003")
    assert pins(store) == {"g-000001": "x"}
    with pytest.raises(NotReady, match="no generation 'g-000099'"):
        pin(store, "g-000099")
    with pytest.raises(ConfigError):
        pin(store, "../g-000001")


def test_a_generation_that_is_not_there_names_the_nearest(store: ModelStore) -> None:
    with pytest.raises(NotReady, match="did you mean 'g-000006'"):
        store.open("g-0000006")
