"""From a checkpoint to a generation: complete, judged, and equal to what the trainer computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tiny_checkpoint import CUT_MS, external_ids, replace_table, tiny_checkpoint
from twotower.checkpoint import Checkpoint, Turnover
from twotower.data.ids import IdKind
from twotower.errors import DataError, GateRefused
from twotower.index import Choice, ChosenIndex, Items, choose_index, open_index
from twotower.index.settings import EngineName, IndexSettings
from twotower.model.settings import HistoryPooling
from twotower.publishing import publisher
from twotower.publishing.display import Display
from twotower.publishing.encoding import Encoder
from twotower.publishing.gates import Gate, Measured
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import GateResult
from twotower.publishing.publisher import publish
from twotower.publishing.republishing import republish
from twotower.publishing.settings import GateSettings, PublishingSettings
from twotower.publishing.store import ModelStore
from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors

INDEX = IndexSettings()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def publish_tiny(store: ModelStore, checkpoint: Checkpoint) -> Generation:
    return publish(checkpoint, store, index=INDEX)


@pytest.mark.parametrize("kind", ["int", "str"])
@pytest.mark.parametrize("history_length", [0, 4])
@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "sqrt"])
def test_served_vectors_are_the_trainers(
    store: ModelStore,
    kind: IdKind,
    history_length: int,
    with_features: bool,
    pooling: HistoryPooling,
) -> None:
    checkpoint = tiny_checkpoint(
        kind=kind,
        history_length=history_length,
        history_pooling=pooling,
        with_features=with_features,
    )
    encoder = Encoder.of(publish_tiny(store, checkpoint))
    users, items = np.arange(len(checkpoint.users)), np.arange(len(checkpoint.items))
    expected = trainer_user_vectors(checkpoint, users)
    np.testing.assert_allclose(encoder.user_vectors(users), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.user_vectors(users, batch=5), expected, atol=1e-5)
    expected = trainer_item_vectors(checkpoint, items)
    np.testing.assert_allclose(encoder.item_vectors(items), expected, atol=1e-5)
    for user in users.tolist():
        profile, notes = encoder.profile(user, {})
        recent = encoder.recent.list_at(user)
        one = encoder.user_vector(user, profile, recent)
        np.testing.assert_allclose(one, encoder.user_vectors(np.array([user])), atol=1e-6)
        assert notes == []


def test_the_index_holds_the_corpus_under_item_positions(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    generation = publish_tiny(store, checkpoint)
    vectors = generation.array("item_vectors.npy")
    index = open_index(generation.file("index"))
    assert len(index) == len(checkpoint.corpus) == 57
    found = index.search(np.ascontiguousarray(vectors), 1)
    assert found.ids[:, 0].tolist() == checkpoint.corpus.tolist()
    assert generation.array("corpus.npy").tolist() == checkpoint.corpus.tolist()


def test_the_manifest_says_what_was_trained_and_measured(store: ModelStore) -> None:
    turnover = Turnover(admitted_users=4, admitted_items=5, evicted_users=6, evicted_items=7)
    turnover = msgspec.structs.replace(turnover, forgotten_users=8)
    negatives = {"hard_candidates": 30, "hard_known": 20, "hard_drawn": 10}
    checkpoint = tiny_checkpoint(seed=3).replace_meta(turnover=turnover, negatives=negatives)
    generation = publish(
        checkpoint, store, index=INDEX, metrics={"recall_at_50": 0.3, "undefined": float("nan")}
    )
    manifest = store.open(generation.name).manifest
    assert manifest.trained.rows == 9
    assert manifest.trained.digest == "0" * 16
    assert manifest.window.cut_ms == CUT_MS
    assert (manifest.kind, manifest.seed, manifest.vector_dim) == ("full", 3, 8)
    assert manifest.counts == {
        "users": 12, "items": 60, "corpus": 57, "user_rows": 11, "item_rows": 59,
        "admitted_users": 4, "admitted_items": 5, "evicted_users": 6, "evicted_items": 7,
        "forgotten_users": 8, "seen_items": len(checkpoint.user_state.seen.values),
        "user_feature_rows": checkpoint.user_features.num_rows,
        "item_feature_rows": checkpoint.item_features.num_rows, **negatives,
    }  # fmt: skip
    tables = checkpoint.model.tables.values()
    assert manifest.metrics == {
        "recall_at_50": 0.3,
        "accumulator_decay": 1.0,
        "largest_accumulator": max(float(table.accumulator.max()) for table in tables),
    }
    assert manifest.index.engine == "exact"
    assert manifest.index.ann_recall_at_100 == 1.0
    assert manifest.refused == []
    assert {result.gate for result in manifest.gates} >= {"finite", "towers_agree"}


def test_the_whole_checkpoint_travels_with_the_generation(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    loaded = Checkpoint.load(publish_tiny(store, checkpoint).file("checkpoint"))
    before, after = checkpoint.arrays(), loaded.arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_publishing_changes_nothing_in_the_checkpoint(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint(popularity_weight=0.5)
    before = {name: array.copy() for name, array in checkpoint.arrays().items()}
    publish_tiny(store, checkpoint)
    after = checkpoint.arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_same_checkpoint_gives_the_same_bytes(store: ModelStore) -> None:
    first = publish_tiny(store, tiny_checkpoint())
    second = publish_tiny(store, tiny_checkpoint())
    timed = "index_choice.json"  # says how long it took
    assert timed in first.manifest.files
    files, again = ({**one.manifest.files, timed: ""} for one in (first, second))
    assert files == again


def test_the_popularity_coordinate_adds_its_share_to_the_score(store: ModelStore) -> None:
    plain = Encoder.of(publish_tiny(store, tiny_checkpoint()))
    checkpoint = tiny_checkpoint(popularity_weight=0.7)
    generation = publish_tiny(store, checkpoint)
    encoder = Encoder.of(generation)
    users, items = np.arange(12), np.arange(60)
    cosine = plain.user_vectors(users) @ plain.item_vectors(items).T
    score = encoder.user_vectors(users) @ encoder.item_vectors(items).T
    clicks = np.zeros(60)
    counted = checkpoint.popularity.at(CUT_MS)
    clicks[: len(counted)] = counted
    temperature = checkpoint.meta.training.temperature
    expected = cosine + 0.7 * temperature * np.log(clicks + 1.0)
    np.testing.assert_allclose(score, expected, atol=1e-5)
    assert generation.manifest.vector_dim == 9
    assert np.ptp(np.log(clicks + 1.0)) > 1


def test_another_history_moves_the_user_vector(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    encoder = Encoder.of(publish_tiny(store, checkpoint))
    profile, _ = encoder.profile(0, {})
    some, others = np.array([1, 2, 3]), np.array([4, 5, 6])
    vectors = [encoder.user_vector(0, profile, recent) for recent in (some, others, some[:0])]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    longer = np.concatenate([others, np.array([9]), some])
    newest = np.array([9, *some])
    np.testing.assert_allclose(
        encoder.user_vector(0, profile, longer), encoder.user_vector(0, profile, newest)
    )


@pytest.mark.parametrize(("pooling", "pooled"), [("mean", 2.0), ("sqrt", 6 / 3**0.5)])
def test_history_is_pooled_from_the_history_table(
    store: ModelStore, pooling: HistoryPooling, pooled: float
) -> None:
    checkpoint = tiny_checkpoint(history_pooling=pooling)
    table = np.zeros(checkpoint.model.tables["history"].weight.shape, np.float32)
    rows = checkpoint.items.rows
    table[rows[3]], table[rows[4]], table[rows[5]] = 1, 4, pooled
    replace_table(checkpoint, "history", table)
    encoder = Encoder.of(publish_tiny(store, checkpoint))
    profile, _ = encoder.profile(0, {})
    np.testing.assert_allclose(
        encoder.user_vector(0, profile, np.array([3, 3, 4])),
        encoder.user_vector(0, profile, np.array([5])),
        atol=1e-6,
    )


@pytest.mark.parametrize("pooling", ["mean", "sqrt"])
@pytest.mark.parametrize("with_features", [True, False])
def test_one_request_gets_the_bits_of_a_batch_of_one(
    store: ModelStore, pooling: HistoryPooling, with_features: bool
) -> None:
    checkpoint = tiny_checkpoint(history_pooling=pooling, with_features=with_features)
    encoder = Encoder.of(publish_tiny(store, checkpoint))
    alone = [one_vector(encoder, user) for user in range(len(checkpoint.users))]
    for user, vector in enumerate(alone):
        np.testing.assert_array_equal(vector, encoder.user_vectors(np.array([user])))
    assert len({vector.tobytes() for vector in alone}) > 6  # none is written over by the next


def test_requests_in_several_threads_do_not_mix(store: ModelStore) -> None:
    encoder = Encoder.of(publish_tiny(store, tiny_checkpoint()))
    expected = [one_vector(encoder, user) for user in range(6)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda number: one_vector(encoder, number % 6), range(600)))
    for number, vector in enumerate(found):
        np.testing.assert_array_equal(vector, expected[number % 6])


def one_vector(encoder: Encoder, user: int) -> np.ndarray:
    return encoder.user_vector(user, encoder.profile(user, {})[0], encoder.recent.list_at(user))


def test_not_admitted_users_share_the_unknown_row(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    assert checkpoint.users.rows[9:11].tolist() == [0, 0]
    encoder = Encoder.of(publish_tiny(store, checkpoint))
    profile, _ = encoder.profile(3, {})
    nothing = np.zeros(0, np.int64)
    vectors = [encoder.user_vector(user, profile, nothing) for user in (-1, 9, 10, 11)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[3]).max() > 1e-3


@pytest.mark.parametrize("place", ["table.user_id.weight", "dense.item_tower.layers.0.weight"])
def test_a_nan_anywhere_publishes_nothing(store: ModelStore, place: str) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.arrays()[place].reshape(-1)[5] = np.nan
    with pytest.raises(GateRefused, match="finite"):
        publish_tiny(store, checkpoint)
    assert store.names() == []


def test_a_collapsed_tower_is_published_but_refused(store: ModelStore) -> None:
    good = publish_tiny(store, tiny_checkpoint())
    store.activate(good.name)
    checkpoint = tiny_checkpoint(parent=good.name)
    with torch.no_grad():
        for layer in checkpoint.model.item_tower.linear_layers():
            layer.weight.zero_()
            layer.bias.fill_(1.0)
    bad = publish_tiny(store, checkpoint)
    assert [result.gate for result in bad.manifest.refused] == ["not_collapsed"]
    with pytest.raises(GateRefused, match="not_collapsed"):
        store.activate(bad.name)
    assert store.open().name == good.name


def test_a_shrunken_corpus_is_held_against_the_parent(store: ModelStore) -> None:
    good = publish_tiny(store, tiny_checkpoint())
    checkpoint = tiny_checkpoint(parent=good.name)
    checkpoint.corpus = checkpoint.corpus[:40]
    bad = publish_tiny(store, checkpoint)
    assert [result.gate for result in bad.manifest.refused] == ["corpus_kept"]
    lenient = PublishingSettings(gates=GateSettings(max_corpus_loss=0.5))
    assert publish(checkpoint, store, index=INDEX, settings=lenient).manifest.refused == []


def test_an_index_of_other_vectors_is_refused(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose_wrongly(items: Items, *arguments: Any) -> ChosenIndex:
        return choose_index(items._replace(vectors=np.roll(items.vectors, 1, axis=0)), *arguments)

    monkeypatch.setattr(publisher, "choose_index", choose_wrongly)
    checkpoint = tiny_checkpoint(num_items=400, num_users=40)
    generation = publish(checkpoint, store, index=IndexSettings(engine="faiss_ivf"))
    assert [result.gate for result in generation.manifest.refused] == ["ann_recall_at_100"]
    assert generation.manifest.index.ann_recall_at_100 == pytest.approx(0.3, abs=0.2)


def test_own_gates_are_asked_instead(store: ModelStore) -> None:
    class EvenCorpus(Gate):
        name = "even_corpus"

        def measure(self, measured: Measured) -> GateResult:
            odd = len(measured.item_vectors) % 2
            return GateResult(gate=self.name, measured=odd, bar=0.0, needs="0.0000", passed=not odd)

    generation = publish(tiny_checkpoint(), store, index=INDEX, gates=[EvenCorpus()])
    assert [result.gate for result in generation.manifest.refused] == ["even_corpus"]


def test_an_empty_corpus_is_refused(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.corpus = checkpoint.corpus[:0]
    with pytest.raises(DataError, match="expected items in the corpus"):
        publish_tiny(store, checkpoint)


@pytest.mark.parametrize("engine", ["faiss_ivf", "faiss_hnsw"])
def test_faiss_engines_are_measured_and_published(store: ModelStore, engine: EngineName) -> None:
    checkpoint = tiny_checkpoint(num_items=600, num_users=40)
    generation = publish(checkpoint, store, index=IndexSettings(engine=engine))
    assert generation.manifest.index.engine == engine
    assert generation.manifest.index.ann_recall_at_100 is not None
    assert generation.manifest.index.ann_recall_at_100 >= 0.95
    assert len(open_index(generation.file("index"))) == len(checkpoint.corpus)
    choice = msgspec.json.decode(generation.file("index_choice.json").read_bytes(), type=Choice)
    assert choice.chosen == generation.manifest.index.engine


def test_one_generation_is_published_to_two_engines(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint(num_items=1200, num_users=40)
    first = publish(checkpoint, store, index=IndexSettings(engine="exact"))
    again = Checkpoint.load(first.path / "checkpoint")
    second = publish(again, store, index=IndexSettings(engine="faiss_ivf"))
    engines = (first.manifest.index.engine, second.manifest.index.engine)
    assert engines == ("exact", "faiss_ivf")
    for name in ("item_vectors.npy", "corpus.npy", "checkpoint/arrays.safetensors"):
        assert first.manifest.files[name] == second.manifest.files[name]
    assert second.manifest.refused == []


@pytest.mark.parametrize("engine", ["exact", "faiss_ivf"])
def test_a_search_over_the_budget_is_refused(store: ModelStore, engine: EngineName) -> None:
    checkpoint = tiny_checkpoint(num_items=60, num_users=40)
    settings = PublishingSettings(gates=GateSettings(max_search_us=1))
    index = IndexSettings(engine=engine)
    refused = publish(checkpoint, store, index=index, settings=settings).manifest.refused
    assert "search_p50_us" in [result.gate for result in refused]


def test_given_display_fields_are_kept_by_item_id(store: ModelStore) -> None:
    ids = external_ids("int", "item", 60)
    titles = {item: {"title": f"title of {item}"} for item in ids[:30]}
    generation = publish(tiny_checkpoint(), store, index=INDEX, display=titles)
    display = Display(
        generation.array("items/display.npy"), generation.array("items/display_offsets.npy")
    )
    encoder = Encoder.of(generation)
    position = int(encoder.items.positions([ids[7]])[0])
    assert display.at(position) == {"title": f"title of {ids[7]}"}
    assert display.at(int(encoder.items.positions([ids[40]])[0])) == {}


def test_a_generation_published_for_another_engine_shows_the_same(store: ModelStore) -> None:
    checkpoint = tiny_checkpoint()
    titles = {item_id: {"title": f"item {item_id}"} for item_id in external_ids("int", "i", 3)}
    publish(checkpoint, store, index=INDEX, display=titles, metrics={"recall_at_20": 0.25})
    again = republish(store, "g-000001", "faiss_hnsw", index=INDEX)
    first = store.open("g-000001")
    for member in ("items/display.npy", "items/display_offsets.npy", "item_vectors.npy"):
        assert again.read(member) == first.read(member)
    assert again.manifest.metrics["recall_at_20"] == 0.25
    assert (first.manifest.index.engine, again.manifest.index.engine) == ("exact", "faiss_hnsw")
