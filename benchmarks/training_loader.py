"""The loader: rows a second from Parquet days and TFRecord shards into shuffled batches.

    python training_loader.py ROWS

Prints JSON. The rows are those of joined examples, six columns; an exact shuffle of the day in
memory, and one that may hold an eighth of it, files read included.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

import training_workload as workload
from twotower.data.shuffled_rows import Rows, parquet_rows, shuffled_batches, tfrecord_rows
from twotower.data.tfrecord import ColumnKind, write_shard

DTYPE: Final = np.dtype(
    [("event_key", "<i8"), ("user_id", "<i8"), ("item_id", "<i8"), ("event_time_ms", "<i8"),
     ("kind", "u1"), ("weight", "<f4")]
)  # fmt: skip
KINDS: Final[dict[str, ColumnKind]] = {
    **dict.fromkeys(("event_key", "user_id", "item_id", "event_time_ms", "kind"), "int"),
    "weight": "float",
}
ROUNDS: Final = 3
HELD: Final = 8
"""The exact shuffle may hold one in so many rows."""


def measure(num_rows: int, folder: Path) -> dict[str, float]:
    """Return the best of some rounds, rows a second."""
    rows = _day(num_rows)
    columns = {name: rows[name] for name in DTYPE.names or ()}
    day, shards = folder / "day.parquet", [folder / f"shard-{n}" for n in range(8)]
    pl.DataFrame(columns).write_parquet(day, compression="zstd")
    for shard, part in zip(shards, np.array_split(rows, len(shards)), strict=True):
        write_shard(
            shard,
            {n: part[n].astype("f4" if kind == "float" else "i8") for n, kind in KINDS.items()},
        )
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, chunks, held in (
            ("loader_rows_per_s", parquet_rows([day], DTYPE), num_rows),
            ("exact_shuffle_rows_per_s", parquet_rows([day], DTYPE), num_rows // HELD),
            ("loader_tfrecord_rows_per_s", tfrecord_rows(shards, KINDS, DTYPE), num_rows),
        ):
            rate = _rate(chunks, num_rows, held, folder)
            found[name] = max(rate, found.get(name, 0.0))
    return found


def _day(num_rows: int) -> Rows:
    random = np.random.default_rng(0)
    rows = np.empty(num_rows, DTYPE)
    rows["event_key"] = random.integers(0, 2**62, num_rows)
    rows["user_id"] = random.integers(0, workload.NUM_USERS, num_rows)
    rows["item_id"] = random.integers(0, workload.NUM_ITEMS, num_rows)
    rows["event_time_ms"] = np.sort(random.integers(0, 86_400_000, num_rows))
    rows["kind"] = random.integers(0, 3, num_rows)
    rows["weight"] = 1.0
    return rows


def _rate(chunks: Iterator[Rows], num_rows: int, held: int, folder: Path) -> float:
    began, found = time.perf_counter(), 0
    for batch in shuffled_batches(
        chunks, num_rows=num_rows, max_rows_held=held, batch_rows=workload.BATCH, seed=0,
        folder=folder,
    ):  # fmt: skip
        found += len(batch)
    if found != num_rows:
        raise AssertionError(f"{found} rows of {num_rows}")
    return num_rows / (time.perf_counter() - began)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as created:
        sys.stdout.write(json.dumps(measure(int(sys.argv[1]), Path(created))))
