"""The interface of every engine, and the checks that all of them make of their input.

An index knows int64 labels and vectors, nothing else: a generation uses item positions as labels,
and the IDs of the log are mapped outside. Labels are never row numbers of an engine.
Legend: `N` items, `n` queries, `D` dimensions, `K` asked for.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.errors import DataError

__all__ = [
    "PADDING",
    "BoolArray",
    "FloatArray",
    "IntArray",
    "SearchResult",
    "TunableIndex",
    "VectorIndex",
    "check_ids",
    "check_items",
    "check_search",
    "check_vectors",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PADDING: Final = -1
"""The label of a place in an answer that no item fills; its score is -inf."""


class SearchResult(NamedTuple):
    """The answers of one search, best first; equal scores in ascending order of the label."""

    ids: IntArray
    """`int64[n, K]`, -1 where fewer than `K` items could be returned."""
    scores: FloatArray
    """`float32[n, K]`, true inner products, -inf beside a -1."""


class VectorIndex(ABC):
    """Finds the items whose vectors have the largest inner product with a query.

    Any number of threads may search while one changes the index: a search sees the items as they
    were when it began, and each change wholly or not at all. An engine therefore replaces what a
    search reads and never changes it in place, which also makes `fork` right.
    """

    @abstractmethod
    def search(
        self,
        queries: FloatArray,
        k: int,
        exclude: Sequence[IntArray] | None = None,
        allowed: BoolArray | IntArray | None = None,
    ) -> SearchResult:
        """Return the best `k` items of each query; `k` of them whenever so many may be returned.

        Args:
            queries: `float32[n, D]`.
            k: How many items a query gets, at least 1.
            exclude: One array of labels a query that its answer must not hold; unknown labels
                are ignored.
            allowed: Labels that any answer may hold: `int64[m]`, or a mask `bool[m]` over labels
                0 to m-1. None allows all. What is worked out of a mask that is read-only is kept:
                it must never change.

        Raises:
            DataError: an argument has the wrong shape or type, or is not finite.
        """

    @abstractmethod
    def upsert(self, ids: IntArray, vectors: FloatArray) -> None:
        """Add items, replacing those whose label is known; of a repeated label the last one wins.

        Costs a copy of what changed since the index was built: hand over many items at a time.

        Raises:
            DataError: labels or vectors are refused; the index is unchanged.
        """

    @abstractmethod
    def delete(self, ids: IntArray) -> None:
        """Forget items; unknown labels are ignored."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the index to a folder that is empty or not there yet; `open_index` reads it.

        Raises:
            DataError: the folder holds something already; nothing was written.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def lost_searches(self) -> int:
        """How many searches an engine elsewhere did not answer, so that all items were scanned."""
        return 0

    def fork(self) -> VectorIndex:
        """Return an index of the same items that is changed apart from this one.

        Costs nothing: both share the memory of what neither has changed.
        """
        return copy.copy(self)


class TunableIndex(VectorIndex):
    """An approximate index that can be made to look at more candidates, at the price of time."""

    effort: int
    """Candidates' lists probed (IVF) or candidates kept in view (HNSW)."""
    filter_factor: float = 1.0
    """How many times that effort a search with conditions makes, beside what they thin out."""

    @abstractmethod
    def efforts(self) -> Sequence[int]:
        """Return the settings of `effort` worth trying, ascending."""

    @abstractmethod
    def search_exactly(
        self, queries: FloatArray, k: int, allowed: BoolArray | IntArray | None = None
    ) -> SearchResult:
        """Return what `search` would if it looked at every item: the oracle of ANN recall."""


def check_ids(ids: npt.ArrayLike) -> IntArray:
    """Return labels as `int64[m]`.

    Raises:
        DataError: they are not a list of integers of 0 or more.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"expected item labels int64[m], found {array.dtype}{list(array.shape)}; "
            "the index is unchanged"
        )
    labels = array.astype(np.int64, copy=False)
    if labels.size and labels.min() < 0:
        raise DataError(
            f"expected item labels of 0 or more, found {labels.min()}; the index is unchanged"
        )
    return labels


def check_vectors(vectors: npt.ArrayLike, dimensions: int | None = None) -> FloatArray:
    """Return vectors as contiguous `float32[m, D]`.

    Raises:
        DataError: the type or shape differs, or a vector is not finite or longer than 1e19, from
            where on inner products overflow.
    """
    array = np.asarray(vectors)
    wanted = "D" if dimensions is None else dimensions
    wrong_width = dimensions is not None and array.shape[-1:] != (dimensions,)
    if array.dtype != np.float32 or array.ndim != 2 or wrong_width:
        raise DataError(
            f"expected vectors float32[m, {wanted}], found {array.dtype}{list(array.shape)}; "
            "convert them first; the index is unchanged"
        )
    contiguous = np.ascontiguousarray(array)
    if not math.isfinite(np.vdot(contiguous, contiguous)):  # else each alone is finite, too
        _check_each(contiguous)
    return contiguous


def _check_each(vectors: FloatArray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.einsum("nd,nd->n", vectors, vectors))
    if not finite.all():
        raise DataError(
            f"expected finite vectors, found NaN, infinity or overflow in {(~finite).sum()} of "
            f"{len(vectors)}, first in row {int(np.argmin(finite))}; the index is unchanged"
        )


def check_items(
    ids: npt.ArrayLike, vectors: npt.ArrayLike, dimensions: int | None
) -> tuple[IntArray, FloatArray]:
    """Return labels `int64[m]` and their vectors `float32[m, D]`, checked together."""
    labels, checked = check_ids(ids), check_vectors(vectors, dimensions)
    if len(labels) != len(checked):
        raise DataError(
            f"expected one vector a label, found {len(labels)} labels and {len(checked)} vectors; "
            "the index is unchanged"
        )
    return labels, checked


def check_search(
    queries: npt.ArrayLike,
    dimensions: int,
    k: int,
    exclude: Sequence[IntArray] | None,
) -> FloatArray:
    """Return the queries of a search, checked together with its other arguments."""
    checked = check_vectors(queries, dimensions)
    if k < 1:
        raise DataError(f"expected k of at least 1, found {k}; nothing was searched")
    if exclude is not None and len(exclude) != len(checked):
        raise DataError(
            f"expected one array of excluded labels a query, found {len(exclude)} arrays for "
            f"{len(checked)} queries; nothing was searched"
        )
    return checked
