"""Exact search: every item scored with one matrix product. The oracle of every other engine.

Sound up to about 100,000 items, where one query of 64 dimensions takes about a millisecond; needs
nothing but numpy. What the index was built of is never changed: what is gone is left out of its
scan, what is new is scanned beside it, so that a change costs what changed.
Legend: `M` items it was built of, `N` items in all, `D` dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

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
from twotower.index.row_mask import KeptMasks, SharedMask
from twotower.index.rows import VectorRows, empty_rows, make_rows
from twotower.index.storage import (
    IndexHeader,
    file_sizes,
    new_folder,
    read_rows,
    write_header,
    write_rows,
)
from twotower.index.top_k import merge

__all__ = ["ExactIndex", "open_exact"]

ENGINE = "exact"
_GATHERED_SHARE: Final = 0.25


class _Snapshot(NamedTuple):
    """All that a search reads; replaced as a whole by every change."""

    base: VectorRows
    """`M` items, possibly memory-mapped."""
    gone: IntArray
    """Rows of `base` that were deleted or replaced since, ascending."""
    added: VectorRows
    """What was upserted since; disjoint from what is left of `base`."""

    def without(self, ids: IntArray) -> _Snapshot:
        return self._masked(ids)._replace(added=self.added.without(ids))

    def with_items(self, ids: IntArray, vectors: FloatArray) -> _Snapshot:
        return self._masked(ids)._replace(added=self.added.with_items(ids, vectors))

    def _masked(self, ids: IntArray) -> _Snapshot:
        return self._replace(gone=np.union1d(self.gone, self.base.known(ids)))

    def allowing(self, allowed: BoolArray | IntArray) -> SharedMask:
        """Return which rows of `base` may be returned."""
        mask = self.base.allowed_mask(allowed)
        mask[self.gone] = False
        return SharedMask(mask)

    def joined(self) -> VectorRows:
        """Return all items as one set; copies them where something changed."""
        if not len(self.gone) and not len(self.added.ids):
            return self.base
        left = self.base.take(np.delete(np.arange(len(self.base.ids)), self.gone))
        return left.with_items(self.added.ids, self.added.vectors)


class ExactIndex(VectorIndex):
    """Scans all vectors; its recall is 1 by definition."""

    def __init__(self, rows: VectorRows) -> None:
        self._dimensions = rows.vectors.shape[1]
        self._snapshot = _Snapshot(rows, np.zeros(0, np.int64), empty_rows(self._dimensions))
        self._masks = KeptMasks()
        self._writing = threading.Lock()

    @classmethod
    def build(cls, ids: IntArray, vectors: FloatArray) -> ExactIndex:
        """Return an index of items `ids[N]`, `vectors[N, D]`."""
        labels, checked = check_items(ids, vectors, None)
        return cls(make_rows(labels, checked))

    def __len__(self) -> int:
        base, gone, added = self._snapshot
        return len(base.ids) - len(gone) + len(added.ids)

    def search(
        self,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None = None,
        allowed: BoolArray | IntArray | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`; costs one pass over the allowed vectors a block of queries."""
        snapshot = self._snapshot
        checked = check_search(queries, self._dimensions, k, exclude)
        base, gone, added = snapshot
        if allowed is None:
            found = base.search(checked, k, exclude, gone if len(gone) else None)
        else:
            mask = self._masks.of(allowed, gone, partial(snapshot.allowing, allowed))
            found = _search_allowed(base, mask, checked, k, exclude)
            added = added.take(added.allowed_rows(allowed)) if len(added.ids) else added
        return merge(found, added.search(checked, k, exclude), k) if len(added.ids) else found

    def upsert(self, ids: IntArray, vectors: FloatArray) -> None:
        """See `VectorIndex.upsert`; copies what was added since the build."""
        labels, checked = check_items(ids, vectors, self._dimensions)
        with self._writing:
            self._snapshot = self._snapshot.with_items(labels, checked)

    def delete(self, ids: IntArray) -> None:
        """See `VectorIndex.delete`."""
        labels = check_ids(ids)
        with self._writing:
            self._snapshot = self._snapshot.without(labels)

    def save(self, folder: Path) -> None:
        """See `VectorIndex.save`."""
        rows = self._snapshot.joined()
        new_folder(folder)
        write_rows(folder, rows)
        header = IndexHeader(
            engine=ENGINE,
            dimensions=self._dimensions,
            num_items=len(rows.ids),
            files=file_sizes(folder),
        )
        write_header(folder, header)


def _search_allowed(
    base: VectorRows,
    mask: SharedMask,
    queries: FloatArray,
    k: int,
    exclude: Sequence[IntArray] | None,
) -> SearchResult:
    """Search what a mask allows: one look at all of it, or at the allowed rows where they are few.

    Gathering a row costs about three times what reading it in passing does.
    """
    if mask.num_allowed > _GATHERED_SHARE * len(base.ids):
        return base.search(queries, k, exclude, mask.hiding_nothing().hidden_rows())
    if exclude is None:
        return base.search(queries, k, among=mask.rows)
    if len(queries) == 1:
        rows = mask.hiding(base.named(exclude[0])).allowed_rows()
        return base.search(queries, k, among=rows)
    return base.take(mask.rows).search(queries, k, exclude)


def open_exact(folder: Path, header: IndexHeader, mmap: bool) -> ExactIndex:
    """Return a saved index; with `mmap` its vectors stay on disk, shared between processes."""
    return ExactIndex(read_rows(folder, header.dimensions, mmap))
