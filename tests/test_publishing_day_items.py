"""Items of the day: encoded by the tower that is live, withdrawn from all that follow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from test_serving_retriever import publish_live
from tiny_checkpoint import external_ids, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.data.ids import Id, IdKind, decode_ids
from twotower.errors import ConfigError, CorruptArtifact, DataError
from twotower.failpoints import VARIABLE
from twotower.publishing.day_items import (
    Added,
    add_items,
    decode_items,
    item_vectors,
    restore_items,
    withdraw_items,
)
from twotower.publishing.delta import delta_folder
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.item_overlay import overlay_folder, read_item_vectors
from twotower.publishing.item_register import (
    DayItem,
    read_register,
    register_fingerprint,
)
from twotower.publishing.retention import prune
from twotower.publishing.store import ModelStore
from twotower.publishing.trainer_vectors import trainer_item_vectors

ITEMS = external_ids("int", "item", 60)
NEW = [9_000_001, 9_000_000]


class Live:
    """A project whose newest generation is live."""

    def __init__(self, data_path: Path, kind: IdKind = "int", weight: float = 0.0) -> None:
        self.path = data_path
        self.store = ModelStore(data_path)
        self.publish(kind=kind, popularity_weight=weight)

    def publish(self, seed: int = 0, kind: IdKind = "int", popularity_weight: float = 0.0) -> None:
        checkpoint = tiny_checkpoint(seed=seed, kind=kind, popularity_weight=popularity_weight)
        self.name = publish_live(self.path, checkpoint)
        self.generation: Generation = self.store.open(self.name)
        self.encoder = Encoder.of(self.generation)

    def add(self, *items: DayItem) -> Added:
        return add_items(self.path, self.generation, self.encoder, items)

    def withdraw(self, *item_ids: Id) -> int:
        return withdraw_items(self.path, self.encoder, item_ids, "legal").number

    def corpus(self) -> list[Id]:
        return self.encoder.items.decode(self.generation.array("corpus.npy"))

    def vectors(self) -> dict[Id, np.ndarray]:
        register = read_register(self.path)
        found = item_vectors(self.path, self.generation, self.encoder, register)
        return dict(zip(decode_ids(found.item_ids), found.vectors, strict=True))


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def new(item_id: Id, genre: str = "genre 1") -> DayItem:
    return DayItem(item_id=item_id, features={"genre": genre})


def test_nothing_was_added_or_withdrawn(tmp_path: Path) -> None:
    assert read_register(tmp_path).number == 0
    assert register_fingerprint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_new_item_has_the_towers_vector_of_its_features(live: Live) -> None:
    """As an item with the unknown-ID row and the same features has it from the trainer."""
    added = live.add(new(NEW[0], "genre 3"), new(NEW[1], "genre 1"))
    assert (added.added, added.known, added.register.number) == (NEW, [], 1)
    checkpoint = tiny_checkpoint()
    checkpoint.items.rows[:] = 0
    found = live.vectors()
    assert list(found) == sorted(NEW)
    for item_id, position in ((NEW[0], 3), (NEW[1], 1)):
        (expected,) = trainer_item_vectors(checkpoint, np.array([position]))
        np.testing.assert_allclose(found[item_id], expected, atol=1e-6)


def test_popularity_of_a_new_item_is_the_least(tmp_path: Path) -> None:
    live = Live(tmp_path, weight=0.5)
    live.add(new(NEW[0]))
    (vector,) = live.vectors().values()
    assert len(vector) == 9
    known = live.encoder.item_vectors(np.arange(60))[:, -1]
    assert vector[-1] == known.min()
    assert known.max() > known.min()


def test_what_the_generation_returns_already_is_left_as_it_is(live: Live) -> None:
    known, outside = live.corpus()[5], next(i for i in ITEMS if i not in live.corpus())
    added = live.add(new(known), new(outside), new(NEW[0]))
    assert (added.added, added.known) == ([outside, NEW[0]], [known])
    assert set(live.vectors()) == {outside, NEW[0]}
    assert live.add(new(known)).register.number == 1  # nothing to do


def test_the_vectors_do_not_depend_on_who_else_came(live: Live, tmp_path: Path) -> None:
    many = [new(10_000_000 + n, f"genre {n % 5}") for n in range(40)]
    live.add(*many)
    together = live.vectors()
    other = Live(tmp_path / "other")
    for item in many[:7]:
        other.add(item)
    for item_id, vector in other.vectors().items():
        np.testing.assert_array_equal(vector, together[item_id])


def test_an_item_that_comes_again_has_the_new_features(live: Live) -> None:
    live.add(new(NEW[0], "genre 1"), new(NEW[1], "genre 1"))
    before = live.vectors()
    live.add(new(NEW[0], "genre 2"))
    after = live.vectors()
    assert not np.array_equal(before[NEW[0]], after[NEW[0]])
    np.testing.assert_array_equal(before[NEW[1]], after[NEW[1]])


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (DayItem(item_id=1, features={"colour": 1}), ConfigError),
        (DayItem(item_id="abc"), DataError),
    ],
)
def test_a_bad_item_costs_all_and_changes_nothing(
    live: Live, item: DayItem, error: type[Exception]
) -> None:
    with pytest.raises(error):
        live.add(new(NEW[0]), item)
    assert read_register(live.path).number == 0


def test_items_come_as_an_array_or_as_lines() -> None:
    items = [new(1), DayItem(item_id="b", display={"title": "T"})]
    assert decode_items(msgspec.json.encode(items)) == items
    lines = b"\n".join(msgspec.json.encode(item) for item in items)
    assert decode_items(lines + b"\n\n") == items
    with pytest.raises(DataError, match="in line 2"):
        decode_items(b'{"item_id": 1}\n{"item": 2}')
    with pytest.raises(DataError, match="JSON array"):
        decode_items(b'[{"item_id": 1}, 2]')


def test_the_next_generation_encodes_them_anew(live: Live) -> None:
    live.add(new(NEW[0]))
    before = live.vectors()[NEW[0]]
    live.publish(seed=7)
    assert read_item_vectors(live.path, live.generation, 1) is None
    assert not np.array_equal(live.vectors()[NEW[0]], before)
    assert read_item_vectors(live.path, live.generation, 1) is not None


def test_features_that_a_later_model_lacks_are_left_out(live: Live) -> None:
    live.add(new(NEW[0]))
    checkpoint = tiny_checkpoint(with_features=False)
    live.name = publish_live(live.path, checkpoint)
    live.generation = live.store.open(live.name)
    live.encoder = Encoder.of(live.generation)
    assert list(live.vectors()) == [NEW[0]]


# -- withdrawn


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_withdrawn_item_stays_out_of_later_generations(tmp_path: Path, kind: IdKind) -> None:
    live = Live(tmp_path, kind)
    gone = live.corpus()[3:5]
    unknown: Id = 424_242 if kind == "int" else "never heard of it"
    assert live.withdraw(*map(str, gone), unknown) == 1
    before = live.corpus()
    live.publish(seed=1, kind=kind)
    assert set(before) - set(live.corpus()) == set(gone)
    assert live.generation.manifest.counts["corpus"] == len(before) - 2
    kept = Checkpoint.load(live.generation.path / "checkpoint").corpus  # what a night goes on with
    assert set(live.encoder.items.decode(kept)) == set(before)
    assert restore_items(live.path, live.encoder, [gone[0]]).number == 2
    live.publish(seed=2, kind=kind)
    assert set(before) - set(live.corpus()) == {gone[1]}


def test_everything_withdrawn_publishes_nothing(live: Live) -> None:
    live.withdraw(*live.corpus())
    with pytest.raises(DataError, match="nothing was published"):
        live.publish(seed=1)


def test_withdrawing_twice_keeps_one_entry_and_the_last_reason(live: Live) -> None:
    live.withdraw(ITEMS[0], ITEMS[1])
    withdraw_items(live.path, live.encoder, [ITEMS[0]], "again")
    found = read_register(live.path)
    assert {entry.item_id: entry.reason for entry in found.withdrawn} == {
        ITEMS[0]: "again",
        ITEMS[1]: "legal",
    }
    assert (found.number, found.added_number) == (2, 0)


# -- files


def test_an_altered_register_is_refused(live: Live) -> None:
    live.withdraw(ITEMS[0])
    path = live.path / "overlays" / "items.json"
    path.write_bytes(path.read_bytes().replace(b"legal", b"LEGAL"))
    with pytest.raises(CorruptArtifact, match="checksum is wrong"):
        read_register(live.path)
    with pytest.raises(CorruptArtifact):
        live.withdraw(ITEMS[1])
    path.write_bytes(b'{"format_version": 99}')
    with pytest.raises(CorruptArtifact, match="upgrade"):
        read_register(live.path)


@pytest.mark.parametrize("member", ["item_vectors.npy", "item_ids.npy", "manifest.json"])
def test_an_altered_overlay_is_refused(live: Live, member: str) -> None:
    live.add(new(NEW[0]), new(NEW[1]))
    path = overlay_folder(live.path, live.name) / "o-000001" / member
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match="o-000001"):
        live.vectors()


def test_an_overlay_of_another_generation_is_refused(live: Live) -> None:
    live.add(new(NEW[0]))
    first = overlay_folder(live.path, live.name)
    live.publish(seed=1)
    first.rename(overlay_folder(live.path, live.name))
    with pytest.raises(CorruptArtifact, match="of 'g-000001'"):
        live.vectors()


def test_old_overlays_go(live: Live) -> None:
    for number in range(4):
        live.add(new(NEW[0] + number))
    names = sorted(path.name for path in overlay_folder(live.path, live.name).glob("o-*"))
    assert names == ["o-000003", "o-000004"]


STEPS = [
    *(f"items.register {step}" for step in ("write_aside", "fsync_aside", "rename")),
    *(f"items.vectors {step}" for step in ("written", "staged", "renamed")),
]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_the_items_before_or_after(live: Live, step: str) -> None:
    live.add(new(NEW[0]))
    code = (
        "import sys, pathlib\n"
        "from twotower.publishing.day_items import add_items\n"
        "from twotower.publishing.encoding import Encoder\n"
        "from twotower.publishing.item_register import DayItem\n"
        "from twotower.publishing.store import ModelStore\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "generation = ModelStore(path).open()\n"
        "items = [DayItem(item_id=9000001), DayItem(item_id=9000000)]\n"
        "add_items(path, generation, Encoder.of(generation), items)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(live.path)],
        check=False,
        env=os.environ | {VARIABLE: step},
    )
    assert done.returncode == -9
    assert set(live.vectors()) in ({NEW[0]}, set(NEW))
    live.add(new(NEW[0]), new(NEW[1]))
    assert set(live.vectors()) == set(NEW)
    assert not list(overlay_folder(live.path, live.name).glob(".staging-*"))


def test_a_prune_takes_along_what_the_day_made(live: Live) -> None:
    live.add(new(NEW[0]))
    names = [live.name]
    for seed in (1, 2, 3):
        live.publish(seed=seed)
        names.append(live.name)
    for name in names:
        for folder in (delta_folder(live.path, name), live.path / "increments" / name):
            folder.mkdir(parents=True)
            (folder / "rows").write_bytes(b"12345")
    lost = delta_folder(live.path, "g-000099")
    lost.mkdir()
    planned = prune(live.store, keep=1, dry_run=True)
    assert lost.exists()
    pruned = prune(live.store, keep=1)
    assert pruned.removed == planned.removed == names[:2]
    companions = [
        *(f"{kind}/{name}" for kind in ("deltas",) for name in [*names[:2], "g-000099"]),
        *(f"increments/{name}" for name in names[:2]),
        f"overlays/{names[0]}",
    ]
    assert pruned.orphans == planned.orphans == companions
    assert pruned.freed_bytes == planned.freed_bytes
    assert not any((live.path / companion).exists() for companion in companions)
    for name in names[2:]:
        assert delta_folder(live.path, name).exists()
        assert (live.path / "increments" / name).exists()
    assert read_register(live.path).number == 1
