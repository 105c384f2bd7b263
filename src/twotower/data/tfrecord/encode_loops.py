"""Compiled loops that write rows as framed `tf.train.Example` records.

Wire format: `Example{1: Features{1: map entry{1: name, 2: Feature{1 bytes | 2 floats | 3
integers}}}}`, every field but a number behind its tag and its length. What is written is what
TensorFlow writes, byte for byte.
Legend: `n` rows, `K` columns; a pool holds the values of all columns of one kind; `at` an address.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import BYTES, FLOAT, HEAD_BYTES, INT
from twotower.data.tfrecord.compiled import compiled
from twotower.data.tfrecord.machine import (
    bits,
    load_half,
    load_word,
    store_byte,
    store_half,
    store_word,
)

__all__ = ["encode", "varint_bytes"]

_NAME: Final = 10
_VALUE: Final = 18
_LIST: Final = 10
"""Tags of fields 1, 2 and 1 again, each of a stated length."""
_SHORT_BYTES: Final = 128
"""From here on a length has more than one byte."""
_HEADS_BYTES: Final = 6
"""Of a short entry beside its name and its numbers: tags and lengths of feature, list, values."""


@compiled
def varint_bytes(value: Any) -> Any:
    """Return how many bytes the varint of a number has: one for every 7 bits."""
    return np.int64((bits(value) * np.uint64(9) + np.uint64(64)) >> np.uint64(6))


@compiled
def _put_varint(at: Any, value: Any) -> Any:
    while value >= np.uint64(128):
        store_byte(at, np.uint8(value) | np.uint8(128))
        value >>= np.uint64(7)
        at += 1
    store_byte(at, np.uint8(value))
    return at + 1


@compiled
def _put_tagged(at: Any, tag: Any, length: Any) -> Any:
    store_byte(at, np.uint8(tag))
    return _put_varint(at + 1, np.uint64(length))


@compiled
def _tagged_bytes(length: Any) -> Any:
    """Return the size of a field of `length` bytes with its tag and its length."""
    return 1 + varint_bytes(np.uint64(length)) + length


@compiled
def _copy(at: Any, source: Any, length: Any) -> Any:
    """Copy in words, up to `SLACK_BYTES` too many; return where the copy ends."""
    store_word(at, load_word(source))
    if length > 8:
        store_word(at + 8, load_word(source + 8))
        for done in range(16, length, 8):
            store_word(at + done, load_word(source + done))
    return at + length


@compiled
def _values_bytes(kind: Any, start: Any, end: Any, ints: Any, byte_ends: Any) -> Any:
    """Return the size of the values `start` to `end`, numbers without the list's own head."""
    if kind == FLOAT:
        return 4 * (end - start)
    if kind == INT and end - start == 1:
        return varint_bytes(load_word(ints + 8 * start))
    size = 0
    for place in range(start, end):
        if kind == INT:
            size += varint_bytes(load_word(ints + 8 * place))
        else:
            first = np.int64(load_word(byte_ends + 8 * place))
            size += _tagged_bytes(np.int64(load_word(byte_ends + 8 * place + 8)) - first)
    return size


@compiled
def _put_values(
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
        if end - start == 1:
            return _put_varint(at, load_word(ints + 8 * start))
        for place in range(start, end):
            at = _put_varint(at, load_word(ints + 8 * place))
    elif kind == FLOAT:
        for place in range(start, end):
            store_half(at, load_half(floats + 4 * place))
            at += 4
    else:
        for place in range(start, end):
            first = np.int64(load_word(byte_ends + 8 * place))
            length = np.int64(load_word(byte_ends + 8 * place + 8)) - first
            at = _copy(_put_tagged(at, _LIST, length), byte_data + first, length)
    return at


@compiled
def _is_short(kind: Any, size: Any, named: Any) -> Any:
    """Return whether every length of an entry has one byte; byte strings take the long way."""
    return kind != BYTES and size + _HEADS_BYTES + named < _SHORT_BYTES


@compiled
def _entry_bytes(kind: Any, size: Any, named: Any) -> Any:
    """Return the size of a column's map entry with its head: its name's field has `named` bytes."""
    if _is_short(kind, size, named):
        return 2 + _HEADS_BYTES + named + size
    listed = size if kind == BYTES else _tagged_bytes(size)
    return _tagged_bytes(_tagged_bytes(_tagged_bytes(listed)) + named)


@compiled
def _put_head(at: Any, kind: Any, size: Any, names: Any, named: Any) -> Any:
    """Write what stands before a column's values: entry, name, feature, list."""
    if _is_short(kind, size, named):
        store_byte(at, np.uint8(_LIST))
        store_byte(at + 1, np.uint8(size + _HEADS_BYTES + named))
        at = _copy(at + 2, names, named)
        feature = np.uint32(_VALUE) | np.uint32(size + 4) << np.uint32(8)
        numbers = np.uint32(kind << 3 | 2) | np.uint32(size + 2) << np.uint32(8)
        store_half(at, feature | numbers << np.uint32(16))
        store_byte(at + 4, np.uint8(_LIST))
        store_byte(at + 5, np.uint8(size))
        return at + _HEADS_BYTES
    listed = size if kind == BYTES else _tagged_bytes(size)
    feature = _tagged_bytes(listed)
    at = _put_tagged(at, _LIST, named + _tagged_bytes(feature))
    at = _copy(at, names, named)
    at = _put_tagged(at, _VALUE, feature)
    at = _put_tagged(at, kind << 3 | 2, listed)
    return at if kind == BYTES else _put_tagged(at, _LIST, size)


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
        out: `uint8`, large enough with `SLACK_BYTES` behind.
        frames: `int64[n, 2]`, filled with the start of each record's content and its length.
        names: `uint8`, the fields of the column names one after the other, with slack behind.
        name_ends: `int64[K + 1]`.
        kinds: `int64[K]`.
        rows: `int64[K, n + 1]`, where each row's values start in the pool of the column's kind.
        ints: `int64` pool.
        floats: `uint32` pool, the bits of float32 values.
        byte_data: `uint8` of all byte strings, with slack behind.
        byte_ends: `int64`, where each byte string ends, from 0.
    """
    base, heads = np.int64(out.ctypes.data), np.int64(names.ctypes.data)
    int_pool, float_pool = np.int64(ints.ctypes.data), np.int64(floats.ctypes.data)
    strings, ends = np.int64(byte_data.ctypes.data), np.int64(byte_ends.ctypes.data)
    sizes = np.zeros(len(kinds), np.int64)
    at = base
    for row in range(rows.shape[1] - 1):
        body = 0
        for column in range(len(kinds)):
            start, end, kind = rows[column, row], rows[column, row + 1], kinds[column]
            if start < end:  # a missing value is an absent feature
                sizes[column] = _values_bytes(kind, start, end, int_pool, ends)
                named = name_ends[column + 1] - name_ends[column]
                body += _entry_bytes(kind, sizes[column], named)
        store_word(at, np.uint64(_tagged_bytes(body)))
        at += HEAD_BYTES
        frames[row, 0], frames[row, 1] = at - base, _tagged_bytes(body)
        at = _put_tagged(at, _LIST, body)
        for column in range(len(kinds)):
            start, end, kind = rows[column, row], rows[column, row + 1], kinds[column]
            if start < end:
                named = name_ends[column + 1] - name_ends[column]
                at = _put_head(at, kind, sizes[column], heads + name_ends[column], named)
                at = _put_values(at, kind, start, end, int_pool, float_pool, strings, ends)
        at += 4
    return at - base
