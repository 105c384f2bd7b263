"""The two native Faiss indexes: how each is built, searched under a mask, written and opened.

The only file that imports Faiss. Faiss releases the GIL while it searches. Its thread count is one
setting for the whole process, left to whoever runs it; a graph built by several threads differs
from run to run.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.errors import CorruptArtifact, MissingExtra
from twotower.index.interface import BoolArray, FloatArray, IntArray

__all__ = ["Hnsw", "Ivf", "NativeEngine", "NativeSearch", "load_faiss", "pack_bits"]

_MIN_POINTS_PER_LIST: Final = 64
_HNSW_LINKS: Final = 32
_HNSW_BUILD_EFFORT: Final = 100


class NativeSearch(NamedTuple):
    """How one native search is done."""

    depth: int
    """Candidates wanted for every query."""
    effort: int
    allowed_bits: npt.NDArray[np.uint8] | None
    """One bit a row, as `pack_bits` makes them; None allows all."""


class NativeEngine(ABC):
    """A kind of Faiss index over rows 0 to M-1 of an array of vectors."""

    name: ClassVar[str]

    @abstractmethod
    def build(self, vectors: FloatArray, seed: int) -> Any:
        """Return the Faiss index of `float32[M, D]`."""

    @abstractmethod
    def depth(self, k: int) -> int:
        """Return how many candidates to have scored anew for the best `k`."""

    @abstractmethod
    def efforts(self, native: Any) -> Sequence[int]:
        """Return the search efforts worth trying, ascending."""

    @abstractmethod
    def parameters(self, native: Any, effort: int, selector: Any) -> Any:
        """Return the Faiss search parameters of one call."""

    def first_effort(self, native: Any) -> int:
        """Return the effort of an index that nobody tuned: in the upper half of those to try."""
        efforts = self.efforts(native)
        return efforts[len(efforts) * 2 // 3]

    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """Return the candidates of each query as rows, `int64[n, depth]`, -1 padding.

        The bitmap and its selector are held in local names until the search is over, because
        Faiss keeps bare pointers to both.
        """
        faiss = load_faiss()
        bits, selector = how.allowed_bits, None
        if bits is not None:
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        parameters = self.parameters(native, how.effort, selector)
        _, rows = native.search(queries, how.depth, params=parameters)
        return np.asarray(rows, dtype=np.int64)

    def write(self, native: Any, path: Path) -> None:
        """Write the native index to one file.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        try:
            load_faiss().write_index(native, str(path))
        except RuntimeError as error:
            raise OSError(errno.EIO, f"Faiss could not write: {error}", str(path)) from error

    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Any:
        """Return a written index of `shape` M, D. Only for a file whose checksum was verified.

        Raises:
            CorruptArtifact: Faiss cannot read it, or it is not an inner-product index of `shape`.
        """
        faiss = load_faiss()
        # IO_FLAG_MMAP instead is eight times slower on IVF and ignored on HNSW.
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) if mmap else 0
        try:
            native = faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise CorruptArtifact(f"{path} was not loaded: {error}; publish it again") from error
        found = (native.ntotal, native.d)
        if found != shape or native.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise CorruptArtifact(
                f"{path} was not loaded: expected an inner-product index of {shape} items and "
                f"dimensions, found {found}, metric {native.metric_type}; publish it again"
            )
        return native


class Ivf(NativeEngine):
    """Inverted lists with 8-bit codes: about 4 sqrt(M) lists, `effort` of them probed.

    The codes propose twice as many candidates as asked for; scoring those anew with the float32
    vectors lifts the ceiling that the codes set (about 0.985 recall at 100).
    """

    name = "faiss_ivf"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`; k-means is repeatable with one seed."""
        faiss = load_faiss()
        num_items, dimensions = vectors.shape
        lists = max(1, min(int(4 * num_items**0.5), num_items // _MIN_POINTS_PER_LIST))
        native = faiss.index_factory(dimensions, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        native.cp.seed = seed + 1
        native.cp.min_points_per_centroid = 1
        native.train(vectors)
        native.add(vectors)
        return native

    def depth(self, k: int) -> int:
        """See `NativeEngine.depth`."""
        return 2 * k

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: powers of two up to all lists."""
        return _doubling(1, int(native.nlist))

    def parameters(self, native: Any, effort: int, selector: Any) -> Any:
        """See `NativeEngine.parameters`."""
        probes = min(effort, int(native.nlist))
        return load_faiss().SearchParametersIVF(sel=selector, nprobe=probes)


class Hnsw(NativeEngine):
    """A graph of links between near items; `effort` candidates are kept in view.

    Slower to build than lists and stuck below 0.95 recall on vectors with empty space between
    clusters; good on trained vectors without such gaps.
    """

    name = "faiss_hnsw"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`."""
        faiss = load_faiss()
        native = faiss.IndexHNSWFlat(vectors.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        native.hnsw.efConstruction = _HNSW_BUILD_EFFORT
        native.hnsw.rng = faiss.RandomGenerator(seed + 1)
        native.add(vectors)
        return native

    def depth(self, k: int) -> int:
        """See `NativeEngine.depth`; the graph holds whole vectors, so nothing is lost to codes."""
        return k

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: doubling up to 1,024."""
        return _doubling(16, min(1024, max(16, int(native.ntotal))))

    def parameters(self, native: Any, effort: int, selector: Any) -> Any:
        """See `NativeEngine.parameters`."""
        return load_faiss().SearchParametersHNSW(sel=selector, efSearch=effort)


def load_faiss() -> Any:
    """Return the Faiss module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss-cpu", "serve", "this index engine") from error
    return faiss


def pack_bits(mask: BoolArray) -> npt.NDArray[np.uint8]:
    """Return a mask over rows as Faiss reads it: bit `i % 8` of byte `i // 8`."""
    return np.packbits(mask, bitorder="little")


def _doubling(first: int, last: int) -> Sequence[int]:
    powers = [first]
    while powers[-1] * 2 < last:
        powers.append(powers[-1] * 2)
    return (*powers, last) if last > powers[-1] else tuple(powers)
