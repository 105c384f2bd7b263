"""TFRecord files: rows of 12 features a second, written and read, beside TensorFlow itself.

The features are those of a usual example: 8 integers, a history of 20 IDs, 8 dense numbers and two
more. Both sides write and read the same rows, on the same disk, one after the other; TensorFlow
runs in a process of its own and may use every core. Writing includes the fsync.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from twotower.data.tfrecord import Column, ColumnKind, RaggedColumn, read_shard, write_shard

__all__ = ["tfrecord"]

NUM_ROWS: Final = 300_000
HISTORY: Final = 20
DENSE: Final = 8
ROUNDS: Final = 3
SCALARS: Final = (
    "user_id",
    "item_id",
    "request_id",
    "time_ms",
    "device",
    "category",
    "hour",
    "label",
)
KINDS: Final[dict[str, ColumnKind]] = {
    **dict.fromkeys(SCALARS, "int"),
    "history": "ints",
    "dense": "floats",
    "weight": "float",
    "price": "float",
}


def tfrecord(folder: Path) -> dict[str, float | str | None]:
    """Medians of 3 rounds; histories of one length, then of 0 to 20, and TensorFlow's own."""
    path, columns = folder / "ours", make_columns()
    ragged = columns | {"history": ragged_history(), "stage": stages()}
    write_shard(folder / "ragged", ragged)  # compiles the loops where they never ran
    read_shard(folder / "ragged", KINDS)
    return {
        "tfrecord_write_per_s": rate(lambda: write_shard(path, columns)),
        "tfrecord_read_per_s": rate(lambda: read_shard(path, KINDS)),
        "tfrecord_ragged_write_per_s": rate(lambda: write_shard(folder / "ragged", ragged)),
        "tfrecord_ragged_read_per_s": rate(
            lambda: read_shard(folder / "ragged", {**KINDS, "stage": "bytes"})
        ),
        **tensorflow(folder),
    }


def make_columns() -> dict[str, Column]:
    """Rows as a feed's examples have them, histories of one length."""
    random = np.random.default_rng(0)
    limits = (10**7, 10**6, 2**62, 1, 5, 300, 24, 2)
    columns: dict[str, Column] = {
        name: random.integers(0, limit, NUM_ROWS)
        for name, limit in zip(SCALARS, limits, strict=True)
    }
    columns["time_ms"] = 1_760_000_000_000 + np.arange(NUM_ROWS)
    history = random.integers(0, 10**6, NUM_ROWS * HISTORY)
    columns["history"] = RaggedColumn(history, np.arange(NUM_ROWS + 1) * HISTORY)
    dense = random.random(NUM_ROWS * DENSE, np.float32)
    columns["dense"] = RaggedColumn(dense, np.arange(NUM_ROWS + 1) * DENSE)
    return columns | {name: random.random(NUM_ROWS, np.float32) for name in ("weight", "price")}


def ragged_history() -> RaggedColumn:
    """Histories of 0 to 20 IDs."""
    random = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, HISTORY + 1, NUM_ROWS))])
    return RaggedColumn(random.integers(0, 10**6, offsets[-1]), offsets)


def stages() -> Column:
    """A byte string a row."""
    return np.array([b"", b"ranking", b"pre-ranking"])[np.arange(NUM_ROWS) % 3]


def rate(action: Callable[[], object]) -> float:
    """Rows a second, the median of the rounds."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return NUM_ROWS / statistics.median(seconds)


def tensorflow(folder: Path) -> dict[str, float | str | None]:
    """What TensorFlow needs for the same rows; nothing where it is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        reason = "TensorFlow is not installed: pip install 'twotower[tensorflow]'"
        names = ("tensorflow_write_per_s", "tensorflow_read_per_s")
        return {**dict.fromkeys(names), "tensorflow_left_out": reason}
    script = Path(__file__).with_name("tensorflow_rates.py")
    words = [sys.executable, str(script), str(folder), str(NUM_ROWS), str(HISTORY), str(DENSE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"TensorFlow's half failed:\n{done.stderr[-2000:]}")
    found: dict[str, float | str | None] = json.loads(done.stdout.splitlines()[-1])
    return found
