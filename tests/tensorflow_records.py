"""TensorFlow's half of the TFRecord tests, run once in a process of its own.

    python tests/tensorflow_records.py FOLDER

Reads every file of `FOLDER/ours` with `tf.train.Example` and with `tf.io.parse_example`, writes
what it saw to `FOLDER/seen.json`, and writes `FOLDER/theirs` and `FOLDER/theirs.gz` from
`FOLDER/wanted.json`. Byte strings are hexadecimal in JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

Row = dict[str, list[Any]]
DTYPES = {"int": tf.int64, "float": tf.float32, "bytes": tf.string}


def plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def by_message(record: bytes) -> Row:
    """What the message holds: absent features are absent."""
    features = tf.train.Example.FromString(record).features.feature
    return {
        name: [plain(value) for value in getattr(feature, feature.WhichOneof("kind")).value]
        for name, feature in features.items()
    }


def by_parser(records: list[bytes], kinds: dict[str, str]) -> list[Row]:
    """What the parser of input pipelines makes of the same records: lists of every column."""
    features = {
        name: tf.io.RaggedFeature(DTYPES[kind], row_splits_dtype=tf.int64)
        for name, kind in kinds.items()
    }
    parsed = tf.io.parse_example(tf.constant(records), features)
    lists = {name: column.to_list() for name, column in parsed.items()}
    return [
        {name: [plain(value) for value in column[row]] for name, column in lists.items()}
        for row in range(len(records))
    ]


def feature(kind: str, values: list[Any]) -> Any:
    if kind == "int":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if kind == "float":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    content = [bytes.fromhex(value) for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=content))


def main() -> None:
    folder = Path(sys.argv[1])
    wanted = json.loads((folder / "wanted.json").read_text())
    seen: dict[str, Any] = {}
    for path in sorted((folder / "ours").iterdir()):
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        seen[path.name] = {
            "message": [by_message(record) for record in records],
            "parser": by_parser(records, wanted["kinds"]),
        }
    (folder / "seen.json").write_text(json.dumps(seen))
    for name, options in (("theirs", None), ("theirs.gz", "GZIP")):
        with tf.io.TFRecordWriter(str(folder / name), options) as writer:
            for row in wanted["rows"]:
                features = {name: feature(wanted["kinds"][name], row[name]) for name in row}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


if __name__ == "__main__":
    main()
