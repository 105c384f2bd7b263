"""Columns to TFRecord files, some thousands of rows at once by a compiled loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from twotower.data.tfrecord.columns import (
    BYTES,
    FLOAT,
    FRAME_BYTES,
    INT,
    SLACK_BYTES,
    Column,
    RaggedColumn,
    ShardEntry,
    joined_bytes,
    layout,
)
from twotower.data.tfrecord.frames import require_codec, seal
from twotower.durable import Step, at_nothing, replace_file
from twotower.errors import DataError

__all__ = ["encode_rows", "write_shard"]

IntArray = npt.NDArray[np.int64]
_ROWS_AT_ONCE: Final = 4096
_KINDS: Final = {"i": INT, "u": INT, "b": INT, "f": FLOAT, "S": BYTES, "O": BYTES}
_ENTRY_BYTES: Final = 60
"""Most that an entry needs beside its name and its values: six tags and lengths."""


def encode_rows(columns: Mapping[str, Column]) -> bytes:
    """Return the rows of the columns as framed records, a feature a column.

    An empty list is a missing value: the feature is absent from its record. Floats are kept as
    float32, which is all that the format has.

    Raises:
        DataError: the columns differ in length, one is of another type, or its offsets do not fit
            its values.
        MissingExtra: numba or google-crc32c is not installed.
    """
    return b"".join(_checked_parts(columns))


def write_shard(
    path: Path, columns: Mapping[str, Column], at_step: Step = at_nothing
) -> ShardEntry:
    """Write the columns as one file, which appears whole and durable, or not at all.

    Args:
        path: of the file; its folder exists.
        columns: as for `encode_rows`.
        at_step: told of every step that a crash can fall after.

    Raises:
        DataError: as `encode_rows`.
    """
    parts, digest, num_bytes = _checked_parts(columns), xxhash.xxh3_128(), 0

    def counted() -> Iterator[memoryview]:
        nonlocal num_bytes
        for part in parts:
            digest.update(part)
            num_bytes += len(part)
            yield part

    replace_file(path, counted(), at_step)
    rows = _num_rows(columns)
    return ShardEntry(name=path.name, rows=rows, bytes=num_bytes, xxh3=digest.hexdigest())


def _checked_parts(columns: Mapping[str, Column]) -> Iterator[memoryview]:
    """Check all columns, then return their records, a part of the rows at a time."""
    require_codec()
    num_rows = _num_rows(columns)
    kinds = [_kind(name, column) for name, column in columns.items()]
    return _parts(columns, kinds, num_rows)


def _parts(columns: Mapping[str, Column], kinds: list[int], num_rows: int) -> Iterator[memoryview]:
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, num_rows)
        lists = {name: _slice(column, start, end) for name, column in columns.items()}
        yield seal(*_encode(lists, kinds))


def _num_rows(columns: Mapping[str, Column]) -> int:
    lengths = {
        name: len(column.offsets) - 1 if isinstance(column, RaggedColumn) else len(column)
        for name, column in columns.items()
    }
    if len(set(lengths.values())) > 1:
        raise DataError(f"expected columns of one length, found {lengths}; nothing was written")
    return next(iter(lengths.values()), 0)


def _kind(name: str, column: Column) -> int:
    values = column.values if isinstance(column, RaggedColumn) else column
    kind = _KINDS.get(values.dtype.kind)
    is_known = kind is not None and values.dtype != np.uint64 and values.ndim == 1
    if kind is None or not is_known or (values.dtype.kind == "O" and not _all_bytes(values)):
        raise DataError(
            f"expected column '{name}' of integers of 64 bits with a sign, floats or bytes, found "
            f"{values.dtype} in {values.ndim} dimensions; nothing was written"
        )
    if isinstance(column, RaggedColumn) and not _fit(column):
        raise DataError(
            f"expected offsets of column '{name}' that rise from 0 to {len(values)}, found others; "
            "nothing was written"
        )
    return kind


def _all_bytes(values: npt.NDArray[Any]) -> bool:
    return all(type(value) is bytes for value in values.tolist())


def _fit(column: RaggedColumn) -> bool:
    """Return whether the offsets stay within the values: the compiled loops trust them."""
    offsets = column.offsets
    ends = len(offsets) > 0 and (offsets[0], offsets[-1]) == (0, len(column.values))
    return bool(ends and (np.diff(offsets) >= 0).all())


def _slice(column: Column, start: int, end: int) -> RaggedColumn:
    """Return some rows of a column, as lists."""
    if isinstance(column, RaggedColumn):
        offsets = column.offsets[start : end + 1]
        return RaggedColumn(column.values[offsets[0] : offsets[-1]], offsets - offsets[0])
    return RaggedColumn(column[start:end], np.arange(end - start + 1, dtype=np.int64))


def _encode(
    columns: Mapping[str, RaggedColumn], kinds: list[int]
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Return records with checksums left open, and start and length of each one's content."""
    from twotower.data.tfrecord.encode_loops import encode

    lists = list(columns.values())
    named = layout(list(columns), kinds)
    byte_data, byte_ends = _flat_bytes(_of_kind(lists, kinds, BYTES))
    num_rows = len(lists[0].offsets) - 1
    num_values = sum(len(column.values) for column in lists)
    row_bytes = FRAME_BYTES + 10 + len(named.fields) + _ENTRY_BYTES * len(lists)
    num_bytes = num_rows * row_bytes + 10 * num_values + len(byte_data)
    out = np.empty(num_bytes + SLACK_BYTES, np.uint8)
    frames = np.empty((num_rows, 2), np.int64)
    used = encode(
        out,
        frames,
        *named,
        _places(lists, kinds),
        _joined(_of_kind(lists, kinds, INT), np.int64),
        _joined(_of_kind(lists, kinds, FLOAT), np.float32).view(np.uint32),
        byte_data,
        byte_ends,
    )
    return out[:used], frames


def _of_kind(lists: list[RaggedColumn], kinds: list[int], kind: int) -> list[npt.NDArray[Any]]:
    return [column.values for column, found in zip(lists, kinds, strict=True) if found == kind]


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(part.astype(dtype, copy=False) for part in parts)])


def _places(lists: list[RaggedColumn], kinds: list[int]) -> IntArray:
    """Return where each row's values start among all values of the column's kind: `[K, n + 1]`."""
    used = {INT: 0, FLOAT: 0, BYTES: 0}
    places = np.empty((len(lists), len(lists[0].offsets)), np.int64)
    for row, column, kind in zip(places, lists, kinds, strict=True):
        row[:] = column.offsets + used[kind]
        used[kind] += len(column.values)
    return places


def _flat_bytes(parts: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.uint8], IntArray]:
    return joined_bytes([value for part in parts for value in part.tolist()])
