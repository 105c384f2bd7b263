"""An exact search in tiles answers as one over the whole matrix of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twotower.index import scan as scanning
from twotower.index.interface import FloatArray, IntArray
from twotower.index.rows import make_rows
from twotower.index.scan import Hidden, scan
from twotower.index.top_k import TopK, best_candidates, best_of

NOTHING: IntArray = np.zeros(0, np.int64)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_TILE_SCORES", 1)
    monkeypatch.setattr(scanning, "_FEWEST_ITEMS", 100)
    monkeypatch.setattr(scanning, "_ITEMS_A_RESULT", 1)


def some(num_items: int, num_queries: int = 7) -> tuple[FloatArray, FloatArray]:
    """Vectors of small integers, so that many scores are equal and every sum is exact."""
    random = np.random.default_rng(0)
    items = random.integers(-3, 4, (num_items, 5)).astype(np.float32)
    return items, random.integers(-3, 4, (num_queries, 5)).astype(np.float32)


def sorted_whole(items: FloatArray, queries: FloatArray, k: int, hidden: Hidden) -> TopK:
    scores = queries @ items.T
    hidden.cover(scores, 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, 1)
    return TopK(np.where(np.isneginf(found), -1, order), found)


@pytest.mark.parametrize("num_items", [1, 99, 100, 101, 199, 1000])
@pytest.mark.parametrize("k", [1, 20, 99, 150])
def test_tiles_change_nothing(num_items: int, k: int) -> None:
    items, queries = some(num_items)
    each = [np.arange(row, num_items, 1 + row) for row in range(len(queries))]
    for hidden in (
        Hidden.of(NOTHING, []),
        Hidden.of(np.arange(0, num_items, 3), []),
        Hidden.of(np.arange(0, num_items, 3), each),
        Hidden.of(np.arange(num_items), []),
    ):
        found = scan(items, queries, k, hidden)
        wanted = sorted_whole(items, queries, k, hidden)
        width = min(k, num_items)
        assert (found.columns[:, :width] == wanted.columns).all()
        assert (found.scores[:, :width] == wanted.scores).all()
        assert (found.columns[:, width:] == -1).all()


@pytest.mark.parametrize("num_rows", [2, 50])
@pytest.mark.parametrize("last", [200, 2**29 - 1, 2**33])
@pytest.mark.parametrize("padding", [0, 3])
def test_candidates_are_sorted_by_score_and_column(num_rows: int, last: int, padding: int) -> None:
    random = np.random.default_rng(0)
    columns = np.sort(random.choice(200, (num_rows, 40)), axis=1)
    columns[:, -1] = last
    columns[:, :padding] = -1
    scores = (random.integers(-5, 6, columns.shape) / np.float32(7)).astype(np.float32)
    scores[1] = np.where(scores[1] == 0, np.float32(-0.0), scores[1])
    scores[columns < 0] = -np.inf
    for k in (1, 20, 40, 60):
        found, wanted = best_candidates(TopK(columns, scores), k), best_of(TopK(columns, scores), k)
        assert (found.columns == wanted.columns).all()
        assert (found.scores == wanted.scores).all()
        assert found.scores.dtype == np.float32


@pytest.mark.parametrize("step", [1, -1])
def test_items_in_the_order_of_their_scores(step: int) -> None:
    """The worst case, in which all of a tile beat what was found, and the best."""
    items = np.arange(1000, dtype=np.float32)[::step, None].copy()
    found = scan(items, np.ones((3, 1), np.float32), 50, Hidden.of(NOTHING, []))
    assert (found.scores == np.arange(999, 949, -1)).all()


@pytest.mark.parametrize("step", [1, 3, 400])
def test_some_rows_are_searched_as_a_set_of_their_own(step: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(scanning, "_GATHERED_ROWS", 30)
    items, queries = some(350)
    rows, among = make_rows(5 + 2 * np.arange(350), items), np.arange(1, 350, step)
    found, wanted = rows.search(queries, 20, among=among), rows.take(among).search(queries, 20)
    assert (found.ids == wanted.ids).all()
    assert (found.scores == wanted.scores).all()
    assert (rows.search(queries, 20, among=among[:0]).ids == -1).all()


def test_more_queries_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    items, queries = some(300, num_queries=40)
    rows = make_rows(2 * np.arange(300), items)
    seen = [rows.ids[row::7] for row in range(40)]
    wanted = rows.search(queries, 9, seen)
    monkeypatch.setattr("twotower.index.rows.TILE_QUERIES", 6)
    found = rows.search(queries, 9, seen)
    assert (found.ids == wanted.ids).all()
    assert not any(np.isin(ids, out).any() for ids, out in zip(found.ids, seen, strict=True))
    assert rows.search(queries[:0], 9).ids.shape == (0, 9)
