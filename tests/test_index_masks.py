"""What one search hides is hidden from it alone, wherever the rows lie."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from twotower.index.contract import random_items
from twotower.index.exact import ExactIndex
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import FloatArray, IntArray, SearchResult
from twotower.index.row_mask import BitmapCopy, RowMask, SharedMask
from twotower.index.rows import make_rows

pytest.importorskip("faiss", reason="needs the extra 'serve'")

from twotower.index.faiss import Hnsw, Ivf

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


def test_rows_hidden_in_one_byte_are_all_hidden_and_shown_again() -> None:
    shared = SharedMask(np.arange(20) != 3)
    copy = BitmapCopy(shared.bits)
    rows = np.array([0, 1, 2, 9, 17])
    copy.hide(rows)
    left = np.flatnonzero(np.unpackbits(copy.bits, bitorder="little"))
    assert left.tolist() == [row for row in range(20) if row not in (0, 1, 2, 3, 9, 17)]
    copy.show(rows)
    assert (copy.bits == shared.bits).all()


def test_a_mask_counts_and_names_what_it_allows() -> None:
    mask = SharedMask(np.arange(6) != 3).hiding(np.array([1, 3, 4]))
    assert mask.hidden.tolist() == [1, 4]
    assert (mask.num_allowed, mask.num_rows) == (3, 6)
    assert mask.allowed_rows().tolist() == [0, 2, 5]
    assert mask.hidden_rows().tolist() == [1, 3, 4]
    assert mask.allows(np.array([[5, 4, 3], [0, 1, -1]])).tolist() == [
        [True, False, False],
        [True, False, False],
    ]


def test_a_mask_that_hides_nothing_is_the_shared_one() -> None:
    mask = SharedMask(np.ones(4, np.bool_)).hiding_nothing()
    assert mask == RowMask(mask.shared, mask.hidden)
    assert mask.num_allowed == 4
    assert mask.hidden_rows().tolist() == []


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


def test_a_seen_item_that_was_deleted_or_named_twice_is_missing_once() -> None:
    index, exact = built(), ExactIndex.build(IDS, VECTORS)
    for each in (index, exact):
        each.delete(IDS[:1000])
    seen = [np.concatenate([IDS[:1200], IDS[:1200], IDS[:1200]])]
    found = index.search(QUERIES[:1], 800, exclude=seen)
    assert same(found, exact.search(QUERIES[:1], 800, exclude=seen))
    assert (found.ids >= 0).all()


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
