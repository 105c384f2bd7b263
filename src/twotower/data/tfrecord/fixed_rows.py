"""Rows of one shape as one matrix of bytes: the quick way to write plain columns.

Where every row has the same number of values in each column, and integers are padded to the
longest of their column, all records are equally long and differ in their payloads alone. A padded
varint (`0x81 0x00` for 1) is legal on the wire. Legend: `n` rows, `w` values a row.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.tfrecord.columns import FLOAT, FRAME_BYTES, HEAD_BYTES, INT, RaggedColumn

__all__ = ["encode_fixed", "is_fixed"]

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
_NAME: Final = b"\x0a"
_VALUE: Final = b"\x12"
_LIST: Final = b"\x0a"


class _Part(NamedTuple):
    """A column: what stands before its payload in every record, and the payloads."""

    head: bytes
    payload: ByteArray
    """`[n, bytes]`."""


def is_fixed(lists: Mapping[str, RaggedColumn], kinds: list[int]) -> bool:
    """Return whether the columns are numbers, as many in every row, and there are rows."""
    columns = list(lists.values())
    if not all(kind in (INT, FLOAT) for kind in kinds) or len(columns[0].offsets) < 2:
        return False
    widths = [np.diff(column.offsets) for column in columns]
    return all(width[0] > 0 and bool((width == width[0]).all()) for width in widths)


def encode_fixed(lists: Mapping[str, RaggedColumn]) -> tuple[ByteArray, IntArray]:
    """Return the framed records with checksums left open, and start and length of each content."""
    parts = [_part(name, column) for name, column in lists.items()]
    body = sum(len(part.head) + part.payload.shape[1] for part in parts)
    head = _tagged(_LIST, body)
    length = len(head) + body
    num_rows = len(parts[0].payload)
    records = np.empty((num_rows, FRAME_BYTES + length), np.uint8)
    at = _put(records, 0, struct.pack("<Q", length)) + HEAD_BYTES - 8
    at = _put(records, at, head)
    for part in parts:
        at = _put(records, at, part.head)
        records[:, at : at + part.payload.shape[1]] = part.payload
        at += part.payload.shape[1]
    starts = np.arange(num_rows, dtype=np.int64) * (FRAME_BYTES + length) + HEAD_BYTES
    return records.ravel(), np.stack([starts, np.full(num_rows, length)], axis=1)


def _put(records: ByteArray, at: int, content: bytes) -> int:
    """Write the same bytes into every record; return where they end."""
    records[:, at : at + len(content)] = np.frombuffer(content, np.uint8)
    return at + len(content)


def _part(name: str, column: RaggedColumn) -> _Part:
    num_rows = len(column.offsets) - 1
    values = column.values.reshape(num_rows, -1)
    if values.dtype.kind == "f":
        kind, payload = FLOAT, np.ascontiguousarray(values, "<f4").view(np.uint8)
    else:
        kind, payload = INT, _padded_varints(values)
    size = payload.shape[1]
    listed = _tagged(_LIST, size)
    feature = _tagged(bytes([kind << 3 | 2]), len(listed) + size) + listed
    encoded = name.encode()
    named = _tagged(_NAME, len(encoded)) + encoded
    value = _tagged(_VALUE, len(feature) + size) + feature
    return _Part(_tagged(_LIST, len(named) + len(value) + size) + named + value, payload)


def _padded_varints(values: npt.NDArray[Any]) -> ByteArray:
    """Return every row's integers as varints of one length: `uint8[n, w * length]`.

    A negative number is taken modulo 2**64, as protobuf does, and so has 10 bytes.
    """
    unsigned = values.astype(np.int64, copy=False).view(np.uint64)
    length = max(1, (int(unsigned.max()).bit_length() + 6) // 7)
    digits = np.empty((*values.shape, length), np.uint8)
    for place in range(length):
        digit = (unsigned >> np.uint64(7 * place)) & np.uint64(0x7F)
        digits[..., place] = digit if place == length - 1 else digit | np.uint64(0x80)
    return digits.reshape(len(values), -1)


def _tagged(tag: bytes, length: int) -> bytes:
    """Return a tag and the varint of a length."""
    digits = bytearray(tag)
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*digits, length])
