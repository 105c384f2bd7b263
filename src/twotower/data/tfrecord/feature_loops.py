"""Compiled loops that read the values of one feature, packed or not, bounded by what it lies in.

Legend: `at` and `end` addresses; a pool's use is the number of values in it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import BYTES, INT
from twotower.data.tfrecord.compiled import compiled
from twotower.data.tfrecord.machine import load_byte, load_half, store_word

__all__ = [
    "CUT",
    "LIST",
    "MALFORMED",
    "OTHER_KIND",
    "get_length",
    "skip",
    "take_feature",
    "take_packed",
]

MALFORMED: Final = 1
OTHER_KIND: Final = 2
CUT: Final = -1
"""Instead of an address: there is less than was said."""
LIST: Final = 10
"""Tag of field 1, of a stated length."""


@compiled
def _get_varint(at: Any, end: Any) -> Any:
    """Return a number and where it ends, or `CUT` for the end where there is none."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(70):
        byte = load_byte(at)
        at += 1
        value |= np.uint64(byte & np.uint8(127)) << shift
        if byte < np.uint8(128):
            return value, at
        shift += np.uint64(7)
    return np.uint64(0), CUT


@compiled
def get_length(at: Any, end: Any) -> Any:
    """Return start and end of a field of a stated length, or `CUT` twice where it is not there."""
    length, start = _get_varint(at, end)
    if start == CUT or length > np.uint64(end - start):
        return CUT, CUT
    return start, start + np.int64(length)


@compiled
def skip(at: Any, end: Any, wire: Any) -> Any:
    """Return where a field of a wire type ends, or `CUT`."""
    if wire == 0:
        return _get_varint(at, end)[1]
    if wire == 2:
        return get_length(at, end)[1]
    size = 8 if wire == 1 else 4
    is_known = wire == 1 or wire == 5
    return at + size if is_known and at + size <= end else CUT


@compiled
def take_packed(at: Any, end: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append numbers that stand one after the other; return the pool's use, or `CUT`."""
    if kind == INT:
        while at < end:
            value, at = _get_varint(at, end)
            if at == CUT:
                return CUT
            store_word(pool + 8 * used, value)
            used += 1
        return used
    while at + 4 <= end:
        store_word(pool + 8 * used, np.uint64(load_half(at)))
        used += 1
        at += 4
    return used if at == end else CUT


@compiled
def _take_numbers(at: Any, end: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append the numbers of a list message, packed or single; return the use, or `CUT`."""
    while at < end:
        tag = load_byte(at)
        wire = tag & np.uint8(7)
        start = at + 1
        if wire == 2:
            start, until = get_length(start, end)
        else:
            until = skip(start, end, wire)
        if until == CUT:
            return CUT
        if tag >> np.uint8(3) == 1:
            used = take_packed(start, until, kind, pool, used)
            if used == CUT:
                return CUT
        at = until
    return used


@compiled
def _take_bytes(at: Any, end: Any, base: Any, pool: Any, used: Any) -> Any:
    """Append start and length of each byte string of a list message; return the use, or `CUT`."""
    while at < end:
        tag = load_byte(at)
        if tag != LIST:
            at = skip(at + 1, end, tag & np.uint8(7))
            if at == CUT:
                return CUT
            continue
        start, at = get_length(at + 1, end)
        if at == CUT:
            return CUT
        store_word(pool + 16 * used, np.uint64(start - base))
        store_word(pool + 16 * used + 8, np.uint64(at - start))
        used += 1
    return used


@compiled
def take_feature(at: Any, end: Any, base: Any, kind: Any, pool: Any, used: Any) -> Any:
    """Append the values of one feature; return an error and the pool's use."""
    while at < end:
        tag = load_byte(at)
        wire = tag & np.uint8(7)
        field = tag >> np.uint8(3)
        if wire != 2 or field < 1 or field > 3:
            at = skip(at + 1, end, wire)
            if at == CUT:
                return MALFORMED, used
            continue
        start, at = get_length(at + 1, end)
        if at == CUT:
            return MALFORMED, used
        if field != kind:
            if start == at:
                continue  # an empty list of whatever kind is a missing value
            return OTHER_KIND, used
        if kind == BYTES:
            taken = _take_bytes(start, at, base, pool, used)
        else:
            taken = _take_numbers(start, at, kind, pool, used)
        if taken == CUT:
            return MALFORMED, used
        used = taken
    return 0, used
