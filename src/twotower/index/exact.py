"""Exact search: every item scored with one matrix product. The oracle of every other engine.

Sound up to about 100,000 items, where one query of 64 dimensions takes about a millisecond; needs
nothing but numpy.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from twotower.index.interface import (
    BoolArray,
    FloatArray,
    IntArray,
    SearchResult,
    VectorIndex,
    check_ids,
    check_items,
    check_search,
)
from twotower.index.rows import VectorRows, make_rows
from twotower.index.storage import (
    IndexHeader,
    file_sizes,
    new_folder,
    read_rows,
    write_header,
    write_rows,
)

__all__ = ["ExactIndex", "open_exact"]

ENGINE = "exact"


class ExactIndex(VectorIndex):
    """Scans all vectors; its recall is 1 by definition."""

    def __init__(self, rows: VectorRows) -> None:
        self._rows = rows
        self._dimensions = rows.vectors.shape[1]
        self._writing = threading.Lock()

    @classmethod
    def build(cls, ids: IntArray, vectors: FloatArray) -> ExactIndex:
        """Return an index of items `ids[N]`, `vectors[N, D]`."""
        labels, checked = check_items(ids, vectors, None)
        return cls(make_rows(labels, checked))

    def __len__(self) -> int:
        return len(self._rows.ids)

    def search(
        self,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None = None,
        allowed: BoolArray | IntArray | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`; costs one pass over the allowed vectors a block of queries."""
        rows = self._rows
        checked = check_search(queries, self._dimensions, k, exclude)
        if allowed is not None:
            rows = rows.take(rows.allowed_rows(allowed))
        return rows.search(checked, k, exclude)

    def upsert(self, ids: IntArray, vectors: FloatArray) -> None:
        """See `VectorIndex.upsert`; copies all vectors once."""
        labels, checked = check_items(ids, vectors, self._dimensions)
        with self._writing:
            self._rows = self._rows.with_items(labels, checked)

    def delete(self, ids: IntArray) -> None:
        """See `VectorIndex.delete`; copies all vectors once."""
        labels = check_ids(ids)
        with self._writing:
            self._rows = self._rows.without(labels)

    def save(self, folder: Path) -> None:
        """See `VectorIndex.save`."""
        rows = self._rows
        new_folder(folder)
        write_rows(folder, rows)
        header = IndexHeader(
            engine=ENGINE,
            dimensions=self._dimensions,
            num_items=len(rows.ids),
            files=file_sizes(folder),
        )
        write_header(folder, header)


def open_exact(folder: Path, header: IndexHeader, mmap: bool) -> ExactIndex:
    """Return a saved index; with `mmap` its vectors stay on disk, shared between processes."""
    return ExactIndex(read_rows(folder, header.dimensions, mmap))
