"""TFRecord files to columns: whatever wrote them, with every checksum compared.

Legend: `n` rows, `K` columns.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from twotower.data.tfrecord.columns import (
    BYTES,
    FLOAT,
    FRAME_BYTES,
    HEAD_BYTES,
    KIND_NUMBERS,
    Column,
    ColumnKind,
    Layout,
    RaggedColumn,
    ShardEntry,
    layout,
)
from twotower.data.tfrecord.frames import begins_as_record, check_frames, check_tail, require_codec
from twotower.durable import read_regular
from twotower.errors import CorruptArtifact, DataError

__all__ = ["RecordFile", "read_shard"]

IntArray = npt.NDArray[np.int64]
_MAX_SHARD_BYTES: Final = 1 << 34
_BYTES_AT_ONCE: Final = 1 << 20
_RAGGED: Final = frozenset({"ints", "floats", "byte_lists"})


class RecordFile(NamedTuple):
    """What was read of a file."""

    columns: dict[str, Column]
    end: int
    """Byte (of the unpacked file) at which the last whole record ends, where reading goes on."""


def read_shard(
    path: Path,
    kinds: Mapping[str, ColumnKind],
    *,
    entry: ShardEntry | None = None,
    start: int = 0,
    may_be_cut: bool = False,
) -> RecordFile:
    """Read columns of a TFRecord file; a gzip one is known by its first bytes.

    Args:
        path: the file.
        kinds: wanted columns; a plural kind takes any number of values a row, the others exactly
            one. Other features of the file are passed over.
        entry: what a manifest says of the file; its size and checksum are compared.
        start: byte of a record to begin with, such as the `end` of an earlier call.
        may_be_cut: stop at the last whole record where the file ends within one, since its writer
            is still at it or died. A wrong checksum is an error all the same, and so is a gzip
            file that ends early.

    Raises:
        CorruptArtifact: the file is torn, altered, or no TFRecord file of Examples; the message
            names the byte.
        DataError: a feature has values of another kind, or not exactly one.
        MissingExtra: numba or google-crc32c is not installed.
    """
    require_codec()
    content = read_regular(path, _MAX_SHARD_BYTES)
    if entry is not None:
        _check_entry(path, content, entry)
    content = _unzipped(path, content)
    frames, end = _frames(path, content, start)
    if end < len(content) and not may_be_cut:
        raise CorruptArtifact(
            f"{path} is cut: its last whole record ends at byte {end} of {len(content)}; nothing "
            "of it was used; write it again"
        )
    data = np.frombuffer(content, np.uint8)
    named = layout(list(kinds), [KIND_NUMBERS[kind] for kind in kinds.values()])
    taken = [_take(path, data, part, named, list(kinds)) for part in _parts(frames)]
    columns = {}
    for place, (name, kind) in enumerate(kinds.items()):
        counts = np.concatenate([np.zeros(0, np.int64), *(part[place].counts for part in taken)])
        values = [part[place].values for part in taken]
        columns[name] = _column(path, name, kind, counts, _joined(data, kind, values))
    return RecordFile(columns, end)


def _check_entry(path: Path, content: bytes, entry: ShardEntry) -> None:
    digest = xxhash.xxh3_128_hexdigest(content)
    if (len(content), digest) != (entry.bytes, entry.xxh3):
        raise CorruptArtifact(
            f"{path}: expected {entry.bytes} bytes of checksum {entry.xxh3[:12]}…, found "
            f"{len(content)} bytes of checksum {digest[:12]}…; nothing of it was used"
        )


def _unzipped(path: Path, content: bytes) -> bytes:
    if content[:2] != b"\x1f\x8b" or begins_as_record(content):  # a length may look like gzip
        return content
    try:
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_MAX_SHARD_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptArtifact(
            f"{path} begins as a gzip file and cannot be unpacked: {error}; nothing of it was used"
        ) from error
    if len(unpacked) > _MAX_SHARD_BYTES:
        raise CorruptArtifact(f"expected at most {_MAX_SHARD_BYTES} bytes in {path}, found more")
    return unpacked


def _frames(path: Path, content: bytes, start: int) -> tuple[IntArray, int]:
    """Return start and length of every whole record, checked, and where the last one ends."""
    from twotower.data.tfrecord.parse_loops import find_frames

    if not 0 <= start <= len(content):
        raise CorruptArtifact(
            f"{path}: expected a record at byte {start}, found {len(content)} bytes in all; it is "
            "not the file that was read before; nothing of it was used"
        )
    room = np.empty(((len(content) - start) // FRAME_BYTES + 1, 2), np.int64)
    found, end = find_frames(np.frombuffer(content, np.uint8), start, room)
    frames = room[:found].copy()
    check_frames(path, content, frames)
    check_tail(path, content, end)
    return frames, end


def _parts(frames: IntArray) -> Iterator[IntArray]:
    """Yield the records in runs of about `_BYTES_AT_ONCE`, so that a run stays in the cache."""
    number = np.cumsum(frames[:, 1]) // _BYTES_AT_ONCE
    limits = np.flatnonzero(np.diff(number)) + 1
    yield from np.split(frames, limits) if len(frames) else []


class _Taken(NamedTuple):
    """The values of one column in a run of records."""

    values: npt.NDArray[Any]
    """Numbers, or start and length of byte strings, `[m, 2]`."""
    counts: IntArray


def _take(
    path: Path, data: npt.NDArray[np.uint8], frames: IntArray, named: Layout, names: list[str]
) -> list[_Taken]:
    from twotower.data.tfrecord.parse_loops import parse

    places = np.zeros((2, len(names), len(frames)), np.int64)
    pools = np.empty((2, int(frames[:, 1].sum()) + 1), np.uint64)
    if names:
        error = parse(data, frames, *named, places, pools, np.zeros(2, np.int64))
        _check_parsed(path, frames, names, error)
    kinds = named.kinds.tolist()
    return [
        _Taken(_gather(pools, kind, starts, counts), counts)
        for kind, starts, counts in zip(kinds, places[0], places[1], strict=True)
    ]


def _gather(pools: npt.NDArray[np.uint64], kind: int, starts: IntArray, counts: IntArray) -> Any:
    """Return the values of a column: int64, float32, or start and length of byte strings."""
    from twotower.data.tfrecord.parse_loops import gather

    width = 2 if kind == BYTES else 1
    out = np.empty(width * int(counts.sum()), np.uint32 if kind == FLOAT else np.uint64)
    gather(pools[int(kind == BYTES)], starts, counts, width, out)
    if kind == BYTES:
        return out.reshape(-1, 2)
    return out.view(np.float32 if kind == FLOAT else np.int64)


def _check_parsed(
    path: Path, frames: IntArray, names: list[str], error: tuple[int, int, int]
) -> None:
    from twotower.data.tfrecord.feature_loops import OTHER_KIND

    kind, row, column = error
    if not kind:
        return
    where = f"{path}: the record at byte {int(frames[row, 0]) - HEAD_BYTES}"
    if kind == OTHER_KIND:
        raise DataError(
            f"{where} has values of another kind in '{names[column]}'; nothing of it was used"
        )
    raise CorruptArtifact(f"{where} is no tf.train.Example; nothing of it was used")


def _joined(data: npt.NDArray[np.uint8], kind: ColumnKind, parts: list[Any]) -> npt.NDArray[Any]:
    number = KIND_NUMBERS[kind]
    if number == BYTES:
        return _strings(data, np.concatenate([np.zeros((0, 2), np.uint64), *parts]))
    dtype = np.float32 if number == FLOAT else np.int64
    return np.concatenate([np.zeros(0, dtype), *parts])


def _strings(data: npt.NDArray[np.uint8], spans: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Return byte strings as `S[m]`, or as objects where one ends in NUL, which `S` would drop."""
    from twotower.data.tfrecord.parse_loops import gather_bytes

    width = max(int(spans[:, 1].max(initial=0)), 1)
    out = np.zeros((len(spans), width), np.uint8)
    if not gather_bytes(data, spans, out):
        return out.view(f"S{width}").ravel()
    exact = [row.tobytes()[:length] for row, length in zip(out, spans[:, 1].tolist(), strict=True)]
    values = np.empty(len(exact), dtype=object)
    values[:] = exact
    return values


def _column(
    path: Path, name: str, kind: ColumnKind, counts: IntArray, values: npt.NDArray[Any]
) -> Column:
    if kind in _RAGGED:
        return RaggedColumn(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        raise DataError(
            f"{path}: expected one value of '{name}' in every record, found {counts[wrong[0]]} in "
            f"record {wrong[0]}; nothing of it was used; read it as a list"
        )
    return values
