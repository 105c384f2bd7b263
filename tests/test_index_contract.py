"""Every engine passes the contract suite, and what is particular to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from twotower.errors import ConfigError, CorruptArtifact, DataError, MissingExtra
from twotower.index import Items, build_index, choose_index, open_index, storage
from twotower.index.contract import IndexContract, random_items
from twotower.index.exact import ExactIndex
from twotower.index.faiss import Flat, Hnsw, Ivf, IvfFlat, IvfPq
from twotower.index.frozen import FrozenIndex
from twotower.index.hnswlib import Hnswlib
from twotower.index.interface import FloatArray, IntArray, SearchResult, VectorIndex
from twotower.index.masked import MaskedSearch
from twotower.index.native import NativeEngine
from twotower.index.scann import Scann
from twotower.index.settings import IndexSettings
from twotower.index.top_k import top_k
from twotower.index.tuning import ann_recall, tune

faiss = pytest.importorskip("faiss", reason="needs the extra 'serve'")


def has(package: str) -> bool:
    return find_spec(package) is not None


INSTALLED: list[NativeEngine] = [Ivf(), IvfFlat(), IvfPq(), Hnsw()]
INSTALLED += [Hnswlib()] if has("hnswlib") else []
INSTALLED += [Scann()] if has("scann") else []


class TestExact(IndexContract):
    min_ann_recall = 1.0

    def build(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        return build_index("exact", ids, vectors, IndexSettings())


class Frozen(IndexContract):
    """An engine at its greatest effort, however few the items."""

    engine: NativeEngine

    def build(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        index = FrozenIndex.build(self.engine, ids, vectors, min_native_items=1)
        index.effort = index.efforts()[-1]
        return index


class TestFaissFlat(Frozen):
    min_ann_recall = 1.0
    engine = Flat()


class TestFaissIvf(Frozen):
    engine = Ivf()


class TestFaissIvfFlat(Frozen):
    engine = IvfFlat()


class TestFaissIvfPq(Frozen):
    engine = IvfPq()


class TestFaissHnsw(Frozen):
    engine = Hnsw()


@pytest.mark.skipif(not has("hnswlib"), reason="pip install 'twotower[hnswlib]'")
class TestHnswlib(Frozen):
    engine = Hnswlib()

    def test_half_of_the_items_allowed_needs_no_scan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ids, vectors = random_items(3000)
        index = self.build(ids, vectors)
        monkeypatch.setattr(MaskedSearch, "_scan", None)
        found = index.search(vectors[:9], 20, allowed=ids[:1500])
        assert (found.ids >= 0).all()


@pytest.mark.skipif(not has("scann"), reason="pip install 'twotower[scann]'")
class TestScann(Frozen):
    min_ann_recall = 0.95  # its codes propose, and random vectors are the hardest to code
    engine = Scann()


@pytest.mark.skipif(not has("scann"), reason="pip install 'twotower[scann]'")
def test_scann_needs_no_fitting_tensorflow_whoever_has_imported_one() -> None:
    program = (
        "import sys, types; other = sys.modules['tensorflow'] = types.ModuleType('tensorflow');"
        "from twotower.index.scann import _load; assert hasattr(_load(), 'builder');"
        "assert sys.modules['tensorflow'] is other; assert _load() is _load()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))


class TestFaissBelowItsLimit(IndexContract):
    min_ann_recall = 1.0

    def build(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        return FrozenIndex.build(Ivf(), ids, vectors, min_native_items=2000)


def _assert_equal(found: SearchResult, wanted: SearchResult) -> None:
    assert (found.ids == wanted.ids).all()
    assert np.allclose(found.scores, wanted.scores, atol=1e-5)


def test_top_k_resolves_ties_by_the_lower_column() -> None:
    scores = np.zeros((2, 1000), np.float32)
    scores[1, 900] = 1
    best = top_k(scores, 3)
    assert best.columns.tolist() == [[0, 1, 2], [900, 0, 1]]


def test_top_k_never_returns_minus_infinity() -> None:
    scores = np.array([[-np.inf, 2, -np.inf, 3]], np.float32)
    best = top_k(scores, 3)
    assert best.columns.tolist() == [[3, 1, -1]]
    assert best.scores.tolist() == [[3, 2, -np.inf]]


@pytest.mark.parametrize("num_columns", [1, 24, 25, 26, 300, 5000])
@pytest.mark.parametrize("num_values", [1, 3, 40, 2**20])
@pytest.mark.parametrize("share_excluded", [0, 0.5, 1])
def test_top_k_agrees_with_a_full_sort(
    num_columns: int, num_values: int, share_excluded: float
) -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, num_values, (9, num_columns)).astype(np.float32)
    scores[0] = np.arange(num_columns)
    scores[1] = -np.arange(num_columns)
    scores[generator.random(scores.shape) < share_excluded] = -np.inf
    best = top_k(scores, 25)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :25]
    values = np.take_along_axis(scores, order, 1)
    wanted = np.where(np.isneginf(values), -1, order)
    assert (best.columns[:, :num_columns] == wanted).all()
    assert (best.scores[:, :num_columns] == values).all()
    assert (best.columns[:, num_columns:] == -1).all()


def test_auto_is_exact_up_to_the_limit() -> None:
    items = Items(*random_items(10), queries=random_items(5, seed=1)[1])
    chosen = choose_index(items, IndexSettings(exact_max_items=10), 3)
    assert chosen.choice.chosen == "exact"
    assert isinstance(chosen.built, ExactIndex)
    chosen = choose_index(items, IndexSettings(exact_max_items=9, auto_engines=("faiss_flat",)), 3)
    assert chosen.choice.chosen == "faiss_flat"


AUTO = IndexSettings(
    exact_max_items=10, auto_engines=("faiss_hnsw", "hnswlib", "faiss_ivf_flat", "faiss_ivf")
)


@pytest.mark.parametrize("quick", AUTO.auto_engines)
def test_auto_takes_the_quickest_that_reaches_the_target(
    quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hnswlib", reason="pip install 'twotower[hnswlib]'")
    price_engines(monkeypatch, {quick: 10.0})
    items = Items(*random_items(3000), queries=random_items(100, seed=1)[1])
    index, choice = choose_index(items, AUTO, 10)
    assert isinstance(index, FrozenIndex)
    assert choice.chosen == quick
    assert {trial.engine for trial in choice.trials} == set(AUTO.auto_engines)
    for trial in choice.trials:
        assert (trial.passed_over == "") == (trial.engine == quick)
        assert trial.reached
        assert trial.curve[-1].ann_recall >= 0.95 > max([0, *(p[1] for p in trial.curve[:-1])])
    taken = next(trial for trial in choice.trials if trial.engine == quick)
    assert index.effort == taken.curve[-1].effort


def price_engines(monkeypatch: pytest.MonkeyPatch, p50_us: dict[str, float]) -> None:
    """Time is measured by this list instead: a timing is no test's business."""

    def priced(index: FrozenIndex, *arguments: Any) -> Any:
        tuning = tune(index, *arguments)
        price = p50_us.get(index.engine_name, 100.0)
        last = tuning.measured[-1]._replace(p50_us=price)
        return tuning._replace(measured=(*tuning.measured[:-1], last))

    monkeypatch.setattr("twotower.index.choosing.tune", priced)


