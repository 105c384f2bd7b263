"""Approximate search with a native engine: inverted lists or a graph, by inner product.

The native index is built once and never changed. What is deleted or replaced later is masked out
of its search; what is new is kept beside it and scanned exactly; both until the next publish
builds anew. The vectors are ours, float32 rows next to the native index: it only proposes
candidates, so every score returned is a true inner product.
Legend: `M` items in the native index, `N` items in all, `D` dimensions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from twotower.errors import CorruptArtifact
from twotower.index.interface import (
    BoolArray,
    FloatArray,
    IntArray,
    SearchResult,
    TunableIndex,
    check_ids,
    check_items,
    check_search,
)
from twotower.index.masked import MaskedSearch
from twotower.index.native import NativeEngine
from twotower.index.row_mask import KeptMasks, SharedMask
from twotower.index.rows import VectorRows, empty_rows, make_rows
from twotower.index.storage import (
    IndexHeader,
    file_sizes,
    new_folder,
    read_array,
    read_rows,
    write_header,
    write_rows,
)
from twotower.index.top_k import merge

__all__ = ["FrozenIndex", "open_frozen"]

_MIN_NATIVE_ITEMS: Final = 1_000


class _Snapshot(NamedTuple):
    """All that a search reads; replaced as a whole by every change."""

    base: VectorRows
    """The items of the native index, in its order."""
    native: Any | None
    """The native index over rows 0 to M-1 of `base`; None when `base` is empty."""
    live: SharedMask
    """Allows the rows of `base` that were not deleted or replaced since."""
    added: VectorRows
    """What was upserted since; disjoint from the live rows of `base`."""

    def num_items(self) -> int:
        return self.live.num_allowed + len(self.added.ids)

    def without(self, ids: IntArray) -> _Snapshot:
        return self._masked(ids)._replace(added=self.added.without(ids))

    def with_items(self, ids: IntArray, vectors: FloatArray) -> _Snapshot:
        return self._masked(ids)._replace(added=self.added.with_items(ids, vectors))

    def _masked(self, ids: IntArray) -> _Snapshot:
        live = self.live.allowed.copy()
        live[self.base.known(ids)] = False
        return self._replace(live=SharedMask(live))


class FrozenIndex(TunableIndex):
    """A frozen native index with a mask for what is gone and an exact scan of what is new."""

    def __init__(self, engine: NativeEngine, snapshot: _Snapshot, effort: int) -> None:
        self.effort = effort
        self._engine = engine
        self._snapshot = snapshot
        self._dimensions = snapshot.base.vectors.shape[1]
        self._masks = KeptMasks()
        self._writing = threading.Lock()

    @classmethod
    def build(
        cls,
        engine: NativeEngine,
        ids: IntArray,
        vectors: FloatArray,
        seed: int = 0,
        min_native_items: int = _MIN_NATIVE_ITEMS,
    ) -> FrozenIndex:
        """Return an index of items `ids[N]`, `vectors[N, D]`, not tuned yet.

        Fewer than `min_native_items` items are left to the exact scan.
        """
        rows = make_rows(*check_items(ids, vectors, None))
        nothing = empty_rows(rows.vectors.shape[1])
        if len(rows.ids) < max(engine.fewest_items, min_native_items):
            return cls(engine, _Snapshot(nothing, None, SharedMask(np.zeros(0, np.bool_)), rows), 1)
        native = engine.build(rows.vectors, seed)
        live = SharedMask(np.ones(len(rows.ids), np.bool_))
        return cls(engine, _Snapshot(rows, native, live, nothing), engine.first_effort(native))

    def __len__(self) -> int:
        return self._snapshot.num_items()

    @property
    def lost_searches(self) -> int:
        """See `VectorIndex.lost_searches`; forks share the engine, and so the number."""
        native = self._snapshot.native
        return 0 if native is None else self._engine.lost_searches(native)

    @property
    def engine_name(self) -> str:
        """As the settings name it."""
        return self._engine.name

    @property
    def native(self) -> Any | None:
        """What the engine built; None where there was too little for it."""
        return self._snapshot.native

    def efforts(self) -> Sequence[int]:
        """See `TunableIndex.efforts`; only one where nothing native was built."""
        native = self._snapshot.native
        return (self.effort,) if native is None else self._engine.efforts(native)

    def search_exactly(
        self, queries: FloatArray, k: int, allowed: BoolArray | IntArray | None = None
    ) -> SearchResult:
        """See `TunableIndex.search_exactly`."""
        base, _, live, added = self._snapshot
        checked = check_search(queries, self._dimensions, k, None)
        if allowed is None:
            found = base.search(checked, k, gone=live.hiding_nothing().hidden_rows())
        else:
            found = base.search(checked, k, among=_allowing(base, live, allowed).rows)
            added = added.take(added.allowed_rows(allowed))
        return merge(found, added.search(checked, k), k)

    def search(
        self,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None = None,
        allowed: BoolArray | IntArray | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`; queries with exclusions are searched one at a time.

        Where few items are allowed, those are scanned: the native index alone would return short
        answers there without a word.
        """
        base, native, live, added = self._snapshot
        checked = check_search(queries, self._dimensions, k, exclude)
        if allowed is not None and len(added.ids):
            added = added.take(added.allowed_rows(allowed))
        if native is None:
            return added.search(checked, k, exclude)
        effort = self.effort
        if allowed is not None:
            live = self._masks.of(allowed, live, partial(_allowing, base, live, allowed))
            effort = math.ceil(effort * self.filter_factor)
        found = MaskedSearch(self._engine, native, base, live, effort).search(checked, k, exclude)
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
        """See `VectorIndex.save`; what is masked and what was added is written as it is."""
        snapshot = self._snapshot
        new_folder(folder)
        write_rows(folder, snapshot.base, "base_")
        write_rows(folder, snapshot.added, "added_")
        np.save(folder / "live.npy", snapshot.live.allowed, allow_pickle=False)
        if snapshot.native is not None:
            self._engine.write(snapshot.native, folder / self._engine.file_name)
        header = IndexHeader(
            engine=self._engine.name,
            dimensions=self._dimensions,
            num_items=snapshot.num_items(),
            effort=self.effort,
            filter_factor=self.filter_factor,
            files=file_sizes(folder),
        )
        write_header(folder, header)


def _allowing(base: VectorRows, live: SharedMask, allowed: BoolArray | IntArray) -> SharedMask:
    return SharedMask(live.allowed & base.allowed_mask(allowed))


def open_frozen(engine: NativeEngine, folder: Path, header: IndexHeader, mmap: bool) -> FrozenIndex:
    """Return a saved index; with `mmap` its files stay on disk, shared between processes.

    Raises:
        CorruptArtifact: the files do not fit each other.
    """
    base = read_rows(folder, header.dimensions, mmap, "base_")
    added = read_rows(folder, header.dimensions, mmap, "added_")
    live = read_array(folder, "live.npy", np.bool_, (len(base.ids),), mmap)
    native = None
    if len(base.ids):
        native = engine.open(folder / engine.file_name, mmap, base.vectors.shape)
    snapshot = _Snapshot(base, native, SharedMask(live), added)
    effort, factor, found = header.effort, header.filter_factor, snapshot.num_items()
    if effort is None or min(effort, factor) < 1 or found != header.num_items:
        raise CorruptArtifact(
            f"the index in {folder} was not loaded: expected {header.num_items} items and efforts "
            f"from 1, found {found} and {(effort, factor)}; publish it again"
        )
    index = FrozenIndex(engine, snapshot, effort)
    index.filter_factor = factor
    return index
