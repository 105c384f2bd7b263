"""Compiled loops that write rows of any shape as framed `tf.train.Example` records.

Wire format: `Example{1: Features{1: map entry{1: name, 2: Feature{1 bytes | 2 floats | 3
integers}}}}`, every field but a number behind its tag and its length.
Legend: `n` rows, `K` columns; a pool holds the values of all columns of one kind.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import FLOAT, HEAD_BYTES, INT
from twotower.data.tfrecord.compiled import compiled

__all__ = ["encode"]

_NAME: Final = 10
_VALUE: Final = 18
_LIST: Final = 10
"""Tags of fields 1, 2 and 1 again, each of a stated length."""


@compiled
def _varint_bytes(value: Any) -> Any:
    length = 1
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        length += 1
    return length


@compiled
def _put_varint(out: Any, at: Any, value: Any) -> Any:
    while value >= np.uint64(128):
        out[at] = np.uint8(value & np.uint64(127)) | np.uint8(128)
        value >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@compiled
def _put_tagged(out: Any, at: Any, tag: Any, length: Any) -> Any:
    out[at] = np.uint8(tag)
    return _put_varint(out, at + 1, np.uint64(length))


@compiled
def _tagged_bytes(length: Any) -> Any:
    """Return the size of a field of `length` bytes with its tag and its length."""
    return 1 + _varint_bytes(np.uint64(length)) + length


@compiled
def _list_bytes(kind: Any, start: Any, end: Any, ints: Any, byte_ends: Any) -> Any:
    """Return the size of the values `start` to `end` as the content of a list message."""
    size = 0
    if kind == INT:
        for place in range(start, end):
            size += _varint_bytes(np.uint64(ints[place]))
        return _tagged_bytes(size)
    if kind == FLOAT:
        return _tagged_bytes(4 * (end - start))
    for place in range(start, end):
        size += _tagged_bytes(byte_ends[place + 1] - byte_ends[place])
    return size


@compiled
def _put_list(
    out: Any,
    at: Any,
    kind: Any,
    start: Any,
    end: Any,
    ints: Any,
    floats: Any,
    byte_data: Any,
    byte_ends: Any,
) -> Any:
    if kind == INT:
        size = 0
        for place in range(start, end):
            size += _varint_bytes(np.uint64(ints[place]))
        at = _put_tagged(out, at, _LIST, size)
        for place in range(start, end):
            at = _put_varint(out, at, np.uint64(ints[place]))
        return at
    if kind == FLOAT:
        at = _put_tagged(out, at, _LIST, 4 * (end - start))
        for place in range(start, end):
            bits = floats[place]
            for shift in range(4):
                out[at] = np.uint8((bits >> np.uint32(8 * shift)) & np.uint32(255))
                at += 1
        return at
    for place in range(start, end):
        at = _put_tagged(out, at, _LIST, byte_ends[place + 1] - byte_ends[place])
        for source in range(byte_ends[place], byte_ends[place + 1]):
            out[at] = byte_data[source]
            at += 1
    return at


@compiled
def _measure_row(
    row: Any, name_ends: Any, kinds: Any, rows: Any, ints: Any, byte_ends: Any, sizes: Any
) -> Any:
    """Fill `sizes` with those of each column's list and map entry; return the size of all."""
    body = 0
    for column in range(len(kinds)):
        start, end = rows[column, row], rows[column, row + 1]
        if start == end:
            continue  # a missing value is an absent feature
        size = _list_bytes(kinds[column], start, end, ints, byte_ends)
        name_size = _tagged_bytes(name_ends[column + 1] - name_ends[column])
        sizes[column, 0] = size
        sizes[column, 1] = name_size + _tagged_bytes(_tagged_bytes(size))
        body += _tagged_bytes(sizes[column, 1])
    return body


@compiled
def _put_head(out: Any, at: Any, column: Any, kind: Any, names: Any, ends: Any, sizes: Any) -> Any:
    """Write what stands before a column's list: entry, name, feature."""
    at = _put_tagged(out, at, _LIST, sizes[column, 1])
    at = _put_tagged(out, at, _NAME, ends[column + 1] - ends[column])
    for place in range(ends[column], ends[column + 1]):
        out[at] = names[place]
        at += 1
    at = _put_tagged(out, at, _VALUE, _tagged_bytes(sizes[column, 0]))
    return _put_tagged(out, at, kind << 3 | 2, sizes[column, 0])


@compiled
def encode(
    out: Any,
    frames: Any,
    names: Any,
    name_ends: Any,
    kinds: Any,
    rows: Any,
    ints: Any,
    floats: Any,
    byte_data: Any,
    byte_ends: Any,
) -> Any:
    """Write every row as a framed record with checksums left open; return the bytes used.

    Args:
        out: `uint8`, large enough.
        frames: `int64[n, 2]`, filled with the start of each record's content and its length.
        names: `uint8`, the column names one after the other.
        name_ends: `int64[K + 1]`.
        kinds: `int64[K]`.
        rows: `int64[K, n + 1]`, where each row's values start in the pool of the column's kind.
        ints: `int64` pool.
        floats: `uint32` pool, the bits of float32 values.
        byte_data: `uint8` of all byte strings.
        byte_ends: `int64`, where each byte string ends, from 0.
    """
    sizes = np.zeros((len(kinds), 2), np.int64)
    at = 0
    for row in range(rows.shape[1] - 1):
        body = _measure_row(row, name_ends, kinds, rows, ints, byte_ends, sizes)
        length = _tagged_bytes(body)
        for shift in range(8):
            out[at + shift] = np.uint8((length >> (8 * shift)) & 255)
        at += HEAD_BYTES
        frames[row, 0], frames[row, 1] = at, length
        at = _put_tagged(out, at, _LIST, body)
        for column in range(len(kinds)):
            start, end, kind = rows[column, row], rows[column, row + 1], kinds[column]
            if start < end:
                at = _put_head(out, at, column, kind, names, name_ends, sizes)
                at = _put_list(out, at, kind, start, end, ints, floats, byte_data, byte_ends)
        at += 4
    return at
