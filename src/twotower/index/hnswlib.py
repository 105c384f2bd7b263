"""hnswlib: a graph of links between near items, the small library that made such graphs popular.

hnswlib keeps whole vectors of its own, cannot be mapped from the disk and holds the GIL while it
loads: every worker has a copy. It is built by all cores, so two builds differ a little.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from twotower.errors import CorruptArtifact, MissingExtra
from twotower.index.interface import PADDING, FloatArray, IntArray
from twotower.index.native import NativeEngine, NativeSearch, doubling, overfetched, thinned

__all__ = ["Hnswlib"]

_LINKS: Final = 16
_BUILD_EFFORT: Final = 200
_HEAD: Final = struct.Struct("<6Q")
"""Offset of the first layer, room, items, bytes an item, where its label and its vector lie."""


class Hnswlib(NativeEngine):
    """A graph in which `effort` candidates are kept in view.

    As every such graph it may stay below 0.95 recall on vectors with empty space between clusters.
    """

    name: ClassVar[str] = "hnswlib"
    file_name: ClassVar[str] = "native.hnswlib"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`."""
        native = _load().Index("ip", vectors.shape[1])
        native.init_index(
            max_elements=len(vectors), M=_LINKS, ef_construction=_BUILD_EFFORT, random_seed=seed + 1
        )
        native.add_items(vectors, np.arange(len(vectors)))
        return native

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: doubling up to 1,024."""
        return doubling(16, min(1024, max(16, int(native.element_count))))

    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """See `NativeEngine.search`.

        hnswlib's effort is one setting for all threads, but it keeps as many in view as it is
        asked to return; so it is asked for more than wanted. A mask would be a Python call for
        every item that it meets; what may not be returned is found and left out instead.
        """
        num_rows = int(native.element_count)
        depth = overfetched(how, num_rows)
        rows = _query(native, queries, min(num_rows, max(depth, how.effort)))
        return thinned(rows[:, :depth], how)

    def write(self, native: Any, path: Path) -> None:
        """See `NativeEngine.write`; hnswlib does not notice a full disk, its size does."""
        try:
            native.save_index(str(path))
        except RuntimeError as error:
            raise OSError(errno.EIO, f"hnswlib could not write: {error}", str(path)) from error
        if path.stat().st_size != native.index_file_size():
            raise OSError(errno.ENOSPC, "hnswlib wrote a part of its index", str(path))

    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Any:
        """See `NativeEngine.open`; always loaded, whatever `mmap` says."""
        native = _load().Index("ip", shape[1])
        _check_head(path, shape)  # hnswlib reads whatever the file's own head says, or crashes
        try:
            native.load_index(str(path))
        except RuntimeError as error:
            raise CorruptArtifact(f"{path} was not loaded: {error}; publish it again") from error
        return native


def _check_head(path: Path, shape: tuple[int, int]) -> None:
    """Refuse a file that does not begin with the sizes of an index of `shape`, as hnswlib 0.8's."""
    num_items, dimensions = shape
    links = 4 + 8 * _LINKS
    vector_end = links + 4 * dimensions
    expected = (0, num_items, num_items, vector_end + 8, vector_end, links)
    with path.open("rb") as stream:
        head = stream.read(_HEAD.size)
    found = _HEAD.unpack(head) if len(head) == _HEAD.size else ()
    if found != expected:
        raise CorruptArtifact(
            f"{path} was not loaded: expected an hnswlib index with the sizes {expected}, found "
            f"{found}; publish it again"
        )


def _query(native: Any, queries: FloatArray, k: int) -> IntArray:
    """Return the best rows `int64[n, k]`; -1 for a query that cannot reach `k` of the graph.

    hnswlib refuses the whole call then.
    """
    try:
        return np.asarray(native.knn_query(queries, k)[0]).astype(np.int64)
    except RuntimeError:
        if len(queries) <= 1:
            return np.full((len(queries), k), PADDING, np.int64)
    return np.concatenate([_query(native, query[None], k) for query in queries])


def _load() -> Any:
    try:
        import hnswlib
    except ImportError as error:
        raise MissingExtra("hnswlib", "hnswlib", "this index engine") from error
    return hnswlib
