"""Rows of every kind of feature, as columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twotower.data.tfrecord import Column, ColumnKind, RaggedColumn

KINDS: dict[str, ColumnKind] = {
    "user_id": "int",
    "weight": "float",
    "stage": "bytes",
    "recent": "ints",
    "shares": "floats",
    "tags": "byte_lists",
}


def rows(num_rows: int = 50, seed: int = 5) -> dict[str, Column]:
    """Every kind of feature: signs, empty lists, empty strings, strings that end in NUL."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(0, 4, num_rows))])
    num_values = int(offsets[-1])
    limits = np.iinfo(np.int64)
    tags = np.empty(num_values, object)
    tags[:] = [(b"", b"ab\0", b"\xff" * 20)[place % 3] for place in range(num_values)]
    return {
        "user_id": generator.integers(limits.min, limits.max, num_rows, endpoint=True),
        "weight": generator.normal(size=num_rows).astype(np.float32),
        "stage": np.array([b"ranking", b"", b"pre-ranking"])[np.arange(num_rows) % 3],
        "recent": RaggedColumn(generator.integers(-5, 5, num_values), offsets),
        "shares": RaggedColumn(generator.random(num_values).astype(np.float32), offsets),
        "tags": RaggedColumn(tags, offsets),
    }


def assert_same(found: Mapping[str, Column], expected: Mapping[str, Column]) -> None:
    assert list(found) == list(expected)
    for name, column in expected.items():
        other = found[name]
        if isinstance(column, RaggedColumn):
            assert isinstance(other, RaggedColumn), name
            assert other.offsets.tolist() == column.offsets.tolist(), name
            column, other = column.values, other.values
        assert not isinstance(other, RaggedColumn), name
        assert other.tolist() == column.tolist(), name
