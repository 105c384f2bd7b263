"""What one thread keeps to search with Faiss: where it writes, parameters, and a mask of its own.

Faiss is told where everything lies by bare pointers. Making them takes longer than a small search
should, so those of a single query are kept; whatever they point to lives as long as they do.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from twotower.index.interface import FloatArray, IntArray
from twotower.index.row_mask import ByteArray, MaskCopy, SharedMask

__all__ = ["OwnThread", "Parameters", "Place"]


class Place:
    """Queries, their candidates' rows and scores, and Faiss's pointers to all three."""

    def __init__(self, faiss: Any, queries: FloatArray, rows: IntArray) -> None:
        self.queries = queries
        self.rows = rows
        self.scores = np.empty(rows.shape, np.float32)
        self.queries_at = faiss.swig_ptr(queries)
        self.rows_at = faiss.swig_ptr(rows)
        self.scores_at = faiss.swig_ptr(self.scores)


class Parameters:
    """How Faiss goes about a search, and which rows it may return."""

    def __init__(self, faiss: Any, kind: str, bits: ByteArray | None) -> None:
        selector = None
        if bits is not None:
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        self.made = getattr(faiss, kind)(sel=selector)
        self._pointed_at = (selector, bits)
        self._effort = 0

    def with_effort(self, name: str, effort: int) -> Any:
        """Return them as Faiss takes them; `name` of the effort is empty where all is read."""
        if effort != self._effort and name:
            setattr(self.made, name, effort)
            self._effort = effort
        return self.made


class OwnThread(threading.local):
    """What the current thread searches one kind of index with.

    Args:
        kind: The class of Faiss that holds a search's parameters.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._single: Place | None = None
        self._unmasked: Parameters | None = None
        self._sharing: tuple[SharedMask, Parameters] | None = None
        self._hiding: tuple[MaskCopy, Parameters] | None = None

    def place(self, faiss: Any, queries: FloatArray, depth: int) -> Place:
        """Return where queries lie and candidates go; that of one query is good until the next."""
        num_queries, dimensions = queries.shape
        if num_queries != 1:
            return Place(faiss, queries, np.empty((num_queries, depth), np.int64))
        place = self._single
        if place is None or place.rows.shape[1] != depth or place.queries.shape[1] != dimensions:
            query, rows = np.empty((1, dimensions), np.float32), np.empty((1, depth), np.int64)
            place = self._single = Place(faiss, query, rows)
        place.queries[:] = queries
        return place

    def place_of(self, faiss: Any, queries: FloatArray, rows: IntArray) -> Place:
        """Return the place of the candidates that a search returned, or of any others."""
        place = self._single
        return place if place and place.rows is rows else Place(faiss, queries, rows)

    def sharing(self, faiss: Any, mask: SharedMask | None) -> Parameters:
        """Return parameters under a mask that many searches share; None allows all rows."""
        if mask is None:
            self._unmasked = self._unmasked or Parameters(faiss, self._kind, None)
            return self._unmasked
        if self._sharing is None or self._sharing[0] is not mask:
            self._sharing = mask, Parameters(faiss, self._kind, mask.bits)
        return self._sharing[1]

    def hiding(self, faiss: Any, mask: SharedMask) -> tuple[MaskCopy, Parameters]:
        """Return a copy of the mask in which this thread may hide rows, and parameters under it."""
        if self._hiding is None or not self._hiding[0].fits(mask):
            copy = MaskCopy(mask)
            self._hiding = copy, Parameters(faiss, self._kind, copy.bits)
        self._hiding[0].load(mask)
        return self._hiding
