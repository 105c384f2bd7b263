"""TensorFlow's own rates for the rows of `stream_tfrecord`, in a process of its own.

    python benchmarks/tensorflow_rates.py FOLDER ROWS HISTORY DENSE

Reads `FOLDER/ours` as input pipelines do, in batches of 4,096 by `tf.io.parse_example` on every
core, and checks that it got every row; writes a twentieth of the rows, because it is slow at that.
Prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

import tensorflow as tf

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
ROUNDS: Final = 3


def features(history: int, dense: int) -> dict[str, Any]:
    """The shape of every feature."""
    return {
        **{name: tf.io.FixedLenFeature([], tf.int64) for name in SCALARS},
        "history": tf.io.FixedLenFeature([history], tf.int64),
        "dense": tf.io.FixedLenFeature([dense], tf.float32),
        "weight": tf.io.FixedLenFeature([], tf.float32),
        "price": tf.io.FixedLenFeature([], tf.float32),
    }


def read(path: Path, shapes: dict[str, Any]) -> int:
    """Every row of the file as columns; returns how many there were."""
    records = tf.data.TFRecordDataset(str(path), buffer_size=8 << 20)
    parsed = records.batch(4096).map(
        lambda batch: tf.io.parse_example(batch, shapes), num_parallel_calls=tf.data.AUTOTUNE
    )
    return sum(int(batch["label"].shape[0]) for batch in parsed.prefetch(tf.data.AUTOTUNE))


def rows(source: Path, num_rows: int) -> list[dict[str, list[Any]]]:
    """The first rows of the file as Python values."""
    records = tf.data.TFRecordDataset(str(source)).take(num_rows)
    examples = [tf.train.Example.FromString(record.numpy()) for record in records]
    return [
        {
            name: list(feature.int64_list.value or feature.float_list.value)
            for name, feature in example.features.feature.items()
        }
        for example in examples
    ]


def example(row: dict[str, list[Any]]) -> Any:
    """A row as the message."""
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
                if isinstance(values[0], int)
                else tf.train.Feature(float_list=tf.train.FloatList(value=values))
                for name, values in row.items()
            }
        )
    )


def write(path: Path, values: list[dict[str, list[Any]]]) -> None:
    """Every row as an Example of its own, as TensorFlow's guide writes them."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in values:
            writer.write(example(row).SerializeToString())


def seconds(action: Any) -> float:
    """The median of the rounds, after one that warms up."""
    action()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Measure both and print the rates."""
    folder, (num_rows, history, dense) = Path(sys.argv[1]), map(int, sys.argv[2:])
    shapes = features(history, dense)
    found = read(folder / "ours", shapes)
    if found != num_rows:
        raise SystemExit(f"expected {num_rows} rows, TensorFlow found {found}")
    values = rows(folder / "ours", num_rows // 20)
    rates = {
        "tensorflow_write_per_s": len(values) / seconds(lambda: write(folder / "theirs", values)),
        "tensorflow_read_per_s": num_rows / seconds(lambda: read(folder / "ours", shapes)),
    }
    sys.stdout.write(json.dumps(rates) + "\n")


if __name__ == "__main__":
    main()
