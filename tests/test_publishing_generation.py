"""The store: whole generations only, whatever dies, whatever is altered."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from twotower.errors import ConfigError, CorruptArtifact, GateRefused, NotReady
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import (
    GateResult,
    IndexEntry,
    Manifest,
    Trained,
    Window,
    digest_bytes,
)
from twotower.publishing.store import ModelStore

REFUSED = GateResult(
    gate="ann_recall_at_100", measured=0.91, bar=0.95, needs="at least 0.9500", passed=False
)


def small_manifest(gates: list[GateResult] | None = None) -> Manifest:
    return Manifest(
        name="",
        kind="full",
        parent=None,
        created_at="2022-05-01T00:00:00.000Z",
        window=Window(from_day="2022-05-01", through_day="2022-05-01", cut_ms=1),
        trained=Trained(rows=3),
        vector_dim=4,
        counts={"users": 1, "items": 2, "corpus": 2},
        index=IndexEntry(engine="exact", num_items=2),
        gates=gates or [],
    )


def publish_small(
    store: ModelStore, seed: int = 0, gates: list[GateResult] | None = None
) -> Generation:
    with store.stage() as staging:
        vectors = np.random.default_rng(seed).normal(size=(300, 4)).astype(np.float32)
        staging.write_array("item_vectors.npy", vectors)
        staging.write_array("users/ids.npy", np.arange(seed, seed + 9))
        staging.write("user_tower.onnx", bytes([seed]) * 100)
        return staging.commit(small_manifest(gates))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def flip_bit(path: Path, offset: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.chmod(0o644)
    path.write_bytes(content)


# -- publish, activate, roll back


def test_a_published_generation_is_whole_but_not_live(store: ModelStore) -> None:
    generation = publish_small(store)
    assert store.names() == ["g-000001"] == [generation.name]
    assert store.live() is None
    with pytest.raises(NotReady, match="no generation is live"):
        store.open()
    opened = store.open("g-000001")
    assert opened.manifest == generation.manifest
    assert opened.manifest.trained.rows == 3
    assert opened.array("users/ids.npy").tolist() == list(range(9))
    assert opened.read("user_tower.onnx") == bytes(100)
    assert not opened.array("item_vectors.npy").flags.writeable


def test_files_are_read_only_and_checksums_are_those_of_b2sum(store: ModelStore) -> None:
    if shutil.which("b2sum") is None:
        pytest.skip("needs b2sum of GNU coreutils")
    path = publish_small(store).path
    for file in path.rglob("*.*"):
        assert file.stat().st_mode & 0o222 == 0
    command = ["b2sum", "--check", "--quiet", "manifest.b2sum"]
    assert subprocess.run(command, cwd=path, check=False).returncode == 0


def test_activation_moves_current_and_the_audit(store: ModelStore) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    assert store.activate("g-000001").sequence == 1
    second = store.activate("g-000002", reason="night of 2 May")
    assert (second.sequence, second.previous) == (2, "g-000001")
    assert store.open().name == "g-000002"
    assert [entry.reason for entry in store.activations()] == ["", "night of 2 May"]


def test_activating_what_is_live_changes_nothing(store: ModelStore) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    live = store.activate("g-000002")
    assert store.activate("g-000002") == live
    assert store.roll_back().generation == "g-000001"


def test_a_roll_back_of_a_roll_back_returns_and_the_sequence_only_grows(store: ModelStore) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    store.activate("g-000002")
    back = [store.roll_back() for _ in range(3)]
    assert [entry.generation for entry in back] == ["g-000001", "g-000002", "g-000001"]
    assert [entry.sequence for entry in back] == [3, 4, 5]
    assert {entry.action for entry in back} == {"roll_back"}


def test_nothing_to_roll_back_to(store: ModelStore) -> None:
    with pytest.raises(NotReady, match="no generation was live before"):
        store.roll_back()
    publish_small(store)
    store.activate("g-000001")
    with pytest.raises(NotReady, match="no generation was live before"):
        store.roll_back()


def test_a_roll_back_to_a_removed_generation_says_so(store: ModelStore) -> None:
    first = publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    store.activate("g-000002")
    first.path.rename(store.root / "elsewhere")
    with pytest.raises(NotReady, match="no generation 'g-000001'"):
        store.roll_back()
    assert store.open().name == "g-000002"


def test_a_removed_name_is_not_given_again_once_it_was_live(store: ModelStore) -> None:
    first = publish_small(store)
    store.activate("g-000001")
    first.path.rename(store.root / "elsewhere")
    assert publish_small(store).name == "g-000002"


# -- gates


def test_a_refused_generation_goes_live_only_by_force_and_the_audit_says_it(
    store: ModelStore,
) -> None:
    publish_small(store, 1)
    store.activate("g-000001")
    publish_small(store, 2, [REFUSED])
    wanted = r"gate 'ann_recall_at_100' measured 0\.9100, needs at least 0\.9500; the live"
    with pytest.raises(GateRefused, match=wanted) as refusal:
        store.activate("g-000002")
    assert refusal.value.exit_code == 3
    assert store.open().name == "g-000001"
    forced = store.activate("g-000002", force=True, reason="a known fault of the sample")
    assert forced.forced == ["ann_recall_at_100"]
    assert store.activations()[-1] == forced


# -- corruption


def corrupt_truncated(first: Path, second: Path) -> None:
    os.truncate(first / "item_vectors.npy", 4096)


def corrupt_empty(first: Path, second: Path) -> None:
    os.truncate(first / "user_tower.onnx", 0)


def corrupt_zero_page(first: Path, second: Path) -> None:
    content = bytearray((first / "item_vectors.npy").read_bytes())
    content[512:1024] = bytes(512)
    replace(first / "item_vectors.npy", bytes(content))


def corrupt_missing(first: Path, second: Path) -> None:
    (first / "users/ids.npy").unlink()


def corrupt_extra(first: Path, second: Path) -> None:
    (first / "users/extra.npy").write_bytes(b"x")


def corrupt_swapped(first: Path, second: Path) -> None:
    replace(first / "user_tower.onnx", (second / "user_tower.onnx").read_bytes())


def corrupt_link(first: Path, second: Path) -> None:
    (first / "user_tower.onnx").rename(first.parent / "moved")
    (first / "user_tower.onnx").symlink_to(first.parent / "moved")


def corrupt_linked_folder(first: Path, second: Path) -> None:
    (first / "users").rename(first.parent / "moved")
    (first / "users").symlink_to(first.parent / "moved")


def corrupt_pipe(first: Path, second: Path) -> None:
    (first / "user_tower.onnx").unlink()
    os.mkfifo(first / "user_tower.onnx")


def corrupt_foreign_manifest(first: Path, second: Path) -> None:
    for name in ("manifest.json", "manifest.b2sum"):
        replace(first / name, (second / name).read_bytes())


def corrupt_no_manifest(first: Path, second: Path) -> None:
    (first / "manifest.json").unlink()


def corrupt_foreign_folder(first: Path, second: Path) -> None:
    first.rename(first.parent / "moved")
    second.rename(first)


def corrupt_linked_generation(first: Path, second: Path) -> None:
    first.rename(first.parent / "moved")
    first.symlink_to(first.parent / "moved")


def replace(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (corrupt_truncated, "item_vectors.npy"),
        (corrupt_empty, "user_tower.onnx"),
        (corrupt_zero_page, "item_vectors.npy"),
        (corrupt_missing, "users/ids.npy"),
        (corrupt_extra, "users/extra.npy"),
        (corrupt_swapped, "user_tower.onnx"),
        (corrupt_link, "user_tower.onnx"),
        (corrupt_linked_folder, "users"),
        (corrupt_pipe, "user_tower.onnx"),
        (corrupt_foreign_manifest, "manifest.json"),
        (corrupt_no_manifest, "manifest.json"),
        (corrupt_foreign_folder, "manifest.json"),
        (corrupt_linked_generation, "g-000001"),
    ],
)
def test_every_corruption_is_found_and_named(
    store: ModelStore, corrupt: Callable[[Path, Path], None], named: str
) -> None:
    first, second = publish_small(store, 1), publish_small(store, 2)
    store.activate("g-000001")
    corrupt(first.path, second.path)
    with pytest.raises(CorruptArtifact, match=named) as refusal:
        store.open()
    assert refusal.value.exit_code == 4
    with pytest.raises(CorruptArtifact, match=named):
        ModelStore(store.root.parent).activate("g-000001")


def test_any_flipped_bit_is_found(store: ModelStore) -> None:
    generation = publish_small(store)
    rng = np.random.default_rng(0)
    for path in sorted(file for file in generation.path.rglob("*.*") if file.is_file()):
        sound = path.read_bytes()
        for offset in rng.integers(0, len(sound), 60).tolist():
            flip_bit(path, offset, int(rng.integers(8)))
            with pytest.raises(CorruptArtifact):
                store.open("g-000001")
            path.write_bytes(sound)
    assert store.open("g-000001").digest == generation.digest


def test_any_truncation_is_found(store: ModelStore) -> None:
    path = publish_small(store).path / "item_vectors.npy"
    sound = path.read_bytes()
    path.chmod(0o644)
    for size in range(0, len(sound), 512):
        path.write_bytes(sound[:size])
        with pytest.raises(CorruptArtifact, match=r"item_vectors\.npy"):
            store.open("g-000001")


def rewrite_manifest(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Forge a manifest with a right checksum, as an attacker or another version would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    replace(path / "manifest.json", content)
    replace(path / "manifest.b2sum", f"{digest_bytes(content)}  manifest.json\n".encode())


def test_a_newer_format_is_refused_with_one_clear_line(store: ModelStore) -> None:
    path = publish_small(store).path
    rewrite_manifest(path, lambda manifest: manifest.update(format_version=99, novelty=[1]))
    with pytest.raises(CorruptArtifact, match=r"version 99, this twotower reads 1 to [0-9]+;") as e:
        store.open("g-000001")
    assert "\n" not in str(e.value)


def test_an_unknown_field_of_a_known_version_is_refused(store: ModelStore) -> None:
    path = publish_small(store).path
    rewrite_manifest(path, lambda manifest: manifest.update(novelty=1))
    with pytest.raises(CorruptArtifact, match="novelty"):
        store.open("g-000001")


@pytest.mark.parametrize(
    "member",
    ["../../etc/passwd", "/etc/passwd", "a/../b", "", ".hidden", "a//b", "a\0b", "a" * 101, "a\\b",
     "manifest.json", "a/b/c/d/e/f/g"],
)  # fmt: skip
def test_a_manifest_cannot_name_a_file_outside(store: ModelStore, member: str) -> None:
    path = publish_small(store).path

    def climb(manifest: dict[str, object]) -> None:
        manifest["files"] = {member: {"bytes": 1, "blake2b": "0" * 64}}

    rewrite_manifest(path, climb)
    with pytest.raises(CorruptArtifact, match="plain files inside its folder"):
        store.open("g-000001", verify=False)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../g-000001", "/g-000001", "g-000001/", "g-000001\n", "g-000001\0", "g-00001",
     "g-٠٠٠٠٠١", "G-000001", "g-" + "1" * 4000, "%2e%2e", "\\\\host\\g-000001", ".staging-g-000001",
     "CURRENT"],
)  # fmt: skip
def test_only_a_plain_name_becomes_a_path(store: ModelStore, name: str) -> None:
    publish_small(store)
    with pytest.raises(ConfigError, match="expected the name of a generation"):
        store.open(name)
    with pytest.raises(ConfigError):
        store.activate(name)


def test_an_unknown_generation_names_the_known_ones(store: ModelStore) -> None:
    publish_small(store)
    with pytest.raises(NotReady, match=r"no generation 'g-000009'.*g-000001"):
        store.open("g-000009")


def test_arrays_of_objects_are_neither_written_nor_read(store: ModelStore, tmp_path: Path) -> None:
    with store.stage() as staging, pytest.raises(ValueError, match="Object arrays"):
        staging.write_array("x.npy", np.array([{}], dtype=object))
    path = tmp_path / "pickled.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    from twotower.publishing.generation import open_array

    with pytest.raises(CorruptArtifact):
        open_array(path)
    np.savez(tmp_path / "zip.npy", a=np.arange(3))
    with pytest.raises(CorruptArtifact):
        open_array(tmp_path / "zip.npy.npz")


def test_empty_arrays_open(store: ModelStore) -> None:
    with store.stage() as staging:
        staging.write_array("empty.npy", np.zeros((5, 0), np.int32))
        generation = staging.commit(small_manifest())
    assert generation.array("empty.npy").shape == (5, 0)


# -- CURRENT


def test_any_flipped_bit_of_current_is_found_and_an_activation_repairs_it(
    store: ModelStore,
) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    store.activate("g-000002")
    path = store.root / "CURRENT"
    sound = path.read_bytes()
    for offset in range(len(sound)):
        flip_bit(path, offset, offset % 8)
        with pytest.raises(CorruptArtifact):
            store.live()
        path.write_bytes(sound)
    assert store.open().name == "g-000002"
    flip_bit(path, sound.index(b"manifest") + 12, 0)
    repaired = store.activate("g-000001")
    assert (repaired.sequence, repaired.previous) == (3, "g-000002")
    assert store.open().name == "g-000001"


def test_current_that_names_an_exchanged_generation_is_refused(store: ModelStore) -> None:
    first = publish_small(store, 1)
    store.activate("g-000001")
    first.path.rename(store.root / "moved")
    (store.root / "activations.jsonl").unlink()
    current = (store.root / "CURRENT").read_bytes()
    (store.root / "CURRENT").unlink()
    publish_small(store, 5)
    (store.root / "CURRENT").write_bytes(current)
    with pytest.raises(CorruptArtifact, match="not the one that was activated"):
        store.open()


def test_current_may_be_no_link(store: ModelStore) -> None:
    publish_small(store)
    store.activate("g-000001")
    (store.root / "CURRENT").rename(store.root / "moved")
    (store.root / "CURRENT").symlink_to("moved")
    with pytest.raises(CorruptArtifact, match="symbolic link"):
        store.live()


def test_a_torn_audit_line_is_skipped_and_spoils_no_other(store: ModelStore) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    store.activate("g-000002")
    audit = store.root / "activations.jsonl"
    lines = audit.read_bytes().splitlines(keepends=True)
    audit.write_bytes(lines[0] + lines[1][:40])
    store.roll_back()
    assert [entry.sequence for entry in store.activations()] == [1, 2, 3]


def test_a_lost_current_does_not_turn_the_sequence_back(store: ModelStore) -> None:
    publish_small(store, 1)
    store.activate("g-000001")
    (store.root / "CURRENT").unlink()
    assert store.activate("g-000001").sequence == 2


# -- crashes and writers


class PowerCut(BaseException):
    """Stops at a step and, unlike a kill, runs the cleaning of context managers."""


class DiesAfter:
    """Raises at the n-th step."""

    def __init__(self, num_steps: int) -> None:
        self.left = num_steps
        self.name = ""

    def __call__(self, step: str) -> None:
        self.left -= 1
        self.name = step
        if self.left == 0:
            raise PowerCut(step)


def test_stopping_at_each_step_leaves_a_whole_generation_live(tmp_path: Path) -> None:
    steps: list[str] = []
    for num_steps in range(1, 100):
        path = tmp_path / str(num_steps)
        publish_small(ModelStore(path), 1)
        ModelStore(path).activate("g-000001")
        dies = DiesAfter(num_steps)
        store = ModelStore(path, at_step=dies)
        try:
            store.activate(publish_small(store, 2).name)
        except PowerCut:
            check_after_crash(path)
            steps.append(dies.name)
        else:
            break
    assert {"stage.made", "commit.rename", "activate.rename", "activate.audit"} <= set(steps)
    assert len(steps) == len(set(steps)) == num_steps - 1


def check_after_crash(path: Path) -> None:
    store = ModelStore(path)
    live, activation = store.open_live()
    assert live.name in ("g-000001", "g-000002")
    assert activation.sequence == int(live.name[-1])
    for name in store.names():
        store.open(name)
    again = publish_small(store, 3)
    assert store.activate(again.name).previous == live.name
    sequences = [entry.sequence for entry in store.activations()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert not [entry for entry in store.root.iterdir() if entry.name.startswith(".staging")]


KILLED_PUBLISHER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[3])
from test_publishing_generation import publish_small
from twotower.publishing.store import ModelStore
left = int(sys.argv[2])
def die(step):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
store = ModelStore(pathlib.Path(sys.argv[1]), at_step=die)
store.activate(publish_small(store, 2).name)
"""


