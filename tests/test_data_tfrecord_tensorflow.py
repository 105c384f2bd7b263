"""TFRecord files between this package and TensorFlow, in both directions, column by column."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tfrecord_rows import KINDS, assert_same, rows
from twotower.data.tfrecord import Column, RaggedColumn, read_shard, write_shard

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip(
        "TensorFlow is not installed; pip install 'twotower[tensorflow]'", allow_module_level=True
    )

TENSORFLOW_KINDS = {
    name: {"ints": "int", "floats": "float", "byte_lists": "bytes"}.get(kind, kind)
    for name, kind in KINDS.items()
}
NUMBERS: dict[str, Column] = {
    name: column for name, column in rows().items() if name in ("user_id", "weight")
}
"""The columns of the quick way of writing: as many numbers in every row."""


class Exchange(NamedTuple):
    folder: Path
    seen: dict[str, Any]


def as_rows(columns: dict[str, Column]) -> list[dict[str, list[Any]]]:
    """The rows as JSON has them; a missing feature is absent."""
    lists = {name: as_lists(column) for name, column in columns.items()}
    return [
        {name: column[row] for name, column in lists.items() if column[row]}
        for row in range(len(next(iter(lists.values()))))
    ]


def as_lists(column: Column) -> list[list[Any]]:
    if not isinstance(column, RaggedColumn):
        column = RaggedColumn(column, np.arange(len(column) + 1))
    values = [
        value.hex() if isinstance(value, bytes) else value for value in column.values.tolist()
    ]
    limits = column.offsets.tolist()
    return [values[start:end] for start, end in itertools.pairwise(limits)]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Files of ours for TensorFlow, and files of TensorFlow's; one process does both."""
    folder = tmp_path_factory.mktemp("tensorflow")
    (folder / "ours").mkdir()
    write_shard(folder / "ours" / "all", rows())
    write_shard(folder / "ours" / "numbers", NUMBERS)
    wanted = {"kinds": TENSORFLOW_KINDS, "rows": as_rows(rows())}
    (folder / "wanted.json").write_text(json.dumps(wanted))
    script = Path(__file__).with_name("tensorflow_records.py")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Exchange(folder, json.loads((folder / "seen.json").read_text()))


@pytest.mark.parametrize(("name", "columns"), [("all", rows()), ("numbers", NUMBERS)])
def test_tensorflow_reads_every_column_back(
    exchange: Exchange, name: str, columns: dict[str, Column]
) -> None:
    expected = as_rows(columns)
    empty: dict[str, list[Any]] = {column: [] for column in KINDS}
    assert exchange.seen[name]["message"] == expected
    assert exchange.seen[name]["parser"] == [empty | row for row in expected]


@pytest.mark.parametrize("name", ["theirs", "theirs.gz"])
def test_what_tensorflow_wrote_is_read(exchange: Exchange, name: str) -> None:
    found = read_shard(exchange.folder / name, KINDS)
    assert_same(found.columns, rows())
