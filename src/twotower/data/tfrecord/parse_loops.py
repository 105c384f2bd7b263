"""Compiled loops that read framed `tf.train.Example` records, whoever wrote them.

Every read is bounded by its record: it has a checksum, but may not be ours. Wire format: see
`encode_loops`.
Legend: `n` rows, `K` columns.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import BYTES, FRAME_BYTES, HEAD_BYTES, INT
from twotower.data.tfrecord.compiled import compiled

__all__ = ["MALFORMED", "OTHER_KIND", "find_frames", "gather_bytes", "parse"]

MALFORMED: Final = 1
OTHER_KIND: Final = 2
_CUT: Final = -1

_NAME: Final = 10
_VALUE: Final = 18
_LIST: Final = 10
"""Tags of fields 1, 2 and 1 again, each of a stated length."""


@compiled
def find_frames(data: Any, start: Any, frames: Any) -> Any:
    """Fill `frames` with the whole records from `start` on; return their number and the end.

    The end is where the last whole record ends: anything behind it is a cut tail, or a length
    that was altered, which its checksum tells.
    """
    at, found = start, 0
    while at + FRAME_BYTES <= len(data):
        length = np.int64(0)
        for shift in range(8):
            length |= np.int64(data[at + shift]) << (8 * shift)
        if length < 0 or length > len(data) - at - FRAME_BYTES:
            break
        frames[found, 0], frames[found, 1] = at + HEAD_BYTES, length
        found += 1
        at += FRAME_BYTES + length
    return found, at


@compiled
def _get_varint(data: Any, at: Any, end: Any) -> Any:
    """Return a number and where it ends, or `_CUT` for the end where there is none."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(70):
        byte = data[at]
        at += 1
        value |= np.uint64(byte & np.uint8(127)) << shift
        if byte < np.uint8(128):
            return value, at
        shift += np.uint64(7)
    return np.uint64(0), _CUT


@compiled
def _get_length(data: Any, at: Any, end: Any) -> Any:
    """Return start and end of a field of a stated length, or `_CUT` twice where it is not there."""
    length, start = _get_varint(data, at, end)
    if start == _CUT or length > np.uint64(end - start):
        return _CUT, _CUT
    return start, start + np.int64(length)


@compiled
def _skip(data: Any, at: Any, end: Any, wire: Any) -> Any:
    """Return where a field of a wire type ends, or `_CUT`."""
    if wire == 0:
        return _get_varint(data, at, end)[1]
    if wire == 2:
        return _get_length(data, at, end)[1]
    size = 8 if wire == 1 else 4
    is_known = wire == 1 or wire == 5
    return at + size if is_known and at + size <= end else _CUT


@compiled
def _is_column(data: Any, start: Any, end: Any, names: Any, name_ends: Any, column: Any) -> Any:
    first = name_ends[column]
    if name_ends[column + 1] - first != end - start:
        return False
    same = 0
    while same < end - start and names[first + same] == data[start + same]:
        same += 1
    return same == end - start


@compiled
def _find_column(data: Any, start: Any, end: Any, names: Any, name_ends: Any, guess: Any) -> Any:
    """Return the column of a name, -1 for none; features mostly come in one order."""
    num_columns = len(name_ends) - 1
    for step in range(num_columns):
        column = (guess + step) % num_columns
        if _is_column(data, start, end, names, name_ends, column):
            return column
    return -1