@pytest.mark.parametrize("num_steps", [2, 4, 8, 11, 14, 17])
def test_a_killed_publisher_leaves_no_orphan_beyond_the_next_publish(
    tmp_path: Path, num_steps: int
) -> None:
    publish_small(ModelStore(tmp_path), 1)
    ModelStore(tmp_path).activate("g-000001")
    arguments = [str(tmp_path), str(num_steps), str(Path(__file__).parent)]
    killed = subprocess.run([sys.executable, "-c", KILLED_PUBLISHER, *arguments], check=False)
    assert killed.returncode == 9
    check_after_crash(tmp_path)


def test_a_failed_publish_leaves_nothing(store: ModelStore) -> None:
    with contextlib.suppress(FileExistsError), store.stage() as staging:
        staging.write("a.bin", b"x")
        staging.write("a.bin", b"y")
    assert store.names() == []
    assert [entry.name for entry in store.root.iterdir()] == [".publish.lock"]


def test_what_bears_the_name_of_an_orphan_is_removed_without_following_it(
    store: ModelStore, tmp_path: Path
) -> None:
    publish_small(store)
    (tmp_path / "precious").mkdir()
    (store.root / ".staging-g-000002").symlink_to(tmp_path / "precious")
    (store.root / ".staging-file").write_bytes(b"x")
    (store.root / ".staging-g-000009").mkdir()
    assert publish_small(store).name == "g-000002"
    assert (tmp_path / "precious").is_dir()
    assert not list(store.root.glob(".staging-*"))


