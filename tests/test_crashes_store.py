"""Publishing, activation, roll-back, pins and prune, killed at every step until none is left."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from test_publishing_generation import publish_small
from twotower.failpoints import VARIABLE
from twotower.publishing.retention import pin, pins, prune
from twotower.publishing.store import ModelStore
from warm_process import KILLED, run

pytestmark = pytest.mark.slow


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
