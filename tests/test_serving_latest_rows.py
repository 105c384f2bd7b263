"""The newest row of each user is found, whatever deltas came, and nothing is copied for it."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.serving.latest_rows import LatestRows


def ids_of(values: list[int], *, text: bool) -> np.ndarray:
    if not text:
        return np.array(sorted(values), np.int64)
    return np.array(sorted(f"{value}".encode() for value in values))


def found(rows: LatestRows, user: int) -> np.ndarray:
    row = rows.find(np.array([user]))
    assert row is not None
    return row


@pytest.mark.parametrize("seed", range(12))
def test_it_finds_what_a_dictionary_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, width = bool(seed % 2), 10 ** (1 + seed % 4)
    rows = LatestRows()
    expected: dict[int | bytes, list[int]] = {}
    for number in range(9):
        chosen = np.unique(rng.integers(0, width, rng.integers(0, 2 * width**0.5 * 3))).tolist()
        ids = ids_of(chosen, text=text)
        block = np.column_stack([np.full(len(ids), number), np.arange(len(ids))])
        rows = rows.with_block(ids, block.astype(np.float32))
        expected.update(zip(ids.tolist(), block.tolist(), strict=True))
        for value in range(min(width, 200)):
            wanted = ids_of([value], text=text)
            row = rows.find(wanted)
            assert (None if row is None else row[0].tolist()) == expected.get(wanted[0])
    assert rows.find(ids_of([width * 10**6], text=text)) is None, "longer than any"


def test_there_are_few_runs_and_a_small_delta_is_not_merged_into_a_large_one() -> None:
    rows = LatestRows()
    large = np.arange(1000)
    rows = rows.with_block(large, np.zeros((1000, 2), np.float32))
    first = rows.runs[0]
    for number in range(100):
        rows = rows.with_block(np.array([number]), np.full((1, 2), number, np.float32))
        assert rows.runs[0] is first, "the large run was copied for a small one"
        assert len(rows.runs) <= 5
    assert found(rows, 50)[0, 0] == 50
    assert found(rows, 500)[0, 0] == 0


def test_blocks_stay_where_they_are() -> None:
    older, newer = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    rows = LatestRows().with_block(np.array([1, 2]), older).with_block(np.array([2, 3]), newer)
    for user, block in ((1, older), (2, newer), (3, newer)):
        assert np.shares_memory(found(rows, user), block)
    assert LatestRows().with_block(np.zeros(0, np.int64), older[:0]).blocks == ()
