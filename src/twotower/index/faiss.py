"""The Faiss engines: all vectors, inverted lists with whole or coded vectors, or a graph.

The only file that imports Faiss. Faiss releases the GIL while it searches. Its thread count is one
setting for the whole process, left to whoever runs it; a graph built by several threads differs
from run to run.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from twotower.errors import CorruptArtifact, MissingExtra
from twotower.index.faiss_thread import OwnThread, Parameters, Place
from twotower.index.interface import FloatArray, IntArray
from twotower.index.native import (
    NativeEngine,
    NativeSearch,
    doubling,
    fewest_lists,
    overfetched,
    thinned,
)

__all__ = ["Flat", "Hnsw", "Ivf", "IvfFlat", "IvfPq", "load_faiss"]

_MIN_POINTS_PER_LIST: Final = 64
_TRAINED_POINTS: Final = 250_000
"""That k-means looks at, if these are enough for its lists: more did not find better ones."""
_HNSW_LINKS: Final = 32
_HNSW_BUILD_EFFORT: Final = 100


class _Faiss(NativeEngine):
    """What the kinds share."""

    file_name: ClassVar[str] = "native.faiss"
    parameters: ClassVar[str] = "SearchParameters"
    """The class of Faiss that a search is told with how to go."""
    effort_field: ClassVar[str] = ""
    """The field of it that holds the effort; empty where all is read."""

    def __init__(self) -> None:
        self._own = OwnThread(self.parameters)

    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """See `NativeEngine.search`; without the copies and checks of Faiss's own Python."""
        faiss, mask = load_faiss(), how.mask
        place = self._own.place(faiss, queries, how.depth)
        if mask is None or not len(mask.named):
            shared = self._own.sharing(faiss, None if mask is None else mask.shared)
            return self._found(native, place, how, shared)
        copy, hiding = self._own.hiding(faiss, mask.shared)
        copy.hide(mask.named)
        try:
            return self._found(native, place, how, hiding)
        finally:
            copy.show(mask.named)

    def _found(
        self, native: Any, place: Place, how: NativeSearch, parameters: Parameters
    ) -> IntArray:
        told = parameters.with_effort(self.effort_field, how.effort)
        places = (place.scores_at, place.rows_at)
        native.search_c(len(place.queries), place.queries_at, how.depth, *places, told)
        return place.rows

    def products(self, vectors: FloatArray, queries: FloatArray, rows: IntArray) -> FloatArray:
        """See `NativeEngine.products`: nothing is gathered first."""
        faiss = load_faiss()
        place = self._own.place_of(faiss, queries, rows)
        threads = faiss.omp_get_max_threads() if len(queries) == 1 else 1
        if threads > 1:  # of this thread alone: to wake others for one query takes milliseconds
            faiss.omp_set_num_threads(1)
        try:
            faiss.fvec_inner_products_by_idx(
                place.scores_at,
                place.queries_at,
                faiss.swig_ptr(vectors),
                place.rows_at,
                vectors.shape[1],
                *rows.shape,
            )
        finally:
            if threads > 1:
                faiss.omp_set_num_threads(threads)
        return place.scores

    def write(self, native: Any, path: Path) -> None:
        """See `NativeEngine.write`."""
        try:
            load_faiss().write_index(native, str(path))
        except RuntimeError as error:
            raise OSError(errno.EIO, f"Faiss could not write: {error}", str(path)) from error

    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Any:
        """See `NativeEngine.open`."""
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


class Flat(_Faiss):
    """Every vector is looked at: exact, and about twice the speed of the matrix product alone."""

    name = "faiss_flat"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`; there is nothing to draw."""
        native = load_faiss().IndexFlatIP(vectors.shape[1])
        native.add(vectors)
        return native

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: there is but one."""
        return (1,)


class Ivf(_Faiss):
    """Inverted lists with 8-bit codes: about 4 sqrt(M) lists, `effort` of them probed.

    The codes propose half as many candidates more as are asked for; scoring those anew with the
    float32 vectors lifts the ceiling that the codes set from about 0.985 recall at 100 to 1.000.
    """

    name = "faiss_ivf"
    parameters = "SearchParametersIVF"
    effort_field = "nprobe"
    candidates = 1.5

    def codes(self, dimensions: int) -> str:
        """Return how a list keeps a vector, as Faiss's factory says it."""
        return "SQ8"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`; k-means is repeatable with one seed."""
        faiss = load_faiss()
        num_items, dimensions = vectors.shape
        lists = max(1, min(int(4 * num_items**0.5), num_items // _MIN_POINTS_PER_LIST))
        description = f"IVF{lists},{self.codes(dimensions)}"
        native = faiss.index_factory(dimensions, description, faiss.METRIC_INNER_PRODUCT)
        native.cp.seed = seed + 1
        native.cp.min_points_per_centroid = 1
        native.cp.max_points_per_centroid = max(_MIN_POINTS_PER_LIST, _TRAINED_POINTS // lists)
        native.train(vectors)
        native.add(vectors)
        return native

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: powers of two up to all lists."""
        lists = int(native.nlist)
        return doubling(fewest_lists(lists, int(native.ntotal)), lists)

    def looked_at(self, native: Any, effort: int) -> int | None:
        """See `NativeEngine.looked_at`."""
        return int(min(1.0, effort / native.nlist) * native.ntotal)


class IvfFlat(Ivf):
    """Inverted lists with whole vectors: nothing is lost to codes, and the vectors lie there twice.

    Four times the memory of 8-bit codes.
    """

    name = "faiss_ivf_flat"
    candidates = 1

    def codes(self, dimensions: int) -> str:
        """See `Ivf.codes`."""
        return "Flat"


class IvfPq(Ivf):
    """Inverted lists with 4 bits for every two dimensions, compared in registers: least memory.

    The codes are coarse, so ten times as many candidates as asked for are scored anew. Fast-scan
    knows no masks: what may not be returned is found and left out.
    """

    name = "faiss_ivf_pq"
    fewest_items = 64  # 16 centroids a part
    candidates = 10

    def codes(self, dimensions: int) -> str:
        """See `Ivf.codes`; as many parts as divide the dimensions, of two each where they do."""
        return f"PQ{dimensions // 2 if dimensions % 2 == 0 else dimensions}x4fs"

    def looked_at(self, native: Any, effort: int) -> int | None:
        """See `NativeEngine.looked_at`."""
        return None

    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """See `NativeEngine.search`."""
        whole = how._replace(depth=overfetched(how, int(native.ntotal)), mask=None)
        return thinned(super().search(native, queries, whole), how)


class Hnsw(_Faiss):
    """A graph of links between near items; `effort` candidates are kept in view.

    Slower to build than lists and stuck below 0.95 recall on vectors with empty space between
    clusters; good on trained vectors without such gaps.
    """

    name = "faiss_hnsw"
    parameters = "SearchParametersHNSW"
    effort_field = "efSearch"

    def build(self, vectors: FloatArray, seed: int) -> Any:
        """See `NativeEngine.build`."""
        faiss = load_faiss()
        native = faiss.IndexHNSWFlat(vectors.shape[1], _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        native.hnsw.efConstruction = _HNSW_BUILD_EFFORT
        native.hnsw.rng = faiss.RandomGenerator(seed + 1)
        native.add(vectors)
        return native

    def efforts(self, native: Any) -> Sequence[int]:
        """See `NativeEngine.efforts`: doubling up to 1,024."""
        return doubling(16, min(1024, max(16, int(native.ntotal))))


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
