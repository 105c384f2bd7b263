"""Every row once, every order as likely as any other, whether the day fits into memory or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from twotower.data.shuffled_rows import Rows, parquet_rows, shuffled_batches, tfrecord_rows
from twotower.data.tfrecord import ColumnKind, write_shard
from twotower.errors import CorruptArtifact, DataError

DTYPE = np.dtype([("event_id", "<u8"), ("user_id", "S4"), ("weight", "<f4")])


def day(num_rows: int) -> Rows:
    rows = np.empty(num_rows, DTYPE)
    rows["event_id"] = np.arange(num_rows)
    rows["user_id"] = [f"u{n % 90}".encode() for n in range(num_rows)]
    rows["weight"] = rows["event_id"] / 2
    return rows


def cut(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def shuffled(
    rows: Rows, held: int, *, batch: int = 64, seed: int = 0, size: int = 100,
    folder: Path | None = None,
) -> list[Rows]:  # fmt: skip
    chunks = cut(rows, size)
    return list(
        shuffled_batches(
            chunks, num_rows=len(rows), max_rows_held=held, batch_rows=batch, seed=seed,
            folder=folder,
        )
    )  # fmt: skip


@pytest.mark.parametrize("held", [1000, 500, 125, 20])
def test_every_row_comes_once_and_whole(held: int, tmp_path: Path) -> None:
    rows = day(1000)
    batches = shuffled(rows, held, folder=tmp_path)
    assert [len(batch) for batch in batches] == [64] * 15 + [40]
    together = np.concatenate(batches)
    assert not np.array_equal(together, rows)
    np.testing.assert_array_equal(together[np.argsort(together["event_id"])], rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", [100, 2])
def test_every_order_is_as_likely_as_any_other(held: int) -> None:
    """All 6 orders of three rows in 600 draws: 100 each, and 5 standard deviations of that."""
    orders = Counter(
        tuple(np.concatenate(shuffled(day(3), held, seed=seed))["event_id"].tolist())
        for seed in range(600)
    )
    assert len(orders) == 6
    assert all(54 < count < 146 for count in orders.values())


@pytest.mark.parametrize("held", [1000, 100])
def test_the_seed_alone_decides_the_order(held: int) -> None:
    rows = day(1000)
    first = np.concatenate(shuffled(rows, held))
    np.testing.assert_array_equal(first, np.concatenate(shuffled(rows, held, size=333)))
    np.testing.assert_array_equal(first, np.concatenate(shuffled(rows, held, batch=7)))
    assert not np.array_equal(first, np.concatenate(shuffled(rows, held, seed=1)))


def test_no_more_than_a_part_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = np.fromfile

    def watched(path: Path, dtype: np.dtype[np.void]) -> Rows:
        rows: Rows = read(path, dtype)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(np, "fromfile", watched)
    shuffled(day(10_000), 1_250)
    assert sum(sizes) == 10_000
    assert max(sizes) <= 1_250 / 2


@pytest.mark.parametrize("held", [1000, 100])
def test_a_day_of_another_length_is_refused(held: int) -> None:
    batches = shuffled_batches(
        cut(day(999), 100), num_rows=1000, max_rows_held=held, batch_rows=10, seed=0
    )
    with pytest.raises(DataError, match="expected 1000 rows to shuffle, found 999"):
        list(batches)


def test_too_little_memory_is_refused_with_what_would_do() -> None:
    with pytest.raises(DataError, match="allow at least 11"):
        shuffled(day(1000), 3)
    shuffled(day(1000), 11)


def test_parquet_days_and_tfrecord_shards_come_as_the_same_rows(tmp_path: Path) -> None:
    rows = day(500)
    columns = {name: rows[name] for name in DTYPE.names or ()}
    parquet, shard = tmp_path / "day.parquet", tmp_path / "shard"
    pl.DataFrame(columns | {"user_id": [u.decode() for u in rows["user_id"]]}).write_parquet(
        parquet
    )
    write_shard(shard, {**columns, "event_id": rows["event_id"].astype(np.int64)})
    kinds: dict[str, ColumnKind] = {"event_id": "int", "user_id": "bytes", "weight": "float"}
    for found in (
        parquet_rows([parquet, parquet], DTYPE),
        tfrecord_rows([shard] * 2, kinds, DTYPE),
    ):
        np.testing.assert_array_equal(np.concatenate(list(found)), np.concatenate([rows, rows]))
    narrow = np.dtype([("user_id", "S2")])
    with pytest.raises(DataError, match="at most 2 bytes in 'user_id', found 3"):
        list(parquet_rows([parquet], narrow))


def test_shards_are_read_ahead_and_come_in_their_order(tmp_path: Path) -> None:
    shards = [tmp_path / f"shard-{number}" for number in range(5)]
    for number, shard in enumerate(shards):
        write_shard(shard, {"user_id": np.full(3, number)})
    dtype = np.dtype([("user_id", "<i8")])
    chunks = [rows["user_id"].tolist() for rows in tfrecord_rows(shards, {"user_id": "int"}, dtype)]
    assert chunks == [[number] * 3 for number in range(5)]
    shards[3].write_bytes(shards[3].read_bytes()[:-1])
    found = tfrecord_rows(shards, {"user_id": "int"}, dtype)
    assert [next(found)["user_id"][0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorruptArtifact, match="shard-3 is cut"):
        next(found)
