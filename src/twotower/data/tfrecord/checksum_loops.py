"""Compiled loops that write and compare the checksums of records, where the processor has CRC-32C.

A call of a library for each record would cost more than the checksum itself: see `frames`, which
makes these calls where the processor has no such instruction. Legend: `n` records.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from twotower.data.tfrecord.columns import HEAD_BYTES
from twotower.data.tfrecord.compiled import compiled
from twotower.data.tfrecord.machine import (
    add_byte,
    add_word,
    load_byte,
    load_half,
    load_word,
    store_half,
)

__all__ = ["CONTENT", "LENGTH", "fill_in", "first_wrong"]

LENGTH: Final = 1
CONTENT: Final = 2


@compiled
def _masked_crc32c(at: Any, end: Any) -> Any:
    crc = np.uint64(0xFFFFFFFF)
    while at + 8 <= end:
        crc = add_word(crc, load_word(at))
        at += 8
    while at < end:
        crc = add_byte(crc, load_byte(at))
        at += 1
    value = np.uint32(crc) ^ np.uint32(0xFFFFFFFF)
    rotated = (value >> np.uint32(15)) | (value << np.uint32(17))  # made 64 bits wide by numba
    return np.uint32(rotated + np.uint32(0xA282EAD8))


@compiled
def fill_in(out: Any, frames: Any) -> None:
    """Write both checksums of every record, where `frames` has start and length of its content."""
    base = np.int64(out.ctypes.data)
    for row in range(len(frames)):
        start = base + frames[row, 0]
        end = start + frames[row, 1]
        store_half(start - 4, _masked_crc32c(start - HEAD_BYTES, start - 4))
        store_half(end, _masked_crc32c(start, end))


@compiled
def first_wrong(data: Any, frames: Any) -> Any:
    """Return the first record with a wrong checksum, and of what; 0 of none."""
    base = np.int64(data.ctypes.data)
    for row in range(len(frames)):
        start = base + frames[row, 0]
        end = start + frames[row, 1]
        if load_half(start - 4) != _masked_crc32c(start - HEAD_BYTES, start - 4):
            return row, LENGTH
        if load_half(end) != _masked_crc32c(start, end):
            return row, CONTENT
    return 0, 0
