"""Compiled loops that read framed `tf.train.Example` records, whoever wrote them.

Every read is bounded by its record: it has a checksum, but may not be ours. Wire format: see
`encode_loops`.
Legend: `n` rows, `K` columns; `at` and `end` addresses.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import BYTES, FRAME_BYTES, HEAD_BYTES
from twotower.data.tfrecord.compiled import compiled
from twotower.data.tfrecord.encode_loops import varint_bytes
from twotower.data.tfrecord.feature_loops import (
    CUT,
    LIST,
    MALFORMED,
    get_length,
    skip,
    take_feature,
    take_packed,
)
from twotower.data.tfrecord.machine import load_byte, load_half, load_word, store_word

__all__ = ["find_frames", "gather", "gather_bytes", "parse"]

_NAME: Final = 10
_VALUE: Final = 18
"""Tags of fields 1 and 2, each of a stated length."""
_HEADS_BYTES: Final = 6
"""Of a short entry between its name and its values."""


@compiled
def find_frames(data: Any, start: Any, frames: Any) -> Any:
    """Fill `frames` with the whole records from `start` on; return their number and the end.

    The end is where the last whole record ends: anything behind it is a cut tail, or a length
    that was altered, which its checksum tells.
    """
    base = np.int64(data.ctypes.data)
    at, found = start, 0
    while at + FRAME_BYTES <= len(data):
        length = np.int64(load_word(base + at))
        if length < 0 or length > len(data) - at - FRAME_BYTES:
            break
        frames[found, 0], frames[found, 1] = at + HEAD_BYTES, length
        found += 1
        at += FRAME_BYTES + length
    return found, at


@compiled
def _is_same(at: Any, other: Any, length: Any) -> Any:
    same = 0
    while same + 8 <= length and load_word(at + same) == load_word(other + same):
        same += 8
    while same < length and load_byte(at + same) == load_byte(other + same):
        same += 1
    return same == length


@compiled
def _find_column(at: Any, end: Any, fields: Any, field_ends: Any, guess: Any) -> Any:
    """Return the column of a name, -1 for none; features mostly come in one order."""
    column, length = guess, end - at
    for _ in range(len(field_ends) - 1):
        if column >= len(field_ends) - 1:
            column = 0
        last = field_ends[column + 1]
        head = last - field_ends[column] - length  # the name ends its field
        is_as_long = head == 1 + varint_bytes(np.uint64(length))
        if is_as_long and _is_same(at, fields + last - length, length):
            return column
        column += 1
    return -1


@compiled
def _entry(at: Any, end: Any) -> Any:
    """Return where an entry's name and its feature lie: four places, the first `CUT` if torn."""
    name_start, name_end, start, stop = at, at, at, at
    while at < end:
        tag = load_byte(at)
        if tag != _NAME and tag != _VALUE:
            at = skip(at + 1, end, tag & np.uint8(7))
            if at == CUT:
                return CUT, CUT, CUT, CUT
            continue
        first, last = get_length(at + 1, end)
        if last == CUT:
            return CUT, CUT, CUT, CUT
        if tag == _NAME:
            name_start, name_end = first, last
        else:
            start, stop = first, last
        at = last
    return name_start, name_end, start, stop


@compiled
def _short_payload(at: Any, end: Any, field: Any, named: Any, kind: Any) -> Any:
    """Return where the values of an entry as we write it begin, or `CUT` for any other entry.

    One of a given name and kind with one list, and lengths of one byte: the first length tells
    all others, so what stands before the values is compared in words.
    """
    size = np.int64(load_byte(at + 1)) - _HEADS_BYTES - named
    if size < 0 or size > 127 - _HEADS_BYTES - named or at + 2 + _HEADS_BYTES + named + size > end:
        return CUT
    tail = at + 2 + named
    feature = np.uint32(_VALUE) | np.uint32(size + 4) << np.uint32(8)
    numbers = np.uint32(kind << 3 | 2) | np.uint32(size + 2) << np.uint32(8)
    is_same = load_half(tail) == np.uint32(feature | numbers << np.uint32(16))
    is_listed = load_byte(tail + 4) == LIST and load_byte(tail + 5) == size
    if is_same and is_listed and _is_same(at + 2, field, named):
        return tail + _HEADS_BYTES
    return CUT


