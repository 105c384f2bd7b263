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
    "SLACK_BYTES",
    "Column",
    "ColumnKind",
    "Layout",
    "RaggedColumn",
    "ShardEntry",
    "joined_bytes",
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
SLACK_BYTES: Final = 8
"""Behind names, byte strings and records: they are copied in words, past their ends."""
_NAME: Final = b"\x0a"
"""Tag of a name's field."""
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

    fields: npt.NDArray[np.uint8]
    """The fields of the names as they stand in a record, one after the other, with slack."""
    ends: IntArray
    kinds: IntArray


def layout(names: list[str], kinds: list[int]) -> Layout:
    """Return the columns as the compiled loops take them."""
    fields = [_NAME + _varint(len(name.encode())) + name.encode() for name in names]
    return Layout(*joined_bytes(fields), np.array(kinds, np.int64))


def _varint(length: int) -> bytes:
    digits = bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*digits, length])


def joined_bytes(values: list[bytes]) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Return byte strings one after the other, with slack behind, and where each one ends."""
    ends = np.cumsum([0, *map(len, values)]).astype(np.int64)
    return np.frombuffer(b"".join([*values, bytes(SLACK_BYTES)]), np.uint8), ends
