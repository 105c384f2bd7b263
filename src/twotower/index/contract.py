"""The contract suite: what every engine must do, ready to be run against a new one.

Subclass `IndexContract` as a pytest test class and give it `build`; every test of it then runs
against your engine. The exact scan is the oracle. Labels are spread out and in no order, so that
an engine that returns its own row numbers is found out.
"""

# The names of the tests are their docstrings.
# ruff: noqa: D102

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from twotower.errors import CorruptArtifact, DataError
from twotower.index import open_index
from twotower.index.exact import ExactIndex
from twotower.index.interface import FloatArray, IntArray, SearchResult, VectorIndex

__all__ = ["IndexContract", "random_items"]

_DIMENSIONS: Final = 16
_TOLERANCE: Final = 1e-5


def random_items(num_items: int, seed: int = 0) -> tuple[IntArray, FloatArray]:
    """Return distinct labels `int64[N]` in no order, and unit vectors `float32[N, 16]`."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((num_items, _DIMENSIONS)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    labels = 7 + 3 * generator.permutation(num_items).astype(np.int64)
    return labels, vectors


class IndexContract(ABC):
    """The tests of one engine. Needs an engine setting at which it finds nearly all there is."""

    min_ann_recall: float = 0.99
    """What the engine as `build` sets it up must find of 1,000 random items."""

    @abstractmethod
    def build(self, ids: IntArray, vectors: FloatArray) -> VectorIndex:
        """Return an index of the engine under test."""

    def test_every_item_finds_itself_first(self) -> None:
        ids, vectors = random_items(300)
        found = self.build(ids, vectors).search(vectors, 5)
        assert (found.ids[:, 0] == ids).all()
        assert np.allclose(found.scores[:, 0], 1, atol=_TOLERANCE)

    def test_answers_have_their_types_and_shapes(self) -> None:
        ids, vectors = random_items(300)
        found = self.build(ids, vectors).search(vectors[:7], 5)
        assert found.ids.dtype == np.int64
        assert found.scores.dtype == np.float32
        assert found.ids.shape == found.scores.shape == (7, 5)
        assert self.build(ids, vectors).search(vectors[:0], 5).ids.shape == (0, 5)

    def test_scores_descend_and_are_inner_products(self) -> None:
        ids, vectors = random_items(1000)
        queries = 3 * random_items(50, seed=1)[1]
        found = self.build(ids, vectors).search(queries, 20)
        assert (np.diff(found.scores, axis=1) <= 0).all()
        _assert_true_scores(found, queries, ids, vectors)

    def test_finds_what_an_exact_scan_finds(self) -> None:
        ids, vectors = random_items(1000)
        queries = random_items(100, seed=1)[1]
        found = self.build(ids, vectors).search(queries, 10)
        exact = ExactIndex.build(ids, vectors).search(queries, 10)
        same = [
            np.isin(mine, theirs).mean() for mine, theirs in zip(found.ids, exact.ids, strict=True)
        ]
        assert np.mean(same) >= self.min_ann_recall

    def test_longer_vectors_score_higher(self) -> None:
        ids, vectors = random_items(300)
        vectors[17] *= 5
        assert self.build(ids, vectors).search(vectors[17:18], 1).ids[0, 0] == ids[17]
        nearly = (vectors[17:18] + 0.1 * vectors[:1]).astype(np.float32)
        found = self.build(ids, vectors).search(nearly, 1)
        assert found.ids[0, 0] == ids[17]
        assert found.scores[0, 0] > 20

    def test_equal_scores_come_in_the_order_of_their_labels(self) -> None:
        ids, vectors = random_items(300)
        twins = np.sort(ids[:4])
        vectors[:4] = vectors[0]
        found = self.build(ids, vectors).search(vectors[:1], 4)
        assert found.ids[0].tolist() == twins.tolist()

    def test_short_answers_are_padded(self) -> None:
        ids, vectors = random_items(300)
        found = self.build(ids, vectors).search(vectors[:3], 310)
        assert (np.sort(found.ids[:, :300], axis=1) == np.sort(ids)).all()
        assert (found.ids[:, 300:] == -1).all()
        assert np.isneginf(found.scores[:, 300:]).all()

    def test_an_empty_index_answers_with_padding_and_grows(self) -> None:
        ids, vectors = random_items(20)
        index = self.build(ids[:0], vectors[:0])
        assert len(index) == 0
        assert (index.search(vectors[:2], 3).ids == -1).all()
        index.upsert(ids, vectors)
        assert len(index) == 20
        assert (index.search(vectors, 1).ids[:, 0] == ids).all()

    def test_one_item(self) -> None:
        ids, vectors = random_items(1)
        found = self.build(ids, vectors).search(vectors, 2)
        assert found.ids.tolist() == [[ids[0], -1]]

    def test_upsert_replaces(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        index.upsert(ids[:1], -vectors[:1])
        assert len(index) == 300
        assert index.search(vectors[:1], 300).ids[0, -1] == ids[0]
        assert index.search(-vectors[:1], 1).ids[0, 0] == ids[0]

    def test_upsert_adds(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids[:200], vectors[:200])
        index.upsert(ids[200:], vectors[200:])
        assert len(index) == 300
        assert (index.search(vectors, 1).ids[:, 0] == ids).all()

    def test_of_a_repeated_label_the_last_one_wins(self) -> None:
        ids, vectors = random_items(300)
        both = np.concatenate([vectors[:1], -vectors[:1]])
        index = self.build(ids[1:], vectors[1:])
        index.upsert(np.array([ids[0], ids[0]]), both)
        assert len(index) == 300
        assert index.search(-vectors[:1], 1).ids[0, 0] == ids[0]
        built = self.build(np.append(ids, ids[0]), np.concatenate([vectors, -vectors[:1]]))
        assert built.search(-vectors[:1], 1).ids[0, 0] == ids[0]

    def test_the_caller_may_reuse_its_arrays(self) -> None:
        ids, vectors = random_items(300)
        mine, theirs = vectors.copy(), ids.copy()
        index = self.build(theirs, mine)
        index.upsert(theirs[:5], mine[:5])
        mine[:], theirs[:] = 0, 0
        assert (index.search(vectors, 1).ids[:, 0] == ids).all()

    def test_deleted_items_never_return(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        index.upsert(ids[:50], vectors[:50])
        gone = np.append(ids[:100], 10**9)
        index.delete(gone)
        assert len(index) == 200
        found = index.search(vectors, 300)
        assert not np.isin(found.ids, gone).any()
        assert ((found.ids >= 0).sum(1) == 200).all()
        index.upsert(ids[:1], vectors[:1])
        assert index.search(vectors[:1], 1).ids[0, 0] == ids[0]

    def test_a_fork_and_its_origin_are_changed_apart(self) -> None:
        ids, vectors = random_items(1000)
        index = self.build(ids, vectors)
        before = index.search(vectors[:20], 5)
        fork = index.fork()
        fork.delete(ids[:10])
        fork.upsert(np.array([5]), vectors[10:11])
        assert (index.search(vectors[:20], 5).ids == before.ids).all()
        assert (len(index), len(fork)) == (1000, 991)
        found = fork.search(vectors[:20], 5).ids
        assert not np.isin(found, ids[:10]).any()
        assert 5 in found[10, :2]
        index.delete(ids[10:20])
        assert (fork.search(vectors[11:20], 5).ids[:, 0] == ids[11:20]).all()

    def test_an_index_can_be_emptied(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        index.delete(ids)
        assert len(index) == 0
        assert (index.search(vectors[:2], 3).ids == -1).all()

    def test_excluded_items_are_left_out_and_k_found_all_the_same(self) -> None:
        ids, vectors = random_items(1000)
        index = self.build(ids, vectors)
        queries = vectors[:6]
        best = index.search(queries, 400).ids
        exclude = [best[0, :0], best[1, :1], best[2, :40], best[3, :400], ids[:995], ids]
        found = index.search(queries, 20, exclude=[np.append(labels, 2) for labels in exclude])
        for row, labels in enumerate(exclude):
            assert not np.isin(found.ids[row], labels).any()
            assert (found.ids[row] >= 0).sum() == min(20, 1000 - len(labels))
        _assert_true_scores(found, queries, ids, vectors)

    def test_only_allowed_items_are_returned_and_k_of_them(self) -> None:
        ids, vectors = random_items(1000)
        index = self.build(ids, vectors)
        exact = ExactIndex.build(ids, vectors)
        for share in (0.0, 0.002, 0.05, 0.5, 1.0):
            allowed = ids[: int(1000 * share)]
            found = index.search(vectors[:9], 20, allowed=allowed)
            assert ((found.ids >= 0).sum(1) == min(20, len(allowed))).all()
            assert np.isin(found.ids[found.ids >= 0], allowed).all()
            wanted = exact.search(vectors[:9], 20, allowed=allowed)
            assert np.mean(found.ids == wanted.ids) >= self.min_ann_recall - 0.05

    def test_a_mask_over_labels_allows_the_same_as_a_list(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        index.upsert(ids[:30], vectors[:30])
        allowed = np.sort(ids[20:150])
        mask = np.zeros(allowed[-1] + 1, np.bool_)
        mask[allowed] = True
        exclude = [ids[25:60]] * 4
        first = index.search(vectors[:4], 200, exclude, allowed)
        second = index.search(vectors[:4], 200, exclude, mask)
        assert (first.ids == second.ids).all()
        assert ((first.ids >= 0).sum(1) == 95).all()

    def test_save_open_and_mmap_agree(self, tmp_path: Path) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids[:250], vectors[:250])
        index.upsert(ids[240:], -vectors[240:])
        index.delete(ids[:10])
        before = index.search(vectors, 30)
        index.save(tmp_path / "first")
        for mmap in (False, True):
            opened = open_index(tmp_path / "first", mmap=mmap)
            assert len(opened) == 290
            _assert_same(opened.search(vectors, 30), before)
            opened.upsert(ids[:1], vectors[:1])
            opened.delete(ids[20:30])
            assert opened.search(vectors[:1], 1).ids[0, 0] == ids[0]
            opened.save(tmp_path / f"second-{mmap}")
            assert len(open_index(tmp_path / f"second-{mmap}")) == 281
        _assert_same(open_index(tmp_path / "first").search(vectors, 30), before)

    def test_an_empty_index_can_be_saved(self, tmp_path: Path) -> None:
        ids, vectors = random_items(5)
        self.build(ids[:0], vectors[:0]).save(tmp_path / "index")
        opened = open_index(tmp_path / "index")
        assert len(opened) == 0
        assert (opened.search(vectors, 3).ids == -1).all()

    def test_saving_never_writes_over_anything(self, tmp_path: Path) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        index.save(tmp_path / "index")
        _refused(lambda: index.save(tmp_path / "index"))
        assert len(open_index(tmp_path / "index")) == 300

    def test_altered_folders_are_not_loaded(self, tmp_path: Path) -> None:
        ids, vectors = random_items(300)
        self.build(ids, vectors).save(tmp_path / "index")
        for path in sorted((tmp_path / "index").rglob("*")):
            if path.is_dir():
                continue
            content = path.read_bytes()
            for altered in (b"", content[:-1], b"foreign" + content[7:], content + b" "):
                path.write_bytes(altered)
                # An added blank keeps index.json whole.
                if not (path.suffix == ".json" and altered.endswith(b" ")):
                    _not_loaded(tmp_path / "index")
            path.write_bytes(content)
        (tmp_path / "index" / "more.bin").write_bytes(b"x")
        _not_loaded(tmp_path / "index")
        _not_loaded(tmp_path / "absent")

    def test_malformed_input_is_refused_and_changes_nothing(self) -> None:
        ids, vectors = random_items(300)
        index = self.build(ids, vectors)
        before = index.search(vectors, 10)
        broken = vectors[:2].copy()
        for value in (np.nan, np.inf, 1e30):
            broken[1, 3] = value
            _refused(lambda: index.upsert(ids[:2], broken))
            _refused(lambda: index.search(broken, 3))
            _refused(lambda: self.build(ids[:2], broken))
        _refused(lambda: index.upsert(ids[:2], vectors[:3]))
        _refused(lambda: index.upsert(ids[:2], vectors[:2, :8]))
        _refused(lambda: index.upsert(np.array([-1]), vectors[:1]))
        _refused(lambda: index.upsert(np.array([0.5]), vectors[:1]))
        _refused(lambda: index.delete(np.array(["a"])))
        _refused(lambda: index.search(vectors[0], 3))
        _refused(lambda: index.search(vectors[:1].astype(np.float64), 3))
        _refused(lambda: index.search(vectors[:1, :8], 3))
        _refused(lambda: index.search(vectors[:1], 0))
        _refused(lambda: index.search(vectors[:2], 3, exclude=[ids[:1]]))
        _assert_same(index.search(vectors, 10), before)

    def test_a_search_sees_each_change_wholly_or_not_at_all(self) -> None:
        ids, vectors = random_items(300)
        moving, target = ids[:40], vectors[:1]
        index = self.build(ids, vectors)
        index.upsert(moving, np.repeat(2 * target, 40, axis=0))
        torn: list[FloatArray] = []
        done = threading.Event()

        def search() -> None:
            while not done.is_set():
                scores = index.search(target, 40).scores[0]
                if len(set(np.round(scores, 3).tolist())) != 1:
                    torn.append(scores)

        readers = [threading.Thread(target=search) for _ in range(3)]
        for reader in readers:
            reader.start()
        for change in range(60):
            index.upsert(moving, np.repeat((2 + change % 2) * target, 40, axis=0))
        done.set()
        for reader in readers:
            reader.join()
        assert not torn


def _assert_true_scores(
    found: SearchResult, queries: FloatArray, ids: IntArray, vectors: FloatArray
) -> None:
    order = np.argsort(ids)
    places = order[np.minimum(np.searchsorted(ids, found.ids, sorter=order), len(ids) - 1)]
    true = np.einsum("nd,nkd->nk", queries, vectors[places])
    filled = found.ids >= 0
    assert (ids[places][filled] == found.ids[filled]).all()
    assert np.allclose(found.scores[filled], true[filled], atol=_TOLERANCE)
    assert np.isneginf(found.scores[~filled]).all()


def _assert_same(found: SearchResult, wanted: SearchResult) -> None:
    assert (found.ids == wanted.ids).all()
    assert np.allclose(found.scores, wanted.scores, atol=_TOLERANCE)


def _refused(call: Callable[[], object]) -> None:
    try:
        call()
    except DataError:
        return
    raise AssertionError("expected a DataError")


def _not_loaded(folder: Path) -> None:
    try:
        open_index(folder)
    except CorruptArtifact:
        return
    raise AssertionError("expected CorruptArtifact")
