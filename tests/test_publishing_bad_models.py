"""Models that were spoilt on purpose are refused, each by a gate that is named; good ones pass.

The lineage is the toy log, made larger: at least 500 held-out positives a night.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from toy import Size, write_project
from twotower.checkpoint import Checkpoint
from twotower.cli.app import main
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.features import FeatureSpec
from twotower.data.held_out import HoldOutRule
from twotower.data.ids import as_id_array, decode_ids
from twotower.data.importing import import_tables
from twotower.errors import GateRefused
from twotower.index import ChosenIndex, choose_index, open_index
from twotower.model.export import export_item_tower
from twotower.model.towers import TwoTower
from twotower.nightly import run_night
from twotower.publishing import artifacts, publisher
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.held_out import Served, users_before
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.training.full_update import run_full_update

LARGE = Size(users=400, items=400, impressions=8000)
GATES = """
[publishing.gates]
holdout_max_share = 0.3
max_search_us = 60_000_000
"""
Spoil = Callable[[Checkpoint], None]


class Lineage:
    """Two nights are live, the third is trained and not published."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.project = large_project(folder, seed=seed)
        import_tables(self.project)
        for _ in range(2):
            run_night(self.project)
        self.store = ModelStore(self.project.data_path)
        self.parent = self.store.open()
        gates = self.project.publishing.gates
        rule = HoldOutRule(gates.holdout_positives, gates.holdout_max_share, 100)
        self.candidate = run_full_update(
            Checkpoint.load(self.parent.path / "checkpoint"),
            ImportedData.open(self.project.data_path),
            "2024-03-03",
            model=self.project.model,
            training=self.project.training,
            parent_name=self.parent.name,
            hold_out=rule,
        )

    def publish(self, checkpoint: Checkpoint) -> Generation:
        settings = self.project.publishing
        return publish(checkpoint, self.store, index=self.project.index, settings=settings)

    def refusing(self, spoil: Spoil) -> set[str]:
        """The gates that refuse the candidate once it is spoilt."""
        spoilt = copy.deepcopy(self.candidate)
        spoil(spoilt)
        return {result.gate for result in self.publish(spoilt).manifest.refused}


def large_project(folder: Path, data_dir: str = "twotower-data", seed: int = 0) -> Project:
    project = write_project(folder, size=LARGE)
    path = folder / "twotower.toml"
    config = path.read_text() + GATES
    config = config.replace('name = "toy"', f'name = "toy"\ndata_dir = "{data_dir}"')
    path.write_text(config.replace("threads = 1", f"threads = 1\nseed = {seed}"))
    return load_project(project.path)


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(tmp_path_factory.mktemp("large-toy"))


def test_the_good_candidate_passes_on_enough_positives(lineage: Lineage) -> None:
    manifest = lineage.publish(lineage.candidate).manifest
    assert manifest.refused == []
    assert manifest.trained.withheld_rows >= 500
    assert {result.gate for result in manifest.gates if result.measured is None} == set()


def shuffle_rows(side: str) -> Spoil:
    def spoil(state: Checkpoint) -> None:
        ids = getattr(state, side)
        ids.rows = np.random.default_rng(0).permutation(ids.rows)

    return spoil


def roll_rows(side: str) -> Spoil:
    def spoil(state: Checkpoint) -> None:
        ids = getattr(state, side)
        ids.rows = np.roll(ids.rows, 1)

    return spoil


def roll_ids(side: str) -> Spoil:
    def spoil(state: Checkpoint) -> None:
        ids = getattr(state, side)
        ids.ids = np.roll(ids.ids, 1)
        ids._order = np.argsort(ids.ids, kind="stable")

    return spoil


def scale_tower(name: str, factor: float) -> Spoil:
    def spoil(state: Checkpoint) -> None:
        tower = getattr(state.model, name)
        with torch.no_grad():
            for layer in (*tower.linear_layers(), tower.skip):
                for parameter in layer.parameters():
                    parameter.mul_(factor)

    return spoil


def train_half(state: Checkpoint) -> None:
    weight = state.model.tables["item_id"].weight
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(weight.shape, generator=generator) * weight.std()
    weight[::2] = fresh[::2]


def forget_newest_value(state: Checkpoint) -> None:
    """The specification of some nights ago: the last value has no row yet."""
    fields = []
    for field in state.item_features.fields:
        last = state.item_features.num_rows - 1
        kept = [place for place, row in enumerate(field.rows) if row != last]
        fields.append(
            msgspec.structs.replace(
                field,
                values=tuple(field.values[place] for place in kept),
                rows=tuple(field.rows[place] for place in kept),
            )
        )
    state.item_features = FeatureSpec(tuple(fields), state.item_features.num_rows - 1)


def reverse_values(state: Checkpoint) -> None:
    fields = [
        msgspec.structs.replace(field, rows=field.rows[::-1])
        for field in state.user_features.fields
    ]
    state.user_features = FeatureSpec(tuple(fields), state.user_features.num_rows)


