"""Following what is live: forwards only, whole generations only, the old one until then."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

from serving_project import UNKNOWN_USER, USERS, damage, eventually, publish_marked
from twotower.data.ids import Id
from twotower.index import VectorIndex
from twotower.publishing.activation import read_current, write_current
from twotower.publishing.store import ModelStore
from twotower.serving import reload
from twotower.serving.messages import RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.reload import Follower
from twotower.serving.retriever import Found, Retriever
from twotower.serving.served import find
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory, read_counters


class Project:
    """A store with a follower that looks only when a test says so."""

    def __init__(self, data_path: Path, **settings: float) -> None:
        self.store = ModelStore(data_path)
        self._memory = SharedMemory(1)
        self.changes = 0
        self.follower = Follower(
            data_path,
            ServingSettings(**settings),  # type: ignore[arg-type]
            Metrics(CounterBlock(self._memory.counters(0))),
            self._changed,
        )

    def _changed(self, follower: Follower) -> None:
        assert follower is self.follower
        self.changes += 1

    def publish(self, number: int, *, live: bool = True) -> str:
        name = publish_marked(self.store, number)
        if live:
            self.store.activate(name, force=True)
        return name

    def served(self) -> tuple[str, int]:
        """Name and sequence after one look."""
        self.follower.tick()
        assert self.follower.served is not None
        activation = self.follower.served.activation
        assert self.follower.served.retriever.generation == activation.generation
        return activation.generation, activation.sequence

    def publishes(self, result: str) -> float:
        return self.counted("twotower_publish_total", f'"full","{result}"')

    def counted(self, name: str, labels: str = "") -> float:
        counters = read_counters(self._memory.counters(0))
        return counters.get(f'["{name}",[{labels}],""]', 0.0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_nothing_live_is_no_problem(project: Project) -> None:
    assert not project.follower.has_looked.is_set()
    project.follower.tick()
    assert (project.follower.served, project.follower.problem) == (None, None)
    assert project.follower.has_looked.is_set()
    project.publish(1, live=False)
    project.follower.tick()
    assert project.follower.served is None


def test_it_follows_activations_and_roll_backs(project: Project) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)
    assert project.served() == ("g-000002", 2)
    project.store.roll_back()
    assert project.served() == ("g-000001", 3)
    assert project.changes == 3
    assert (project.publishes("ok"), project.publishes("rolled_back")) == (2, 1)
    project.follower.tick()
    assert project.changes == 3


def test_a_roll_back_while_the_next_one_is_verified_ends_the_waiting(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    with monkeypatch.context() as patch:
        patch.setattr(project.follower, "_verified", lambda generation: False)
        project.publish(2)
        assert project.served() == ("g-000001", 1)
        assert project.follower.is_awaiting
        project.publish(3)
        assert project.served() == ("g-000001", 1)
        project.store.activate("g-000001", force=True)
        assert project.served() == ("g-000001", 4)
    assert not project.follower.is_awaiting


def test_searches_that_an_index_lost_are_counted_through_a_swap(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, num_lost in ((1, 3), (2, 2)):
        project.publish(number)
        project.follower.tick()
        monkeypatch.setattr(VectorIndex, "lost_searches", num_lost)
        project.follower.tick_day()
        project.follower.tick_day()
    assert project.counted("twotower_index_lost_searches_total") == 5


def test_the_newest_of_several_activations_is_followed(project: Project) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)
    project.store.roll_back()
    retriever = project.follower.served and project.follower.served.retriever
    assert project.served() == ("g-000001", 3)
    assert project.follower.served is not None
    assert project.follower.served.retriever is retriever  # nothing to load


def test_the_old_generation_is_retired(project: Project) -> None:
    project.publish(1)
    project.follower.tick()
    assert project.follower.served is not None
    running = project.follower.served  # a request that is not answered yet
    old = weakref.ref(running.retriever)
    project.publish(2)
    assert project.served() == ("g-000002", 2)
    gc.collect()
    kept = old()
    assert kept is not None
    assert kept.retrieve(USERS[0], 3).generation == "g-000001"
    del running, kept
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("member", ["index/vectors.npy", "user_tower.onnx", "manifest.json"])
def test_a_damaged_generation_is_not_served_and_reported_once(
    project: Project, tmp_path: Path, member: str
) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)
    repair = damage(tmp_path, "g-000002", member)
    assert project.served() == ("g-000001", 1)
    assert "g-000002" in (project.follower.problem or "")
    project.follower.tick()
    assert (project.publishes("corrupt"), project.changes) == (1, 2)
    repair()
    assert project.served() == ("g-000001", 1)  # left alone for retry_s
    project.publish(3)
    assert project.served() == ("g-000003", 3)
    assert project.follower.problem is None


def test_a_repaired_generation_is_served_after_a_while(tmp_path: Path) -> None:
    project = Project(tmp_path, retry_s=0.0)
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)
    repair = damage(tmp_path, "g-000002")
    for _ in range(3):
        assert project.served() == ("g-000001", 1)
    assert project.publishes("corrupt") == 1
    repair()
    assert project.served() == ("g-000002", 2)
    assert project.follower.problem is None


def test_a_generation_that_is_gone_is_rejected(project: Project, tmp_path: Path) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)
    (tmp_path / "generations" / "g-000002").rename(tmp_path / "elsewhere")
    assert project.served() == ("g-000001", 1)
    assert project.publishes("rejected") == 1


def test_a_damaged_pointer_changes_nothing_and_heals(project: Project, tmp_path: Path) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    current = tmp_path / "generations" / "CURRENT"
    content = current.read_bytes()
    for bad in (b"", content[:-9], content.replace(b"g-000001", b"g-000002"), b"\0" * 10):
        current.write_bytes(bad)
        assert project.served() == ("g-000001", 1)
        assert project.follower.problem
    current.unlink()
    assert project.served() == ("g-000001", 1)
    assert "nothing is live any more" in (project.follower.problem or "")
    current.write_bytes(content)
    assert project.served() == ("g-000001", 1)
    assert project.follower.problem is None


def test_a_sequence_never_goes_backwards(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "generations"
    project.publish(1)
    first = read_current(root)
    assert first is not None
    project.publish(2)
    assert project.served() == ("g-000002", 2)
    write_current(root, first)  # the store was restored from a copy
    assert project.served() == ("g-000002", 2)
    assert "sequence 1 of 'g-000001' is below" in (project.follower.problem or "")


def _read_ahead(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The files that the kernel is asked to have in memory from now on."""
    asked: set[Path] = set()
    advise = os.posix_fadvise

    def asking(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        asked.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        advise(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", asking)
    return asked


def test_the_next_generation_is_opened_with_rests_and_served_without(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[str] = []
    monkeypatch.setattr(reload, "Rest", lambda factor: lambda: rests.append(f"{factor}"))
    project.publish(1)
    project.follower.tick()
    assert rests == []  # nobody waits for an answer yet
    name = project.publish(2)
    asked = _read_ahead(monkeypatch)
    assert project.served() == ("g-000002", 2)
    folder = tmp_path / "generations" / name
    assert asked >= {folder / "index/vectors.npy", folder / "user_tower.onnx"}
    assert not any(path.is_relative_to(folder / "checkpoint") for path in asked)
    assert len(rests) > 20  # files
    assert float(rests[0]) > 1
    rests.clear()
    assert project.follower.served is not None
    project.follower.served.retriever.base.file("user_tower.onnx")
    assert rests == []


def test_the_next_generation_is_warmed_with_recent_requests(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Id]] = []

    def record(retriever: Retriever, request: RetrieveRequest) -> Found:
        served = project.follower.served
        assert served is None or served.retriever is not retriever, "warmed after the swap"
        asked.append((retriever.generation, request.user_id))
        return find(retriever, request)

    monkeypatch.setattr(reload, "find", record)
    project.publish(1)
    project.follower.tick()
    assert {user for _, user in asked} >= {USERS[0], USERS[-1]}
    project.follower.recent_requests.append(RetrieveRequest(user_id=UNKNOWN_USER))
    project.follower.recent_requests.append(
        RetrieveRequest(user_id=1, features={"of another model": 1})
    )
    asked.clear()
    project.publish(2)
    assert project.served() == ("g-000002", 2)
    assert ("g-000002", UNKNOWN_USER) in asked
    assert {generation for generation, _ in asked} == {"g-000002"}


def test_answers_that_are_not_whole_are_never_served(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)

    def broken(retriever: Retriever, request: RetrieveRequest) -> Found:
        found = find(retriever, request)
        return found._replace(scores=found.scores * float("nan"))

    def short(retriever: Retriever, request: RetrieveRequest) -> Found:
        found = find(retriever, request)
        return found._replace(positions=found.positions[:-1])

    for fault in (broken, short):
        monkeypatch.setattr(reload, "find", fault)
        project.follower._retry_at_s = 0.0
        assert project.served() == ("g-000001", 1)
        assert "finite ones were expected" in (project.follower.problem or "")
    assert project.publishes("corrupt") == 2


def test_whatever_goes_wrong_the_old_one_is_served(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.publish(1)
    assert project.served() == ("g-000001", 1)
    project.publish(2)

    def fails(*_: object, **__: object) -> Retriever:
        raise MemoryError("none left")

    monkeypatch.setattr(reload, "Retriever", fails)
    assert project.served() == ("g-000001", 1)
    assert project.follower.problem == "MemoryError: none left"
    assert project.publishes("rejected") == 1


def test_the_thread_follows_and_stops(tmp_path: Path) -> None:
    project = Project(tmp_path, poll_s=0.01)
    project.follower.start()
    project.publish(1)
    served = eventually(lambda: project.follower.served)
    assert served is not None
    assert served.activation.generation == "g-000001"
    project.follower.stop()
    served = project.follower.served
    project.publish(2)
    assert project.follower.served is served
