"""A day's rows in an exactly uniform order, also of a day that is larger than memory.

A day that fits into the memory it is given is permuted there. A larger one goes to disk and back
once: every row is thrown into one of `P` files, uniformly and independently of all others, and each
file is then read and permuted by itself. Every order of the day is as likely as any other, because
a permutation can be drawn in just this way: first who is in which part, then the order of each part
(Rao 1961; Sandelius 1962). No buffer that slides over the rows can promise that.

A row is a record, its columns beside each other: to move one touches one place of memory, not one a
column. Records are moved as bytes, by `take` and by byte views: indexing them with an array, or
joining arrays of them, goes field by field and takes six times as long. Legend: `n` rows.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from twotower.data.tfrecord import ColumnKind, read_shard
from twotower.errors import DataError

__all__ = ["parquet_rows", "shuffled_batches", "tfrecord_rows"]

Rows = npt.NDArray[np.void]
"""Records of one structured dtype."""
_MAX_PARTS: Final = 250
_CHUNK_ROWS: Final = 1 << 16
_READERS: Final = 2
_SHARE_OF_A_PART: Final = 0.4
"""A part beside its order, and the reading of the next batch, stay within what may be held."""


def parquet_rows(paths: Sequence[Path], dtype: np.dtype[np.void]) -> Iterator[Rows]:
    """Yield the rows of Parquet files as records, some tens of thousands at once.

    Args:
        paths: the files, in order.
        dtype: names the columns and their types; text is taken as UTF-8 bytes.

    Raises:
        DataError: a value does not fit the type.
    """
    from pyarrow import parquet

    names = list(dtype.names or ())
    for path in paths:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK_ROWS, columns=names):
                columns = {
                    name: batch.column(name).to_numpy(zero_copy_only=False) for name in names
                }
                yield _records(columns, dtype, path)


def tfrecord_rows(
    paths: Sequence[Path], kinds: Mapping[str, ColumnKind], dtype: np.dtype[np.void]
) -> Iterator[Rows]:
    """Yield the rows of TFRecord shards as records, a shard at once; threads read the next ones.

    Args:
        paths: the shards, in order.
        kinds: columns of exactly one value a row; those that `dtype` names.
        dtype: their types.

    Raises:
        CorruptArtifact: a shard is torn or altered.
        DataError: a value does not fit the type.
    """

    def read(path: Path) -> Rows:
        return _records(read_shard(path, kinds).columns, dtype, path)

    with ThreadPoolExecutor(_READERS) as readers:
        waiting = deque(readers.submit(read, path) for path in paths[:_READERS])
        for path in paths[_READERS:]:
            yield waiting.popleft().result()
            waiting.append(readers.submit(read, path))
        while waiting:
            yield waiting.popleft().result()


def _records(columns: Mapping[str, Any], dtype: np.dtype[np.void], path: Path) -> Rows:
    first, *_ = columns.values()
    rows = np.empty(len(first), dtype)
    for name in dtype.names or ():
        values = np.asarray(columns[name])
        if values.dtype == object:
            values = np.array([str(value).encode() for value in values], dtype="S")
        if values.dtype.kind == "S" and values.dtype.itemsize > dtype[name].itemsize:
            raise DataError(
                f"{path}: expected at most {dtype[name].itemsize} bytes in '{name}', found "
                f"{values.dtype.itemsize}; nothing of the file was used"
            )
        rows[name] = values
    return rows


def shuffled_batches(
    chunks: Iterable[Rows],
    *,
    num_rows: int,
    max_rows_held: int,
    batch_rows: int,
    seed: int,
    folder: Path | None = None,
) -> Iterator[Rows]:
    """Yield every row exactly once, in a uniformly drawn order, `batch_rows` at a time.

    The same rows and seed give the same order, however they are cut into chunks. Of a larger day
    the last batch alone is short, too. Temporary files are gone when the iterator is.

    Args:
        chunks: the rows, once.
        num_rows: how many there are.
        max_rows_held: rows that may be in memory at once, besides a chunk and a batch.
        batch_rows: rows of a batch.
        seed: of the order.
        folder: where a larger day is written meanwhile, the system's temporary folder if None.

    Raises:
        DataError: there are not `num_rows`, or they would need too many files.
    """
    generator = np.random.default_rng(seed)
    if num_rows <= max_rows_held:
        yield from _in_random_order(_together(chunks, num_rows), batch_rows, generator)
        return
    num_parts = _num_parts(num_rows, max_rows_held)
    with tempfile.TemporaryDirectory(prefix="shuffle-", dir=folder) as created:
        paths = [Path(created) / f"{part:03d}" for part in range(num_parts)]
        dtype = _scatter(chunks, paths, num_rows, generator)
        yield from _read_parts(paths, dtype, batch_rows, generator)


def _together(chunks: Iterable[Rows], num_rows: int) -> Rows:
    rows, found = np.empty(0, [("nothing", "u1")]), 0
    for chunk in chunks:
        if not found:
            rows = np.empty(num_rows, chunk.dtype)
        if found + len(chunk) <= num_rows:
            _bytes_of(rows)[found : found + len(chunk)] = _bytes_of(chunk)
        found += len(chunk)
    _check_number(found, num_rows)
    return rows


def _bytes_of(rows: Rows) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _num_parts(num_rows: int, max_rows_held: int) -> int:
    parts = -int(-num_rows // max(1.0, _SHARE_OF_A_PART * max_rows_held))
    if parts > _MAX_PARTS:
        raise DataError(
            f"expected at most {_MAX_PARTS} parts, found {num_rows} rows of which "
            f"{max_rows_held} may be held; allow at least "
            f"{int(num_rows / _SHARE_OF_A_PART / _MAX_PARTS) + 1}"
        )
    return parts


def _scatter(
    chunks: Iterable[Rows], paths: list[Path], num_rows: int, generator: np.random.Generator
) -> np.dtype[np.void]:
    """Throw every row into one of the files; return the rows' type."""
    found, dtype = 0, np.dtype([("nothing", "u1")])
    with ExitStack() as files:
        parts = [files.enter_context(path.open("wb")) for path in paths]
        for rows in _small(chunks):
            _scatter_chunk(rows, parts, generator)
            found, dtype = found + len(rows), rows.dtype
    _check_number(found, num_rows)
    return dtype