def test_auto_takes_the_next_where_the_quickest_misses_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    price_engines(monkeypatch, {"faiss_hnsw": 1.0})
    monkeypatch.setattr(Hnsw, "efforts", lambda *_: (1,))
    items = Items(*random_items(3000), queries=random_items(100, seed=1)[1])
    settings = IndexSettings(exact_max_items=10, auto_engines=("faiss_hnsw", "faiss_ivf"))
    choice = choose_index(items, settings, 100).choice
    assert choice.chosen == "faiss_ivf"
    assert choice.trials[0].passed_over.startswith("its recall ends at 0.")
    alone = msgspec.structs.replace(settings, auto_engines=("faiss_hnsw",))
    choice = choose_index(items, alone, 100).choice
    assert choice.chosen == "exact"
    assert [trial.engine for trial in choice.trials] == ["faiss_hnsw", "exact"]


def test_auto_passes_over_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    items = Items(*random_items(3000), queries=random_items(100, seed=1)[1])
    settings = IndexSettings(exact_max_items=10, auto_engines=("hnswlib", "faiss_ivf"))
    choice = choose_index(items, settings, 10).choice
    assert choice.chosen == "faiss_ivf"
    assert "pip install 'twotower[hnswlib]'" in choice.trials[0].passed_over
    named = IndexSettings(engine="hnswlib")
    with pytest.raises(MissingExtra):
        choose_index(items, named, 10)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="known: auto, exact"):
        build_index("flat", *random_items(3), IndexSettings())