def adore_one_group(state: Checkpoint) -> None:
    """Popularity of another log: a quarter of the items are far above all others."""
    popularity = msgspec.structs.replace(state.meta.model.popularity, weight=1.0)
    model = msgspec.structs.replace(state.meta.model, popularity=popularity)
    state.meta = msgspec.structs.replace(state.meta, model=model)
    state.popularity.counts[::4] = 1e9


def one_vector_for_all(state: Checkpoint) -> None:
    with torch.no_grad():
        for parameter in state.model.user_tower.parameters():
            parameter.zero_()
        for layer in state.model.user_tower.linear_layers():
            layer.bias.fill_(1.0)


def lose_items(state: Checkpoint) -> None:
    state.corpus = state.corpus[:200]


def lose_clicks(state: Checkpoint) -> None:
    trained = msgspec.structs.replace(state.meta.trained, window_rows=700)
    state.meta = msgspec.structs.replace(state.meta, trained=trained)


BAD_MODELS: dict[str, tuple[Spoil, str]] = {
    "shuffled user rows": (shuffle_rows("users"), "embeddings_kept"),
    "shuffled item rows": (shuffle_rows("items"), "recall_above_popularity"),
    "user rows off by one": (roll_rows("users"), "embeddings_kept"),
    "item rows off by one": (roll_rows("items"), "recall_above_popularity"),
    "user IDs off by one": (roll_ids("users"), "ids_kept"),
    "item IDs off by one": (roll_ids("items"), "ids_kept"),
    "zero user tower": (scale_tower("user_tower", 0.0), "unit_length"),
    "zero item tower": (scale_tower("item_tower", 0.0), "unit_length"),
    "sign flip": (scale_tower("item_tower", -1.0), "recall_above_popularity"),
    "half trained": (train_half, "recall_not_below_live"),
    "stale feature specification": (forget_newest_value, "features_kept"),
    "feature values in another order": (reverse_values, "features_kept"),
    "popularity of another log": (adore_one_group, "coverage"),
    "one vector for all users": (one_vector_for_all, "not_collapsed"),
    "half a corpus": (lose_items, "corpus_kept"),
    "a third of the clicks": (lose_clicks, "window_kept"),
}


@pytest.mark.parametrize("bad", BAD_MODELS)
def test_a_bad_model_is_refused(lineage: Lineage, bad: str) -> None:
    spoil, gate = BAD_MODELS[bad]
    assert gate in lineage.refusing(spoil)


def test_a_user_tower_of_another_lineage_is_refused(lineage: Lineage, tmp_path: Path) -> None:
    other = Lineage(tmp_path, seed=1).candidate

    def exchange(state: Checkpoint) -> None:
        state.model.user_tower = other.model.user_tower

    # whether a tower of other axes falls below popularity too is chance
    assert "recall_not_below_live" in lineage.refusing(exchange)


