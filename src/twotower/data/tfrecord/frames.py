"""The frame of a record: its length, and masked CRC-32C of the length and of the content.

The mask, `rotate(crc, 15) + 0xa282ead8`, is the format's: a checksum of data that holds checksums
would be weak otherwise. Where the processor has CRC-32C as an instruction a compiled loop uses it:
the call of a library for each record takes longer than the checksum of some hundred bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twotower.data.tfrecord.columns import HEAD_BYTES
from twotower.errors import CorruptArtifact, MissingExtra

__all__ = ["begins_as_record", "check_frames", "check_tail", "require_codec", "seal"]

IntArray = npt.NDArray[np.int64]
_FOUR: Final = np.arange(4)


def require_codec() -> None:
    """Raise `MissingExtra` where a package that the format needs is not installed."""
    for package in ("numba", "google_crc32c"):
        if find_spec(package) is None:
            raise MissingExtra(package.replace("_", "-"), "stream", "reading and writing TFRecord")


def seal(out: npt.NDArray[np.uint8], frames: IntArray) -> memoryview:
    """Fill in both checksums of every record and return its bytes.

    Args:
        out: the records, with room where the checksums belong.
        frames: `int64[n, 2]`, start and length of every record's content.
    """
    if _has_instruction():
        from twotower.data.tfrecord.checksum_loops import fill_in

        fill_in(out, frames)
        return out.data
    for places, found in _checksums(out.tobytes(), frames):
        out[places[:, None] + _FOUR] = found.view(np.uint8).reshape(-1, 4)
    return out.data


def check_frames(path: Path, content: bytes, frames: IntArray) -> None:
    """Refuse a record whose length or content does not have its checksum.

    Raises:
        CorruptArtifact: the message names the byte at which the record begins.
    """
    data = np.frombuffer(content, np.uint8)
    if _has_instruction():
        from twotower.data.tfrecord.checksum_loops import LENGTH, first_wrong

        row, kind = first_wrong(data, frames)
        if kind:
            raise _altered(path, "length" if kind == LENGTH else "content", _begin(frames, row))
        return
    for what, (places, expected) in zip(
        ("length", "content"), _checksums(content, frames), strict=True
    ):
        stored = data[places[:, None] + _FOUR].view("<u4").ravel()
        wrong = np.flatnonzero(stored != expected)
        if len(wrong):
            raise _altered(path, what, _begin(frames, wrong[0]))


def _begin(frames: IntArray, row: int) -> int:
    return int(frames[row, 0]) - HEAD_BYTES


def check_tail(path: Path, content: bytes, end: int) -> None:
    """Refuse an altered length at `end`: it looks like a record that is not all there.

    Raises:
        CorruptArtifact: the length there does not have its checksum.
    """
    if len(content) - end >= HEAD_BYTES and not begins_as_record(content[end:]):
        raise _altered(path, "length", end)


def begins_as_record(content: bytes) -> bool:
    """Return whether the first bytes are a length and the checksum of it."""
    head = content[:HEAD_BYTES]
    return len(head) == HEAD_BYTES and head[8:] == _masked([_crc32c()(head[:8])]).tobytes()


def _has_instruction() -> bool:
    from twotower.data.tfrecord.machine import HAS_CRC32C

    return HAS_CRC32C


def _checksums(
    content: bytes, frames: IntArray
) -> tuple[tuple[IntArray, npt.NDArray[np.uint32]], tuple[IntArray, npt.NDArray[np.uint32]]]:
    """Return place and value of the checksum of each record's length, and of its content."""
    crc32c = _crc32c()
    starts, ends = frames[:, 0], frames[:, 0] + frames[:, 1]
    lengths, inverse = np.unique(frames[:, 1], return_inverse=True)
    heads = _masked([crc32c(struct.pack("<Q", length)) for length in lengths.tolist()])
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    bodies = _masked([crc32c(content[start:end]) for start, end in spans])
    return (starts - 4, heads[inverse]), (ends, bodies)


def _masked(checksums: Iterable[int]) -> npt.NDArray[np.uint32]:
    value = np.array(checksums, np.uint64)
    rotated = (value >> np.uint64(15)) | (value << np.uint64(17))
    return ((rotated + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)).astype("<u4")


def _crc32c() -> Any:
    from google_crc32c import value

    return value


def _altered(path: Path, what: str, place: int) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path}: the checksum of a record's {what} is wrong, of the record at byte {place}; the "
        "file was altered or is no TFRecord file; nothing of it was used"
    )
