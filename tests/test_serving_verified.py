"""Who reads a generation's files before they are loaded, and of which files he is believed."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from serving_project import damage, publish_marked
from twotower.errors import CorruptArtifact
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.serving import verified, verifier
from twotower.serving.shared_memory import SharedMemory
from twotower.serving.status import VerifierStatus
from twotower.serving.verified import Verified
from twotower.serving.verifier import Verifier


class Project:
    """A store, its verifier and one worker's view of that; both look when a test says so."""

    def __init__(self, data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = data_path
        self.store = ModelStore(data_path)
        self.board = SharedMemory(1).verifier
        self.now_s = 0.0
        self.verifier = Verifier(data_path, self.board)
        self.verified = Verified(self.board, lambda: self.now_s)
        self.read: list[str] = []
        """Generations, as often as somebody read one whole."""
        verify = Generation.verify

        def reading(generation: Generation, *given: object) -> None:
            self.read.append(generation.name)
            verify(generation, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(Generation, "verify", reading)

    def publish(self, number: int) -> Generation:
        """Make a generation live that was written a while ago."""
        name = publish_marked(self.store, number)
        self.store.activate(name, force=True)
        self.read.clear()
        return self.store.open(name, verify=False)

    def look(self) -> None:
        """One look of the verifier."""
        self.verifier.tick()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(verifier, "_SETTLED_NS", 0)
    return Project(tmp_path, monkeypatch)


def test_what_the_verifier_read_no_worker_reads(project: Project) -> None:
    generation = project.publish(1)
    project.look()
    assert project.read == ["g-000001"]
    another_worker = Verified(project.board)
    assert project.verified(generation)
    assert another_worker(generation)
    project.look()
    assert project.read == ["g-000001"]


def test_a_roll_back_reads_nothing_again(project: Project) -> None:
    first = project.publish(1)
    project.look()
    project.publish(2)
    project.look()
    project.read.clear()
    project.store.roll_back()
    project.read.clear()
    project.look()
    assert project.verified(first)
    assert project.read == []


@pytest.mark.parametrize("member", ["index/vectors.npy", "user_tower.onnx"])
def test_a_file_that_changed_since_is_read_by_the_worker(project: Project, member: str) -> None:
    generation = project.publish(1)
    project.look()
    path = generation.path / member
    times_ns = path.stat()
    damage(project.path, generation.name, member)
    os.utime(path, ns=(times_ns.st_atime_ns, times_ns.st_mtime_ns))  # whoever hides it
    assert not project.verified(generation)  # the verifier may look again
    project.now_s = 1.1
    with pytest.raises(CorruptArtifact, match=f"{member} was altered"):
        project.verified(generation)


def test_a_copy_in_its_place_is_read_again(project: Project) -> None:
    generation = project.publish(1)
    project.look()
    path = generation.path / "user_tower.onnx"
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)
    assert not project.verified(generation)
    project.now_s = 1.1
    assert project.verified(generation)
    assert project.read == ["g-000001"] * 2


def test_what_the_verifier_found_damaged_is_refused_unread_until_repaired(
    project: Project,
) -> None:
    generation = project.publish(1)
    repair = damage(project.path, generation.name)
    project.look()
    assert project.read == ["g-000001"]
    with pytest.raises(CorruptArtifact, match=r"index/vectors.npy was altered"):
        project.verified(generation)
    assert project.read == ["g-000001"]
    repair()
    project.look()
    assert project.verified(generation)
    assert project.read == ["g-000001"] * 2


@pytest.mark.parametrize("error", [CorruptArtifact, OSError])
@pytest.mark.parametrize("is_past", [False, True])
def test_what_could_not_be_read_is_read_again_after_a_while(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: type[Exception], *, is_past: bool
) -> None:
    monkeypatch.setattr(verifier, "_AGAIN_S", 0.0 if is_past else 60.0)
    generation = project.publish(1)

    def failing(generation: Generation, *given: object) -> None:
        raise error("a bad page")

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "verify", failing)
        project.look()
    with pytest.raises(CorruptArtifact, match="a bad page"):
        project.verified(generation)
    project.look()
    assert len(project.read) == is_past
    if is_past:
        assert project.verified(generation)


def test_a_file_that_changes_while_it_is_read_has_no_verdict(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = project.publish(1)
    verify = Generation.verify

    def touched(generation: Generation, *given: object) -> None:
        verify(generation, *given)  # type: ignore[arg-type]
        os.utime(generation.path / "user_tower.onnx")

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "verify", touched)
        project.look()
    assert not project.verified(generation)
    project.look()
    assert project.verified(generation)


def test_files_that_changed_just_now_are_read_later(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the same tick of the kernel's clock would leave no trace."""
    generation = project.publish(1)
    changed_ns = generation.fingerprint().changed_ns
    monkeypatch.setattr(verifier, "_SETTLED_NS", 50_000_000)
    for passed_ns, read in ((49_000_000, []), (50_000_000, ["g-000001"])):
        monkeypatch.setattr(
            "twotower.serving.verifier.time.time_ns",
            partial(int, changed_ns + passed_ns),
        )
        project.look()
        assert project.read == read


def test_a_verifier_that_gets_on_is_waited_for_and_one_that_does_not_is_not(
    project: Project,
) -> None:
    generation = project.publish(1)
    for step in range(3):
        project.now_s = 0.6 * step
        project.board.write(VerifierStatus(pid=1, step=step))
        assert not project.verified(generation)
    project.now_s += 0.7
    assert not project.verified(generation)
    project.now_s += 0.31
    assert project.read == []
    assert project.verified(generation)
    assert project.read == ["g-000001"]


def test_a_verifier_that_is_kept_from_the_core_is_not_waited_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = project.publish(1)
    num_bytes = sum(entry.bytes for entry in generation.manifest.files.values())
    monkeypatch.setattr(verified, "_SLOWEST_BYTES_PER_S", num_bytes / 10)
    for step in range(12):  # ten seconds for the bytes, and two
        project.now_s = float(step)
        project.board.write(VerifierStatus(pid=1, step=step))
        assert not project.verified(generation)
    project.now_s = 12.0
    project.board.write(VerifierStatus(pid=1, step=99))
    assert project.verified(generation)
    assert project.read == ["g-000001"]


def test_every_part_that_is_read_is_told(project: Project) -> None:
    generation = project.publish(1)
    project.look()
    status = project.board.read(VerifierStatus)
    assert status is not None
    assert status.step > len(generation.manifest.files)


def test_a_verifier_that_died_is_not_waited_for(project: Project) -> None:
    generation = project.publish(1)
    project.board.write(VerifierStatus(pid=1, step=7))
    assert not project.verified(generation)
    project.board.write(VerifierStatus())
    assert project.verified(generation)
    assert project.read == ["g-000001"]


def test_nothing_live_and_a_damaged_pointer_are_nothing_to_the_verifier(project: Project) -> None:
    project.look()
    project.publish(1)
    (project.path / "generations" / "CURRENT").write_bytes(b"\0")
    project.look()
    (project.path / "generations" / "g-000001").rename(project.path / "elsewhere")
    project.look()
    assert project.read == []