@compiled
def _take_short(start: Any, end: Any, base: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append the values that `_short_payload` found; return the pool's use, or `CUT`."""
    if kind != BYTES:
        return take_packed(start, end, kind, pool, used)
    store_word(pool + 16 * used, np.uint64(start - base))
    store_word(pool + 16 * used + 8, np.uint64(end - start))
    return used + 1


@compiled
def _take_entry(
    at: Any,
    end: Any,
    base: Any,
    guess: Any,
    fields: Any,
    field_ends: Any,
    kinds: Any,
    numbers: Any,
    spans: Any,
    used: Any,
) -> Any:
    """Append the values of a map entry; return an error, its column or -1, and the pool's use."""
    name_start, name_end, first, last = _entry(at, end)
    if name_start == CUT:
        return MALFORMED, -1, np.int64(0)
    column = _find_column(name_start, name_end, fields, field_ends, guess)
    if column < 0:
        return 0, -1, np.int64(0)
    kind = kinds[column]
    if kind == BYTES:
        error, now = take_feature(first, last, base, kind, spans, used[1])
    else:
        error, now = take_feature(first, last, base, kind, numbers, used[0])
    return error, column, now


@compiled
def _parse_features(
    at: Any,
    end: Any,
    base: Any,
    row: Any,
    fields: Any,
    field_ends: Any,
    kinds: Any,
    places: Any,
    numbers: Any,
    spans: Any,
    used: Any,
) -> Any:
    """Take the map entries of a record; return an error and the column."""
    guess = 0
    while at < end:
        tag = load_byte(at)
        if tag != LIST:
            at = skip(at + 1, end, tag & np.uint8(7))
            if at == CUT:
                return MALFORMED, -1
            continue
        kind, named = kinds[guess], field_ends[guess + 1] - field_ends[guess]
        pool = np.int64(kind == BYTES)
        start = _short_payload(at, end, fields + field_ends[guess], named, kind)
        if start != CUT:
            at += 2 + np.int64(load_byte(at + 1))
            column, error = guess, 0
            now = _take_short(start, at, base, kind, spans if pool else numbers, used[pool])
            if now == CUT:
                return MALFORMED, column
        else:
            start, at = get_length(at + 1, end)
            if at == CUT:
                return MALFORMED, -1
            error, column, now = _take_entry(
                start, at, base, guess, fields, field_ends, kinds, numbers, spans, used
            )
            if error:
                return error, column
            if column < 0:
                continue
            pool = np.int64(kinds[column] == BYTES)
        places[0, column, row], places[1, column, row] = used[pool], now - used[pool]
        used[pool] = now
        guess = column + 1 if column + 1 < len(kinds) else 0
    return 0, -1


@compiled
def parse(
    data: Any,
    frames: Any,
    fields: Any,
    field_ends: Any,
    kinds: Any,
    places: Any,
    pools: Any,
    used: Any,
) -> Any:
    """Take the values of some records, row after row, and note where those of a column are.

    A name that occurs twice in a record counts once, the last time, as in any protobuf map.

    Args:
        data: `uint8` of the file.
        frames: `int64[n, 2]`, start and length of every record's content.
        fields: `uint8`, the fields of the wanted columns' names one after the other.
        field_ends: `int64[K + 1]`.
        kinds: `int64[K]`.
        places: `int64[2, K, n]`, zeros; filled with first place and number of values.
        pools: `uint64[2, m]`, `m` of at least the records' bytes: integers and bits of floats;
            and byte strings, two numbers each, start and length.
        used: `int64[2]`, zeros; filled with the values in each pool.

    Returns:
        0, `MALFORMED` or `OTHER_KIND`, with the row and the column it was found in.
    """
    base, wanted = np.int64(data.ctypes.data), np.int64(fields.ctypes.data)
    numbers, spans = np.int64(pools[0].ctypes.data), np.int64(pools[1].ctypes.data)
    for row in range(len(frames)):
        at = base + frames[row, 0]
        end = at + frames[row, 1]
        while at < end:
            tag = load_byte(at)
            if tag != LIST:
                at = skip(at + 1, end, tag & np.uint8(7))
                if at == CUT:
                    return MALFORMED, row, -1
                continue
            start, at = get_length(at + 1, end)
            if at == CUT:
                return MALFORMED, row, -1
            error, column = _parse_features(
                start, at, base, row, wanted, field_ends, kinds, places, numbers, spans, used
            )
            if error:
                return error, row, column
    return 0, -1, -1


@compiled
def gather(pool: Any, starts: Any, counts: Any, width: Any, out: Any) -> None:
    """Copy values `starts[r]` to `starts[r] + counts[r]` of all rows to `out`, one after the other.

    A value is `width` numbers of the pool.
    """
    done = 0
    for row in range(len(starts)):
        start = width * starts[row]
        for place in range(start, start + width * counts[row]):
            out[done] = pool[place]
            done += 1


@compiled
def gather_bytes(data: Any, spans: Any, out: Any) -> Any:
    """Copy byte strings to the rows of `out`, `uint8[m, width]`; return whether one ends in NUL."""
    has_nul = False
    for row in range(len(out)):
        start, length = np.int64(spans[row, 0]), np.int64(spans[row, 1])
        for place in range(length):
            out[row, place] = data[start + place]
        if length and data[start + length - 1] == 0:
            has_nul = True
    return has_nul
