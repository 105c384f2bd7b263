"""`twotower generations diff | pin | unpin | prune`, and damage as the command line meets it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from test_cli_generations import call, call_json, project, template
from twotower.cli import app as cli
from twotower.publishing.store import ModelStore

__all__ = ["project", "template"]


def test_diff_shows_days_figures_gates_rows_and_lists(project: Path) -> None:
    text = call(project, "generations", "diff", "g-000001", "g-000002", "-k", "5")
    for wanted in ("g-000002", "neither was trained", "2022-05-01", "trained events", "user_id"):
        assert wanted in text, wanted
    for wanted in ("ANN recall@100", "not_collapsed", "overlap@5", "12 users"):
        assert wanted in text, wanted
    found = call_json(project, "generations", "diff", "g-000001", "g-000003", "-k", "5")
    assert found["second"]["name"] == "g-000003"
    assert found["overlap"]["k"] == 5
    assert {gate["name"] for gate in found["gates"]} >= {"finite", "not_collapsed"}


def test_pin_prune_unpin(project: Path) -> None:
    store = ModelStore(project / "twotower-data")
    call(project, "generations", "activate", "g-000002")
    assert "g-000003 is pinned" in call(project, "generations", "pin", "g-000003")
    kept = call_json(project, "generations", "prune", "--keep", "0")
    assert kept["removed"] == []
    assert call_json(project, "generations", "unpin", "g-000003") == {"pinned": {}}
    dry = call(project, "generations", "prune", "--keep", "0", "--dry-run")
    assert "would be removed: nothing was written" in dry
    assert store.names() == ["g-000001", "g-000002", "g-000003"]
    done = call(project, "generations", "prune", "--keep", "0")
    assert "1 generations, 0 orphans" in done
    assert store.names() == ["g-000001", "g-000002"]


def truncate(live: Path, other: Path) -> None:
    overwrite(live / "item_vectors.npy", (live / "item_vectors.npy").read_bytes()[:-4096])


def flip_a_bit(live: Path, other: Path) -> None:
    content = bytearray((live / "index" / "vectors.npy").read_bytes())
    content[len(content) // 2] ^= 4
    overwrite(live / "index" / "vectors.npy", bytes(content))


def swap(live: Path, other: Path) -> None:
    for name in ("user_tower.onnx", "manifest.json", "manifest.b2sum"):
        overwrite(live / name, (other / name).read_bytes())


def mix(live: Path, other: Path) -> None:
    overwrite(live / "user_tower.onnx", (other / "user_tower.onnx").read_bytes())


def add_foreign(live: Path, other: Path) -> None:
    (live / "index" / "extra.npy").write_bytes(b"x")


def exchange(live: Path, other: Path) -> None:
    shutil.rmtree(live)
    shutil.copytree(other, live)


def damage_checkpoint(live: Path, other: Path) -> None:
    arrays = live / "checkpoint" / "arrays.safetensors"
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    overwrite(arrays, bytes(content))


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


COMMANDS = (
    ("retrieve", "--user", "697"),
    ("generations", "verify", "g-000001"),
    ("generations", "activate", "g-000001"),
    ("generations", "diff", "g-000001", "g-000002"),
)


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, swap, mix, add_foreign, exchange, damage_checkpoint]
)
def test_damage_is_found_before_anything_is_served_and_the_exit_code_is_4(
    project: Path,
    damage: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generations = project / "twotower-data" / "generations"
    damage(generations / "g-000001", generations / "g-000002")
    for command in COMMANDS:
        words = ["twotower", *command, "--config", str(project / "twotower.toml")]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        written = capsys.readouterr()
        assert (stopped.value.code, written.out) == (4, ""), command
        assert written.err.startswith("error: ")


def test_a_dry_run_changes_nothing(project: Path) -> None:
    store = ModelStore(project / "twotower-data")
    before = store.live()
    said = call(project, "generations", "activate", "g-000002", "--dry-run")
    assert "g-000002 would be live, sequence 2" in said
    assert store.live() == before
    call(project, "generations", "activate", "g-000002")
    back = call_json(project, "generations", "roll-back", "--dry-run")
    assert (back["generation"], back["sequence"]) == ("g-000001", 3)
    assert [entry.sequence for entry in store.activations()] == [1, 2]
    assert store.open().name == "g-000002"
