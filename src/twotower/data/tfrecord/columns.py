"""Columns of values, some or none a row, and how the codec sees them."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = [
    "BYTES",
    "FLOAT",
    "FRAME_BYTES",
    "HEAD_BYTES",
    "INT",
    "KIND_NUMBERS",
    "Column",
    "ColumnKind",
    "Layout",
    "RaggedColumn",
    "ShardEntry",
    "layout",
]

IntArray = npt.NDArray[np.int64]
ColumnKind = Literal["int", "float", "bytes", "ints", "floats", "byte_lists"]

BYTES: Final = 1
FLOAT: Final = 2
INT: Final = 3
"""Numbers of the fields of `tf.train.Feature`, which are its kinds."""
HEAD_BYTES: Final = 12
"""Of a record before its content: the content's length and that length's checksum."""
FRAME_BYTES: Final = 16
"""Of a record beside its content: the head, and the content's checksum behind it."""
KIND_NUMBERS: Final[dict[ColumnKind, int]] = {
    "bytes": BYTES,
    "byte_lists": BYTES,
    "float": FLOAT,
    "floats": FLOAT,
    "int": INT,
    "ints": INT,
}


class RaggedColumn(NamedTuple):
    """`n` lists: row `r` is `values[offsets[r]:offsets[r + 1]]`; an empty one is missing."""

    values: npt.NDArray[Any]
    """`[m]`: int64, float32, or byte strings as `S` or as objects."""
    offsets: IntArray
    """`[n + 1]`, from 0."""


Column = npt.NDArray[Any] | RaggedColumn
"""One value a row, or a list of them."""


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest says of one file of records."""

    name: str
    rows: int
    bytes: int
    xxh3: str
    """XXH3-128 of its bytes: against accidents, as everything here."""


class Layout(NamedTuple):
    """Names and kinds of the columns as plain arrays."""

    names: npt.NDArray[np.uint8]
    ends: IntArray
    kinds: IntArray


def layout(names: list[str], kinds: list[int]) -> Layout:
    """Return the columns as the compiled loops take them."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    return Layout(np.frombuffer(b"".join(encoded), np.uint8), ends, np.array(kinds, np.int64))