def _small(chunks: Iterable[Rows]) -> Iterator[Rows]:
    for rows in chunks:
        for start in range(0, len(rows), _CHUNK_ROWS):
            yield rows[start : start + _CHUNK_ROWS]


def _scatter_chunk(rows: Rows, parts: Sequence[BinaryIO], generator: np.random.Generator) -> None:
    # A float a row, so that the draws do not depend on how the rows are cut into chunks.
    drawn = (generator.random(len(rows)) * len(parts)).astype(np.uint8)
    by_part = rows.take(np.argsort(drawn, kind="stable"))
    ends = np.cumsum(np.bincount(drawn, minlength=len(parts))).tolist()
    for file, start, end in zip(parts, [0, *ends], ends, strict=False):
        file.write(by_part[start:end].data)


def _read_parts(
    paths: list[Path], dtype: np.dtype[np.void], batch_rows: int, generator: np.random.Generator
) -> Iterator[Rows]:
    """Yield the files' rows, each file in an order of its own, in batches across their borders."""
    rest = np.empty(0, dtype)
    for path in paths:
        rows = np.fromfile(path, dtype)
        path.unlink()
        order = generator.permutation(len(rows))
        first = batch_rows - len(rest) if len(rest) else 0
        if first:
            rest = np.concatenate([rest, rows.take(order[:first])])
            if len(rest) < batch_rows:
                continue
            yield rest
        whole = (len(order) - first) // batch_rows * batch_rows
        for start in range(first, first + whole, batch_rows):
            yield rows.take(order[start : start + batch_rows])
        rest = rows.take(order[first + whole :])
    if len(rest):
        yield rest


def _in_random_order(rows: Rows, batch_rows: int, generator: np.random.Generator) -> Iterator[Rows]:
    order = generator.permutation(len(rows))
    for start in range(0, len(rows), batch_rows):
        yield rows.take(order[start : start + batch_rows])


def _check_number(found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"expected {expected} rows to shuffle, found {found}; the day changed while it was read"
        )