def test_an_index_of_another_generation_is_refused(
    lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose_swapped(*arguments: Any) -> ChosenIndex:
        index = open_index(lineage.store.open("g-000001").file("index"))
        return choose_index(*arguments)._replace(built=index)

    monkeypatch.setattr(publisher, "choose_index", choose_swapped)
    assert "ann_recall_at_100" in lineage.refusing(lambda _: None)


def test_a_sign_that_flips_in_the_export_is_refused(
    lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:

    def export_flipped(model: TwoTower, *arguments: Any, **named: Any) -> bytes:
        flipped = copy.deepcopy(lineage.candidate)
        scale_tower("item_tower", -1.0)(flipped)
        return export_item_tower(flipped.model, *arguments, **named)

    monkeypatch.setattr(artifacts, "export_item_tower", export_flipped)
    refused = lineage.refusing(lambda _: None)
    assert {"towers_agree", "recall_above_popularity"} <= refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_publishes_nothing(lineage: Lineage, value: float) -> None:
    """NaN, and what overflowed."""
    published = lineage.store.names()
    spoilt = copy.deepcopy(lineage.candidate)
    spoilt.model.tables["item_id"].weight[17, 3] = value
    with pytest.raises(GateRefused, match=r"'finite'.*the live generation is unchanged"):
        lineage.publish(spoilt)
    assert lineage.store.names() == published


def lineage_of_seed(folder: Path, imported: Path, seed: int) -> ModelStore:
    """Three nights of a lineage of its own over the same import."""
    data_path = folder / f"seed-{seed}"
    data_path.mkdir()
    (data_path / "imported").symlink_to(imported)
    project = large_project(folder, data_path.name, seed)
    for _ in range(3):
        run_night(project)
    return ModelStore(data_path)


def check_good_seeds(lineage: Lineage, folder: Path, seeds: range) -> None:
    """`run_night` raises where a gate refuses; every recall was measured."""
    for seed in seeds:
        store = lineage_of_seed(folder, lineage.project.data_path / "imported", seed)
        assert store.live() is not None
        results = store.open().manifest.gates
        assert [result.gate for result in results if result.measured is None] == []


def test_good_models_pass(lineage: Lineage, tmp_path: Path) -> None:
    check_good_seeds(lineage, tmp_path, range(1, 3))


@pytest.mark.slow
def test_twenty_good_models_pass(lineage: Lineage, tmp_path: Path) -> None:
    check_good_seeds(lineage, tmp_path, range(3, 23))


def test_what_is_withheld_is_not_seen_by_its_measurement(
    lineage: Lineage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other items planted in the withheld clicks change no vector and no index they meet."""
    first = lineage.publish(lineage.candidate)
    planted = copy.deepcopy(lineage.candidate)
    held = planted.held_out
    items = np.roll(held.item_id, 1)
    planted.held_out = dataclasses.replace(held, item_id=items)
    users = planted.users.positions(held.user_id)
    everything = np.ones(len(users), np.bool_)
    planted.user_state = planted.user_state.advance(
        users, planted.items.positions(items), everything,
        num_users=len(planted.users), recent_limit=planted.meta.model.history_length,
    )  # fmt: skip
    second = lineage.publish(planted)
    live = served(lineage.parent)
    vectors = []
    for generation, state in ((first, lineage.candidate), (second, planted)):
        before = users_before(state.held_out, live)
        encoder = served(generation).encoder
        positions = encoder.users.positions(decode_ids(before.ids))
        vectors.append(encoder.user_vectors_with(positions, before.recent))
        stored = encoder.user_vectors(positions)
        assert np.abs(vectors[-1] - stored).max() > 1e-3  # those serve, and know the clicks
    np.testing.assert_array_equal(vectors[0], vectors[1])
    names = ("item_vectors.npy", "log_popularity.npy", "item_frequency.npy")
    for name in names:
        np.testing.assert_array_equal(first.array(name), second.array(name))


def served(generation: Generation) -> Served:
    return Served(Encoder.of(generation), open_index(generation.file("index")))


def test_recall_is_that_of_real_answers(lineage: Lineage) -> None:
    """The gate's figure again, from the retriever's own parts and one user at a time."""
    generation = lineage.publish(lineage.candidate)
    ours, live = served(generation), served(lineage.parent)
    held = lineage.candidate.held_out
    recalls = []
    for user in dict.fromkeys(decode_ids(held.user_id)):
        before = live.encoder.users.positions([user])[0]
        seen = live.encoder.seen.list_at(before)
        position = ours.encoder.users.positions([user])[0]
        profile, _ = ours.encoder.profile(position, {})
        vector = ours.encoder.user_vector(position, profile, live.encoder.recent.list_at(before))
        found = ours.encoder.items.decode(ours.index.search(vector, 40, [seen]).ids[0])
        clicked = held.item_id[held.user_id == as_id_array([user], "str")[0]]
        targets = set(decode_ids(clicked)) - set(live.encoder.items.decode(seen))
        if targets:
            recalls.append(len(targets & set(found)) / len(targets))
    results = {result.gate: result for result in generation.manifest.gates}
    assert results["recall_not_below_live"].measured == pytest.approx(np.mean(recalls), abs=1e-9)


def test_full_exits_3_names_the_figures_and_leaves_what_is_live(
    lineage: Lineage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(lineage.project.root, folder)
    config = folder / "twotower.toml"
    config.write_text(config.read_text() + "max_mean_cosine = 0.1\n")
    store = ModelStore(folder / "twotower-data")
    live = store.open().name
    monkeypatch.setattr(sys, "argv", ["twotower", "full", "--config", str(config)])
    with pytest.raises(SystemExit) as exit_of:
        main()
    assert exit_of.value.code == 3
    output = capsys.readouterr()
    said = " ".join((output.out + output.err).split())
    assert "gate 'not_collapsed' measured" in said
    assert "needs at most 0.1; the live generation is unchanged" in said
    assert "recall_not_below_live" in said
    assert store.open().name == live
    assert store.manifests()[store.names()[-1]].refused  # type: ignore[union-attr]


def test_another_hold_out_is_another_pass(
    lineage: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed night goes on only over the examples that it began with."""
    keys: list[str] = []

    def stop(path: Path, key: str, every_steps: int) -> None:
        keys.append(key)
        raise InterruptedError

    monkeypatch.setattr("twotower.nightly.PassKeeper", stop)
    for positives in (500, 500, 400):
        gates = msgspec.structs.replace(
            lineage.project.publishing.gates, holdout_positives=positives
        )
        publishing = msgspec.structs.replace(lineage.project.publishing, gates=gates)
        with pytest.raises(InterruptedError):
            run_night(msgspec.structs.replace(lineage.project, publishing=publishing))
    assert keys[0] == keys[1] != keys[2]