def test_an_unknown_engine_on_disk_is_not_loaded(tmp_path: Path) -> None:
    build_index("exact", *random_items(3), IndexSettings()).save(tmp_path / "index")
    header = tmp_path / "index" / "index.json"
    header.write_bytes(header.read_bytes().replace(b'"exact"', b'"other"'))
    with pytest.raises(CorruptArtifact, match="unknown engine 'other'"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("field", ["effort", "num_items", "dimensions"])
def test_a_header_that_fits_no_longer_is_not_loaded(tmp_path: Path, field: str) -> None:
    index = FrozenIndex.build(Ivf(), *random_items(300), min_native_items=1)
    index.save(tmp_path / "index")
    header = tmp_path / "index" / "index.json"
    header.write_bytes(header.read_bytes().replace(f'"{field}":'.encode(), f'"{field}":0'.encode()))
    with pytest.raises(CorruptArtifact):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("engine", ["exact", "faiss_ivf"])
@pytest.mark.parametrize("place", [0, 3, 4, 5, 8, 1999])
def test_labels_that_do_not_ascend_are_not_loaded(
    tmp_path: Path, engine: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_BLOCK", 4)
    build_index(engine, *random_items(2000), IndexSettings()).save(tmp_path / "index")
    path = next((tmp_path / "index").glob("*ids.npy"))
    path = path.with_name(path.name.replace("added", "base"))
    ids = np.load(path)
    open_index(tmp_path / "index")
    ids[place] = ids[place - 1] if place else -1
    np.save(path, ids)
    with pytest.raises(CorruptArtifact, match="ascending labels"):
        open_index(tmp_path / "index")


def test_a_native_index_of_another_metric_is_not_loaded(tmp_path: Path) -> None:
    index = FrozenIndex.build(Hnsw(), *random_items(300), min_native_items=1)
    index.save(tmp_path / "index")
    other = faiss.IndexHNSWFlat(16, 32, faiss.METRIC_L2)
    other.add(random_items(300)[1])
    faiss.write_index(other, str(tmp_path / "other"))
    with pytest.raises(CorruptArtifact, match="inner-product"):
        Hnsw().open(tmp_path / "other", mmap=False, shape=(300, 16))


@pytest.mark.parametrize("engine", INSTALLED, ids=lambda engine: engine.name)
def test_tuning_sets_the_smallest_effort_that_reaches_the_target(engine: NativeEngine) -> None:
    ids, vectors = random_items(4000)
    queries = random_items(200, seed=1)[1]
    index = FrozenIndex.build(engine, ids, vectors)
    tuning = tune(index, queries, 10, 0.9)
    assert tuning.reached
    assert index.effort == tuning.effort == tuning.measured[-1].effort
    assert all(point.ann_recall < 0.9 for point in tuning.measured[:-1])
    exact = ExactIndex.build(ids, vectors).search(queries, 10)
    assert ann_recall(index.search(queries, 10), exact) == tuning.ann_recall >= 0.9


def test_the_chosen_effort_survives_saving(tmp_path: Path) -> None:
    queries = random_items(100, seed=1)[1]
    settings = IndexSettings(ann_recall_target=0.6)
    index = build_index("faiss_ivf", *random_items(4000), settings, queries=queries, k=10)
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index")
    assert isinstance(index, FrozenIndex)
    assert isinstance(opened, FrozenIndex)
    assert opened.effort == index.effort < index.efforts()[-1]
    _assert_equal(opened.search(queries, 10), index.search(queries, 10))


@pytest.mark.parametrize("engine", INSTALLED, ids=lambda engine: engine.name)
def test_conditions_get_the_effort_that_their_own_target_needs(
    engine: NativeEngine, tmp_path: Path
) -> None:
    ids, vectors = random_items(4000)
    queries = random_items(200, seed=1)[1]
    settings = IndexSettings(
        engine=engine.name,  # type: ignore[arg-type]
        ann_recall_target=0.5,
        filtered_recall_target=0.97,
    )
    index, choice = choose_index(Items(ids, vectors, queries), settings, 10)
    index.save(tmp_path / "index")
    opened = open_index(tmp_path / "index")
    for half in (ids[vectors[:, 0] > np.median(vectors[:, 0])], ids[::2]):
        exact = ExactIndex.build(ids, vectors).search(queries, 10, allowed=half)
        assert ann_recall(opened.search(queries, 10, allowed=half), exact) >= 0.95
    assert choice.trials[0].filtered_recall >= 0.97
    assert isinstance(opened, FrozenIndex)
    assert opened.filter_factor == choice.trials[0].filter_factor


def test_the_oracle_knows_conditions_and_changes() -> None:
    ids, vectors = random_items(2000)
    index, exact = FrozenIndex.build(Ivf(), ids, vectors), ExactIndex.build(ids, vectors)
    for each in (index, exact):
        each.delete(ids[:100])
        each.upsert(ids[50:60], -vectors[50:60])
    queries = random_items(20, seed=1)[1]
    for allowed in (None, ids[:1000], ids[1:60]):
        wanted = exact.search(queries, 30, allowed=allowed)
        _assert_equal(index.search_exactly(queries, 30, allowed), wanted)


def test_an_index_of_format_1_is_searched_under_conditions_as_it_was(tmp_path: Path) -> None:
    index = FrozenIndex.build(Ivf(), *random_items(2000))
    index.filter_factor = 3.0
    index.save(tmp_path / "index")
    header = tmp_path / "index" / "index.json"
    told = msgspec.json.decode(header.read_bytes())
    del told["filter_factor"]
    header.write_bytes(msgspec.json.encode(told | {"format_version": 1}))
    opened = open_index(tmp_path / "index")
    assert isinstance(opened, FrozenIndex)
    assert (opened.effort, opened.filter_factor) == (index.effort, 1.0)


def test_tuning_says_when_the_target_was_not_reached() -> None:
    index = FrozenIndex.build(Ivf(), *random_items(2000), min_native_items=1)
    tuning = tune(index, random_items(20, seed=1)[1], 10, 1.01)
    assert not tuning.reached
    assert index.effort == index.efforts()[-1]


def test_ann_recall_counts_what_was_found() -> None:
    exact = SearchResult(np.array([[1, 2], [3, 4]]), np.zeros((2, 2), np.float32))
    found = SearchResult(np.array([[2, 3], [3, -1]]), np.zeros((2, 2), np.float32))
    assert ann_recall(found, exact) == 0.5
    assert ann_recall(exact, exact) == 1.0
    with pytest.raises(DataError):
        ann_recall(SearchResult(exact.ids[:1], exact.scores[:1]), exact)


def test_faiss_builds_are_repeatable_with_one_seed() -> None:
    ids, vectors = random_items(3000)
    queries = random_items(50, seed=1)[1]
    answers = []
    for seed in (1, 1, 2):
        index = FrozenIndex.build(Ivf(), ids, vectors, seed)
        index.effort = 2
        answers.append(index.search(queries, 20))
    _assert_equal(answers[0], answers[1])
    assert (answers[0].ids != answers[2].ids).any()


@pytest.mark.parametrize("engine", INSTALLED, ids=lambda engine: engine.name)
def test_answers_are_never_short_even_with_the_least_effort(engine: NativeEngine) -> None:
    ids, vectors = random_items(3000)
    index = FrozenIndex.build(engine, ids, vectors)
    index.effort = 1
    for exclude in (None, [ids[:5], ids[5:900], ids[:2700]]):
        found = index.search(vectors[:3], 290, exclude)
        assert (found.ids >= 0).all()


@pytest.mark.parametrize("engine", INSTALLED, ids=lambda engine: engine.name)
def test_a_filter_is_answered_with_more_effort(engine: NativeEngine) -> None:
    ids, vectors = random_items(6000)
    queries = random_items(200, seed=1)[1]
    index = FrozenIndex.build(engine, ids, vectors)
    unfiltered = tune(index, queries, 10, 0.9).ann_recall
    allowed = ids[:1200]
    exact = ExactIndex.build(ids, vectors).search(queries, 10, allowed=allowed)
    filtered = ann_recall(index.search(queries, 10, allowed=allowed), exact)
    assert filtered >= unfiltered - 0.02


@pytest.mark.skipif(not has("hnswlib"), reason="pip install 'twotower[hnswlib]'")
def test_a_full_disk_is_noticed_by_hnswlib() -> None:
    native = Hnswlib().build(random_items(2000)[1], 0)
    with pytest.raises(OSError, match="wrote a part"):
        Hnswlib().write(native, Path("/dev/full"))
