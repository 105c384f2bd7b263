"""Publishing, activation, roll-back, pins and prune: killed at every step, paused, and at once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_publishing_generation import publish_small
from twotower.errors import LineageError, NotReady
from twotower.failpoints import VARIABLE
from twotower.publishing.retention import pin, pins, prune
from twotower.publishing.store import ModelStore
from warm_process import KILLED, end, run, start

pytestmark = pytest.mark.slow

REFUSED = NotReady.exit_code


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four generations: the third is live, the second was before it, nobody needs the first."""
    folder = tmp_path_factory.mktemp("store")
    store = ModelStore(folder)
    for seed in (1, 2, 3, 4):
        publish_small(store, seed)
    for name in ("g-000001", "g-000002", "g-000003"):
        store.activate(name)
    return folder


def publish_and_activate(folder: Path) -> None:
    store = ModelStore(folder)
    store.activate(publish_small(store, 5).name)


def activate(folder: Path) -> None:
    ModelStore(folder).activate("g-000004")


def roll_back(folder: Path) -> None:
    ModelStore(folder).roll_back()


def pin_the_first(folder: Path) -> None:
    pin(ModelStore(folder), "g-000001", "the baseline")


def prune_the_first(folder: Path) -> None:
    prune(ModelStore(folder), keep=1)


@pytest.mark.parametrize(
    ("work", "live_after"),
    [
        (publish_and_activate, "g-000005"),
        (activate, "g-000004"),
        (roll_back, "g-000002"),
        (pin_the_first, "g-000003"),
        (prune_the_first, "g-000003"),
    ],
)
def test_killed_at_every_step(
    template: Path, tmp_path: Path, work: Callable[[Path], None], live_after: str
) -> None:
    for count in itertools.count(1):
        folder = shutil.copytree(template, tmp_path / str(count))
        exit_code = run(work, folder, variables={VARIABLE: f"*:{count}"})
        check(folder, {live_after} if exit_code == 0 else {"g-000003", live_after})
        if exit_code == 0:
            break
        assert exit_code == KILLED
    assert count > 2


@contextmanager
def stopped_at(step: str, work: Callable[[Path], None], folder: Path) -> Iterator[None]:
    """While the block runs `work` stands still at a step, holding what it locked; then it ends."""
    process = start(work, folder, variables={VARIABLE: f"{step}:1:stop"})
    assert process.pid is not None
    try:
        wait_until_stopped(process.pid)
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert end(process) == 0


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the process does not stop"
        time.sleep(0.01)


@pytest.mark.parametrize("step", ["stage.made", "commit.folders", "commit.rename"])
def test_a_paused_publish_keeps_others_out_and_a_roll_back_in(
    template: Path, tmp_path: Path, step: str
) -> None:
    folder = shutil.copytree(template, tmp_path / "store")
    store = ModelStore(folder)
    with stopped_at(step, publish, folder):
        with pytest.raises(NotReady, match="another process is publishing"):
            publish_small(store, 6)
        with pytest.raises(NotReady, match="another process is publishing"):
            prune(store, keep=0)
        assert store.roll_back().generation == "g-000002"
        for name in store.names():
            store.open(name)
    assert store.names()[-1] == "g-000005"
    check(folder, {"g-000002"})


@pytest.mark.parametrize("step", ["activate.locked", "activate.fsync_aside", "activate.rename"])
def test_a_paused_activation_keeps_others_out(template: Path, tmp_path: Path, step: str) -> None:
    folder = shutil.copytree(template, tmp_path / "store")
    impatient = ModelStore(folder, lock_timeout_s=0.1)
    with stopped_at(step, activate, folder):
        with pytest.raises(NotReady, match="another process is activating"):
            impatient.roll_back()
        assert impatient.open_live()[0].name in ("g-000003", "g-000004")
        publish_small(impatient, 6)
    assert impatient.open_live()[0].name == "g-000004"
    check(folder, {"g-000004"})


def test_who_was_paused_before_his_activation_cannot_undo_a_later_one(
    template: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(template, tmp_path / "store")
    store = ModelStore(folder)
    with stopped_at("commit.parent", publish_and_activate_if_nothing_newer, folder):
        store.roll_back()
    assert store.open_live()[0].name == "g-000002"
    assert store.names()[-1] == "g-000005"
    check(folder, {"g-000002"})


def test_of_publishers_at_once_one_wins(template: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(template, tmp_path / "store")
    with stopped_at("stage.swept", publish, folder):
        others = [start(publish_or_say_so, folder) for _ in range(4)]
        assert [end(process) for process in others] == [REFUSED] * 4
    assert ModelStore(folder).names()[-1] == "g-000005"
    crowd = [start(publish_or_say_so, folder) for _ in range(4)]
    results = [end(process) for process in crowd]
    assert set(results) <= {0, REFUSED}
    assert len(ModelStore(folder).names()) == 5 + results.count(0) > 5
    check(folder, {"g-000003"})


def publish(folder: Path) -> None:
    publish_small(ModelStore(folder), 5)


def publish_or_say_so(folder: Path) -> None:
    try:
        publish_small(ModelStore(folder), 7)
    except NotReady:
        os._exit(REFUSED)


def publish_and_activate_if_nothing_newer(folder: Path) -> None:
    store = ModelStore(folder)
    sequence = store.open_live()[1].sequence
    try:
        store.activate(publish_small(store, 5).name, only_after=sequence)
    except LineageError:
        return
    raise AssertionError("an activation that was decided before a roll-back undid it")


def check(folder: Path, may_be_live: set[str]) -> None:
    """The store is as before or as after, whole; it works on; two prunes clean it up."""
    store = ModelStore(folder)
    live, activation = store.open_live()
    assert live.name in may_be_live
    assert pins(store) in ({}, {"g-000001": "the baseline"})
    for name in store.names():
        store.open(name)
    published = publish_small(store, 9)
    following = store.activate(published.name)
    assert (following.previous, following.sequence) == (live.name, activation.sequence + 1)
    sequences = [entry.sequence for entry in store.activations()]
    assert sequences == list(range(1, len(sequences) + 1))
    for _ in range(2):
        prune(store, keep=0)
    assert set(store.names()) == {live.name, published.name, *pins(store)}
    hidden = {path.name for path in store.root.iterdir() if path.name.startswith(".")}
    assert hidden == {".publish.lock", ".activate.lock"}