def test_a_full_disk_leaves_the_live_generation_and_no_rubbish(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_small(store, 1)
    store.activate("g-000001")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            publish_small(store, 2)
    assert store.open().name == "g-000001"
    assert store.names() == ["g-000001"]
    assert not list(store.root.glob(".staging-*"))
    assert publish_small(store, 2).name == "g-000002"


def test_a_second_publisher_is_refused_and_the_first_is_not_disturbed(store: ModelStore) -> None:
    with store.stage() as staging:
        staging.write("a.bin", b"x")
        with pytest.raises(NotReady, match="another process is publishing"):
            publish_small(ModelStore(store.root.parent))
        staging.commit(small_manifest())
    assert store.names() == ["g-000001"]
    assert publish_small(store).name == "g-000002"


def test_a_roll_back_does_not_wait_for_a_publish(store: ModelStore) -> None:
    publish_small(store, 1)
    publish_small(store, 2)
    store.activate("g-000001")
    store.activate("g-000002")
    with store.stage():
        assert store.roll_back().generation == "g-000001"


def test_many_activations_at_once_each_get_their_own_number(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for seed in range(4):
        publish_small(store, seed)

    def activate(name: str) -> None:
        for _ in range(5):
            ModelStore(tmp_path).activate(name)

    threads = [threading.Thread(target=activate, args=(name,)) for name in store.names()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = store.activations()
    assert [entry.sequence for entry in history] == list(range(1, len(history) + 1))
    previous = [entry.previous for entry in history]
    assert previous == [None, *(entry.generation for entry in history[:-1])]
    assert history[-1] == store.live()


def test_a_held_activation_lock_is_reported(store: ModelStore) -> None:
    publish_small(store)
    impatient = ModelStore(store.root.parent, lock_timeout_s=0.0)
    with store.activating(), pytest.raises(NotReady, match="another process is activating"):
        impatient.activate("g-000001")


def test_every_file_and_folder_is_fsynced_before_the_rename(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        synced.append(f"rename {Path(target).name}")
        real_rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name what was fsynced")
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", renamed)
    generation = publish_small(store)
    before = synced[: synced.index("rename g-000001")]
    staged = store.root / ".staging-g-000001"
    names = [*generation.manifest.files, "manifest.json", "manifest.b2sum", "users", ""]
    assert {str(staged / name).rstrip("/") for name in names} <= set(before)
    assert synced[synced.index("rename g-000001") + 1] == str(store.root)
    store.activate(generation.name)
    place = synced.index("rename CURRENT")
    assert synced[place - 1].endswith(".CURRENT.new")
    assert synced[place + 1] == str(store.root)


def test_the_activation_record_is_strict_json(store: ModelStore) -> None:
    publish_small(store)
    activation = store.activate("g-000001")
    record = json.loads((store.root / "CURRENT").read_bytes())
    assert record["generation"] == "g-000001"
    assert record["sequence"] == 1
    assert msgspec.to_builtins(activation) == record
