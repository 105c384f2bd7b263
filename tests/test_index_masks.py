"""What one search hides is hidden from it alone, wherever the rows lie."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from twotower.errors import DataError
from twotower.index import masked
from twotower.index.contract import random_items
from twotower.index.exact import ExactIndex
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import FloatArray, IntArray, SearchResult
from twotower.index.row_mask import MaskCopy, RowMask, SharedMask
from twotower.index.rows import make_rows

pytest.importorskip("faiss", reason="needs the extra 'serve'")

from twotower.index.faiss import Hnsw, Ivf, load_faiss
from twotower.index.hnswlib import Hnswlib
from twotower.index.native import NativeEngine
from twotower.index.scann import Scann

IDS: IntArray = np.arange(2000, dtype=np.int64)
VECTORS: FloatArray = random_items(2000)[1]
QUERIES: FloatArray = random_items(8, seed=1)[1]
EXACT = ExactIndex.build(IDS, VECTORS)


def built() -> FrozenIndex:
    index = FrozenIndex.build(Ivf(), IDS, VECTORS)
    index.effort = index.efforts()[-1]
    return index


def same(found: SearchResult, wanted: SearchResult) -> bool:
    return bool((found.ids == wanted.ids).all()) and np.allclose(found.scores, wanted.scores)


@pytest.mark.parametrize("rows", [[0, 1, 2, 9, 17], [17, 2, 1, 2, 0, 9, 17, 3]])
def test_rows_hidden_in_one_byte_are_all_hidden_and_shown_again(rows: list[int]) -> None:
    shared = SharedMask(np.arange(20) != 3)
    copy = MaskCopy(shared)
    for _ in range(2):
        copy.hide(np.array(rows))
        left = np.flatnonzero(np.unpackbits(copy.bits, bitorder="little"))
        assert left.tolist() == [row for row in range(20) if row not in (0, 1, 2, 3, 9, 17)]
        copy.show(np.array(rows))
        assert (copy.bits == shared.bits).all()
    copy.hide(np.array([4]))
    assert np.flatnonzero(np.unpackbits(copy.bits, bitorder="little"))[:4].tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("num_rows", [100, 9000])
@pytest.mark.parametrize("every", [1, 3])
def test_a_few_rows_of_many_are_hidden_and_shown_again(num_rows: int, every: int) -> None:
    shared = SharedMask(np.arange(num_rows) % every == 0)
    copy, rows = MaskCopy(shared), np.array([70, 2, 64, 70, 99])
    for _ in range(2):
        copy.hide(rows)
        left = np.flatnonzero(np.unpackbits(copy.bits, bitorder="little"))
        assert left.tolist() == np.setdiff1d(np.arange(0, num_rows, every), rows).tolist()
        copy.show(rows)
        assert (copy.bits == shared.bits).all()


def test_a_copy_takes_over_another_mask_of_its_size() -> None:
    first, second = SharedMask(np.arange(20) != 3), SharedMask(np.arange(17) != 5)
    copy = MaskCopy(first)
    assert copy.fits(second)
    copy.load(second)
    copy.hide(np.array([4]))
    left = np.flatnonzero(np.unpackbits(copy.bits, bitorder="little"))
    assert left.tolist() == [row for row in range(17) if row not in (4, 5)]


def test_a_mask_counts_and_names_what_it_allows() -> None:
    mask = SharedMask(np.arange(6) != 3).hiding(np.array([4, 1, 3, 4]))
    assert mask.hidden().tolist() == [1, 4]
    assert (mask.num_allowed, mask.fewest_allowed, mask.num_rows) == (3, 1, 6)
    assert mask.allowed_rows().tolist() == [0, 2, 5]
    assert mask.hidden_rows().tolist() == [1, 3, 4]
    assert mask.allows(np.array([[5, 4, 3], [0, 1, -1]])).tolist() == [
        [True, False, False],
        [True, False, False],
    ]


def test_a_mask_that_hides_nothing_is_the_shared_one() -> None:
    mask = SharedMask(np.ones(4, np.bool_)).hiding_nothing()
    assert mask == RowMask(mask.shared, mask.named)
    assert mask.num_allowed == 4
    assert mask.hidden_rows().tolist() == []


@pytest.mark.parametrize("labels", [np.arange(50), 3 * np.arange(50) + 7])
def test_labels_are_named_by_their_rows_and_unknown_ones_by_none(labels: IntArray) -> None:
    rows = make_rows(labels, np.ones((50, 2), np.float32))
    asked = labels[[9, 4, 9, 49]]
    assert sorted(set(rows.named(asked).tolist())) == [4, 9, 49]
    assert rows.named(np.append(asked, 10**6)).tolist() == [4, 9, 49]
    assert rows.named(asked[:0]).tolist() == []
    with pytest.raises(DataError, match="labels of 0 or more"):
        rows.named(np.array([3, -1]))


@pytest.mark.parametrize("labels", [np.arange(50), 3 * np.arange(50) + 7])
def test_known_rows_are_distinct_and_ascend(labels: IntArray) -> None:
    rows = make_rows(labels, np.ones((50, 2), np.float32))
    asked = np.array([labels[9], 10**6, labels[4], labels[9], labels[49], labels[4]])
    assert rows.known(asked).tolist() == [4, 9, 49]
    assert rows.known(asked[:0]).tolist() == []


def test_what_one_search_hides_the_next_one_finds() -> None:
    index = built()
    best = EXACT.search(QUERIES, 60).ids
    for row in range(len(QUERIES)):
        query, seen = QUERIES[row : row + 1], [best[row]]
        assert same(index.search(query, 20, exclude=seen), EXACT.search(query, 20, exclude=seen))
        assert same(index.search(query, 20), EXACT.search(query, 20))
        empty = [IDS[:0]]
        assert same(index.search(query, 20, exclude=empty), EXACT.search(query, 20))


def test_conditions_and_exclusions_take_turns() -> None:
    index, is_even = built(), IDS % 2 == 0
    for row in range(len(QUERIES)):
        query = QUERIES[row : row + 1]
        seen = [EXACT.search(query, 30).ids[0]]
        for allowed in (is_even, None, ~is_even):
            found = index.search(query, 20, exclude=seen, allowed=allowed)
            assert same(found, EXACT.search(query, 20, exclude=seen, allowed=allowed))
            found = index.search(query, 20, allowed=allowed)
            assert same(found, EXACT.search(query, 20, allowed=allowed))


def test_a_seen_item_that_was_deleted_or_named_twice_is_missing_once() -> None:
    index, exact = built(), ExactIndex.build(IDS, VECTORS)
    for each in (index, exact):
        each.delete(IDS[:1000])
    seen = [np.concatenate([IDS[:1200], IDS[:1200], IDS[:1200]])]
    found = index.search(QUERIES[:1], 800, exclude=seen)
    assert same(found, exact.search(QUERIES[:1], 800, exclude=seen))
    assert (found.ids >= 0).all()


def test_what_is_named_twice_is_made_up_for_where_few_lists_are_read() -> None:
    index, seen = built(), [np.repeat(IDS[:100], 3)]
    wanted = EXACT.search(QUERIES[:1], 1900, exclude=seen)
    for effort in range(1, index.efforts()[-1] + 1):
        index.effort = effort
        assert same(index.search(QUERIES[:1], 1900, exclude=seen), wanted)


def test_equal_scores_come_in_the_order_of_their_labels() -> None:
    twins = np.repeat(VECTORS[:500], 4, axis=0)[np.random.default_rng(0).permutation(2000)]
    index, exact = FrozenIndex.build(Ivf(), IDS, twins), ExactIndex.build(IDS, twins)
    index.effort = index.efforts()[-1]
    for row in range(len(QUERIES)):
        query = QUERIES[row : row + 1]
        assert (index.search(query, 5).ids == exact.search(query, 5).ids).all()


@pytest.mark.parametrize("engine", [Ivf(), Hnsw(), Hnswlib(), Scann()])
def test_products_are_those_of_the_named_rows_and_none_for_padding(engine: NativeEngine) -> None:
    rows = np.array([[7, 2, -1, 7], [1999, -1, -1, 0]])
    found = engine.products(VECTORS, QUERIES[:2], rows)
    wanted = np.einsum("nd,nkd->nk", QUERIES[:2], VECTORS[rows])
    assert np.isneginf(found[rows < 0]).all()
    assert np.allclose(found[rows >= 0], wanted[rows >= 0], atol=1e-6)


def test_one_query_wakes_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss, used = load_faiss(), list[int]()
    index, before, products = built(), faiss.omp_get_max_threads(), faiss.fvec_inner_products_by_idx

    def counted(*arguments: Any) -> None:
        used.append(faiss.omp_get_max_threads())
        products(*arguments)

    monkeypatch.setattr(faiss, "fvec_inner_products_by_idx", counted)
    try:
        faiss.omp_set_num_threads(2)
        index.search(QUERIES[:1], 20)
        index.search(QUERIES[:1], 20, allowed=IDS[:100])
        index.search(QUERIES, 20)
        assert used == [1, 1, 2]
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("kind", ["exact", "faiss_ivf"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_mask_that_never_changes_is_kept_with_the_items_it_was_for(
    kind: str, share: float
) -> None:
    index = ExactIndex.build(IDS, VECTORS) if kind == "exact" else built()
    mask = np.random.default_rng(0).random(2000) < share
    mask.flags.writeable = False
    before = index.search(QUERIES, 20, allowed=mask)
    assert same(before, EXACT.search(QUERIES, 20, allowed=mask.copy()))
    index.delete(before.ids[0])
    assert not np.isin(before.ids[0], index.search(QUERIES, 20, allowed=mask).ids).any()


@pytest.mark.parametrize("kind", ["exact", "faiss_ivf"])
def test_a_mask_that_may_change_is_read_again(kind: str) -> None:
    index = ExactIndex.build(IDS, VECTORS) if kind == "exact" else built()
    mask = IDS < 1000
    assert (index.search(QUERIES, 20, allowed=mask).ids < 1000).all()
    np.logical_not(mask, out=mask)
    assert (index.search(QUERIES, 20, allowed=mask).ids >= 1000).all()


def test_few_allowed_rows_are_scanned_and_more_where_lists_would_look_at_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masked, "_FEW_ROWS", 285)
    index, scans = built(), list[int]()

    def counted(search: masked.MaskedSearch, queries: FloatArray, k: int, mask: RowMask) -> Any:
        scans.append(mask.num_allowed)
        return search.rows.search(queries, k, among=mask.allowed_rows())

    monkeypatch.setattr(masked.MaskedSearch, "_scan", counted)
    for effort, num_allowed, is_scanned in (
        (1, 285, True),
        (1, 290, False),
        (index.efforts()[-1], 290, True),
        (index.efforts()[-1], 300, False),
    ):
        index.effort, scans[:] = effort, []
        found = index.search(QUERIES[:1], 5, allowed=IDS[::6][:num_allowed])
        assert (found.ids >= 0).all()
        assert scans == ([num_allowed] if is_scanned else []), (effort, num_allowed)


def test_threads_hide_apart() -> None:
    index, wrong = FrozenIndex.build(Hnsw(), IDS, VECTORS), list[int]()
    index.effort = index.efforts()[-1]
    best = EXACT.search(QUERIES, 40).ids

    def searching(row: int) -> None:
        for _ in range(30):
            found = index.search(QUERIES[row : row + 1], 20, exclude=[best[row, :20]])
            if (
                np.isin(found.ids[0], best[row, :20]).any()
                or not np.isin(best[row, 20:22], found.ids[0]).all()
            ):
                wrong.append(row)

    threads = [threading.Thread(target=searching, args=(row,)) for row in range(len(QUERIES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
