"""Which rows of a native index an answer may hold: what all searches share, less what one hides.

A user's seen items are a few rows among millions. What is shared is counted and packed into bits
once; hiding a few rows more costs what those few cost, not a pass over all, and no sorting.
Legend: `M` rows of the native index, `E` rows that one search hides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.index.interface import BoolArray, IntArray

__all__ = ["ByteArray", "KeptMasks", "MaskCopy", "RowMask", "SharedMask"]

ByteArray = npt.NDArray[np.uint8]

_NO_ROWS: Final[IntArray] = np.zeros(0, np.int64)
_MOST_KEPT: Final = 16
_BYTES_A_ROW: Final = 64


class SharedMask:
    """`bool[M]`, which rows may be returned; never changed."""

    def __init__(self, allowed: BoolArray) -> None:
        self.allowed = allowed
        self.num_allowed = int(np.count_nonzero(allowed))

    @cached_property
    def bits(self) -> ByteArray:
        """Return the mask as native engines read it: bit `i % 8` of byte `i // 8`."""
        return np.packbits(self.allowed, bitorder="little")

    @cached_property
    def rows(self) -> IntArray:
        """Return the rows that may be returned, ascending."""
        return np.flatnonzero(self.allowed)

    def hiding(self, rows: IntArray) -> RowMask:
        """Return the mask without `rows`, in any order, which may repeat or be hidden already."""
        return RowMask(self, rows)

    def hiding_nothing(self) -> RowMask:
        """Return the mask as it is."""
        return RowMask(self, _NO_ROWS)


class KeptMasks:
    """The masks of conditions that many searches share, each worked out once.

    Kept by the array that a caller hands over again, which is held so that no other takes its
    place; only of those that are read-only.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[object, object, SharedMask]] = {}

    def of(self, allowed: object, state: object, make: Callable[[], SharedMask]) -> SharedMask:
        """Return the mask of what is allowed in some state of an index, if need be from `make`."""
        if not isinstance(allowed, np.ndarray) or allowed.flags.writeable:
            return make()
        key = (id(allowed), id(state))
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[key] = (allowed, state, make())
        return kept[2]


class RowMask(NamedTuple):
    """A shared mask, and rows that this search does not allow either."""

    shared: SharedMask
    named: IntArray
    """`int64[E]` of 0 to M-1, as they were named: in any order, some perhaps twice."""

    @property
    def num_allowed(self) -> int:
        """How many rows may be returned."""
        return self.shared.num_allowed - len(self.hidden())

    @property
    def fewest_allowed(self) -> int:
        """How many rows may be returned at least, as if all that are named differed; cheap.

        Below 0 where more are named than there are.
        """
        return self.shared.num_allowed - len(self.named)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.shared.allowed)

    def hidden(self) -> IntArray:
        """Return the rows that this search alone does not allow: distinct, ascending."""
        distinct = np.unique(self.named)
        return distinct[self.shared.allowed.take(distinct)]

    def allows(self, rows: IntArray) -> BoolArray:
        """Return which of some rows may be returned; -1 may not. Any shape."""
        allowed = self.shared.allowed.take(rows, mode="wrap") & (rows >= 0)
        if len(self.named):
            hidden = np.sort(self.named)
            place = np.minimum(np.searchsorted(hidden, rows), len(hidden) - 1)
            allowed &= hidden.take(place) != rows
        return allowed

    def allowed_rows(self) -> IntArray:
        """Return all rows that may be returned, ascending."""
        if not len(self.named):
            return self.shared.rows
        rows, hidden = self.shared.rows, self.hidden()
        return np.delete(rows, np.searchsorted(rows, hidden))

    def hidden_rows(self) -> IntArray:
        """Return all rows that may not be returned, ascending; a pass over all."""
        allowed = self.shared.allowed.copy()
        allowed[self.named] = False
        return np.flatnonzero(~allowed)


class MaskCopy:
    """One thread's own copy of a shared mask, in which rows are hidden and shown again in turn.

    Held twice: as bits, which the engine reads, and a byte a row, from which the eight bits around
    a hidden row are packed anew. So a row that is named twice, or two of one byte, need no care.
    """

    def __init__(self, shared: SharedMask) -> None:
        self.bits = np.zeros(len(shared.bits), np.uint8)
        self._flags = np.zeros(8 * len(self.bits), np.bool_)
        self._eights = self._flags.view(np.uint64)
        self._places = _NO_ROWS
        self._shared: SharedMask | None = None
        self.load(shared)

    def fits(self, shared: SharedMask) -> bool:
        """Return whether that mask takes as much room."""
        return len(shared.bits) == len(self.bits)

    def load(self, shared: SharedMask) -> None:
        """Copy a mask that fits, unless it is there already."""
        if self._shared is not shared:
            self._shared = shared
            self.bits[:] = shared.bits
            self._flags[: len(shared.allowed)] = shared.allowed
            self._flags[len(shared.allowed) :] = False

    def hide(self, rows: IntArray) -> None:
        """Clear the bits of `rows`, in any order, which may repeat."""
        self._places = rows >> 3
        self._flags[rows] = False
        around = self._eights.take(self._places).view(np.uint8)
        self.bits[self._places] = np.packbits(around, bitorder="little")

    def show(self, rows: IntArray) -> None:
        """Undo `hide` of those rows."""
        shared = self._shared
        assert shared is not None, "a mask is loaded when a copy is made"
        if shared.num_allowed == len(shared.allowed):
            self._flags[rows] = True
        else:
            self._flags[rows] = shared.allowed.take(rows)
        if len(self.bits) < _BYTES_A_ROW * len(rows):  # copying all is quicker
            self.bits[:] = shared.bits
        else:
            self.bits[self._places] = shared.bits.take(self._places)
