"""What an approximate engine must bring: a native index over rows, which only proposes candidates.

`FrozenIndex` does the rest: labels, changes, filters, true scores, files.
Legend: `M` items in the native index, `n` queries, `D` dimensions, `K` asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from twotower.index.interface import PADDING, FloatArray, IntArray
from twotower.index.row_mask import RowMask

__all__ = [
    "NativeEngine",
    "NativeSearch",
    "doubling",
    "fewest_lists",
    "overfetched",
    "thinned",
]

_FEWEST_LOOKED_AT: Final = 200
_GATHERED_FLOATS: Final = 150_000
"""Of candidates at a time: what stays in a cache until they are multiplied."""


class NativeSearch(NamedTuple):
    """How one native search is done."""

    depth: int
    """Candidates wanted for every query."""
    effort: int
    mask: RowMask | None
    """Which of the `M` rows may be returned; None allows all."""


class NativeEngine(ABC):
    """A kind of index over rows 0 to M-1 of an array of vectors, by inner product."""

    name: ClassVar[str]
    file_name: ClassVar[str]
    """Of the native file, or folder, among the files of a saved index."""
    fewest_items: ClassVar[int] = 1
    """That it can be built of."""
    candidates: ClassVar[float] = 1
    """To have scored anew for each item wanted: more than one where vectors are kept as codes."""

    @abstractmethod
    def build(self, vectors: FloatArray, seed: int) -> Any:
        """Return the native index of `float32[M, D]`."""

    @abstractmethod
    def efforts(self, native: Any) -> Sequence[int]:
        """Return the search efforts worth trying, ascending."""

    @abstractmethod
    def search(self, native: Any, queries: FloatArray, how: NativeSearch) -> IntArray:
        """Return the candidates of each query as rows, `int64[n, C]`, -1 padding; any order.

        The array is the caller's to sort in place, until this thread's next search. Changes
        nothing, so that any number of threads may search.
        """

    def looked_at(self, native: Any, effort: int) -> int | None:
        """Return about how many of the `M` rows a search looks at; None where no mask thins it."""
        return None

    def products(self, vectors: FloatArray, queries: FloatArray, rows: IntArray) -> FloatArray:
        """Return the inner product of each query with each of its rows of `vectors`.

        Args:
            vectors: `float32[M, D]`, contiguous.
            queries: `float32[n, D]`, contiguous.
            rows: `int64[n, C]`; -1 gets -inf.

        The array returned is good until this thread's next search.
        """
        scores = np.empty(rows.shape, np.float32)
        block = max(1, _GATHERED_FLOATS // max(1, rows.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            gathered = vectors.take(rows[part], axis=0, mode="wrap")
            np.matmul(gathered, queries[part, :, None], out=scores[part, :, None])
        scores[rows < 0] = -np.inf
        return scores

    def lost_searches(self, native: Any) -> int:
        """See `VectorIndex.lost_searches`."""
        return 0

    @abstractmethod
    def write(self, native: Any, path: Path) -> None:
        """Write the native index to `path`.

        Raises:
            OSError: the disk is full, or may not be written.
        """

    @abstractmethod
    def open(self, path: Path, mmap: bool, shape: tuple[int, int]) -> Any:
        """Return a written index of `shape` M, D. Only for files whose checksums were verified.

        Raises:
            CorruptArtifact: it cannot be read, or is no inner-product index of `shape`.
            MissingExtra: the engine's package is not installed.
        """

    def first_effort(self, native: Any) -> int:
        """Return the effort of an index that nobody tuned: in the upper half of those to try."""
        efforts = self.efforts(native)
        return efforts[len(efforts) * 2 // 3]


def doubling(first: int, last: int) -> Sequence[int]:
    """Return powers of two times `first` below `last`, and `last`."""
    powers = [first]
    while powers[-1] * 2 < last:
        powers.append(powers[-1] * 2)
    return (*powers, last) if last > powers[-1] else tuple(powers)


def fewest_lists(num_lists: int, num_rows: int) -> int:
    """Return how many lists to search at least, so that an answer seldom needs a scan of all.

    With less an answer of 100 is short, which a scan mends: exact, but slow.
    """
    return min(num_lists, max(1, -(-_FEWEST_LOOKED_AT * num_lists // max(1, num_rows))))


def overfetched(how: NativeSearch, num_rows: int) -> int:
    """Return how many rows an engine that knows no masks must find to have `how.depth` allowed.

    What a user has seen lies close to him, so all that is masked may come first; where much is
    masked, twice the depth that a random mask would need.
    """
    if how.mask is None:
        return how.depth
    num_allowed = max(1, how.mask.fewest_allowed)
    spread = 2 * math.ceil(how.depth * num_rows / num_allowed)
    return min(num_rows, how.depth + num_rows - num_allowed, max(spread, 2 * how.depth))


def thinned(rows: IntArray, how: NativeSearch) -> IntArray:
    """Return candidates with -1 in the place of masked ones."""
    if how.mask is None:
        return rows
    return np.where(how.mask.allows(rows), rows, PADDING)