@compiled
def _take_packed(data: Any, at: Any, end: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append numbers that stand one after the other; return the pool's use, or `_CUT`."""
    while at < end:
        if kind == INT:
            value, at = _get_varint(data, at, end)
            if at == _CUT:
                return _CUT
        else:
            if at + 4 > end:
                return _CUT
            value = np.uint64(0)
            for shift in range(4):
                value |= np.uint64(data[at + shift]) << np.uint64(8 * shift)
            at += 4
        pool[used] = value
        used += 1
    return used


@compiled
def _take_numbers(data: Any, at: Any, end: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append the numbers of a list message, packed or single; return the use, or `_CUT`."""
    while at < end:
        tag = data[at]
        wire = tag & np.uint8(7)
        start = at + 1
        if wire == 2:
            start, until = _get_length(data, start, end)
        else:
            until = _skip(data, start, end, wire)
        if until == _CUT:
            return _CUT
        if tag >> np.uint8(3) == 1:
            used = _take_packed(data, start, until, kind, pool, used)
            if used == _CUT:
                return _CUT
        at = until
    return used


@compiled
def _take_bytes(data: Any, at: Any, end: Any, pool: Any, used: Any) -> Any:
    """Append start and length of each byte string of a list message; return the use, or `_CUT`."""
    while at < end:
        tag = data[at]
        if tag != _LIST:
            at = _skip(data, at + 1, end, tag & np.uint8(7))
            if at == _CUT:
                return _CUT
            continue
        start, at = _get_length(data, at + 1, end)
        if at == _CUT:
            return _CUT
        pool[2 * used] = start
        pool[2 * used + 1] = at - start
        used += 1
    return used


@compiled
def _take_feature(data: Any, at: Any, end: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append the values of one feature; return an error and the pool's use."""
    while at < end:
        tag = data[at]
        wire = tag & np.uint8(7)
        field = tag >> np.uint8(3)
        if wire != 2 or field < 1 or field > 3:
            at = _skip(data, at + 1, end, wire)
            if at == _CUT:
                return MALFORMED, used
            continue
        start, at = _get_length(data, at + 1, end)
        if at == _CUT:
            return MALFORMED, used
        if field != kind:
            if start == at:
                continue  # an empty list of whatever kind is a missing value
            return OTHER_KIND, used
        if kind == BYTES:
            taken = _take_bytes(data, start, at, pool, used)
        else:
            taken = _take_numbers(data, start, at, kind, pool, used)
        if taken == _CUT:
            return MALFORMED, used
        used = taken
    return 0, used


@compiled
def _entry(data: Any, at: Any, end: Any) -> Any:
    """Return where an entry's name and its feature lie: four places, the first `_CUT` if torn."""
    name_start, name_end, start, stop = at, at, at, at
    while at < end:
        tag = data[at]
        if tag != _NAME and tag != _VALUE:
            at = _skip(data, at + 1, end, tag & np.uint8(7))
            if at == _CUT:
                return _CUT, _CUT, _CUT, _CUT
            continue
        first, last = _get_length(data, at + 1, end)
        if last == _CUT:
            return _CUT, _CUT, _CUT, _CUT
        if tag == _NAME:
            name_start, name_end = first, last
        else:
            start, stop = first, last
        at = last
    return name_start, name_end, start, stop


@compiled
def _parse_features(
    data: Any,
    at: Any,
    end: Any,
    row: Any,
    names: Any,
    name_ends: Any,
    kinds: Any,
    places: Any,
    pools: Any,
    used: Any,
) -> Any:
    """Take the map entries of a record; return an error and the column."""
    column = -1
    while at < end:
        tag = data[at]
        if tag != _LIST:
            at = _skip(data, at + 1, end, tag & np.uint8(7))
            if at == _CUT:
                return MALFORMED, -1
            continue
        start, at = _get_length(data, at + 1, end)
        if at == _CUT:
            return MALFORMED, -1
        name_start, name_end, first, last = _entry(data, start, at)
        if name_start == _CUT:
            return MALFORMED, -1
        found = _find_column(data, name_start, name_end, names, name_ends, column + 1)
        if found < 0:
            continue
        column, pool = found, np.int64(kinds[found] == BYTES)
        begin = used[pool]
        error, used[pool] = _take_feature(data, first, last, kinds[column], pools[pool], begin)
        if error:
            return error, column
        places[0, column, row], places[1, column, row] = begin, used[pool] - begin
    return 0, -1


@compiled
def parse(
    data: Any,
    frames: Any,
    names: Any,
    name_ends: Any,
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
        names: `uint8`, the wanted columns' names one after the other.
        name_ends: `int64[K + 1]`.
        kinds: `int64[K]`.
        places: `int64[2, K, n]`, zeros; filled with first place and number of values.
        pools: `uint64[2, m]`, `m` of at least the records' bytes: integers and bits of floats;
            and byte strings, two numbers each, start and length.
        used: `int64[2]`, zeros; filled with the values in each pool.

    Returns:
        0, `MALFORMED` or `OTHER_KIND`, with the row and the column it was found in.
    """
    for row in range(len(frames)):
        at, end = frames[row, 0], frames[row, 0] + frames[row, 1]
        while at < end:
            tag = data[at]
            if tag != _LIST:
                at = _skip(data, at + 1, end, tag & np.uint8(7))
                if at == _CUT:
                    return MALFORMED, row, -1
                continue
            start, at = _get_length(data, at + 1, end)
            if at == _CUT:
                return MALFORMED, row, -1
            error, column = _parse_features(
                data, start, at, row, names, name_ends, kinds, places, pools, used
            )
            if error:
                return error, row, column
    return 0, -1, -1


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
