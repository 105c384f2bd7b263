"""Which rows of a native index an answer may hold: what all searches share, less what one hides.

A user's seen items are a few rows among millions. What is shared is counted and packed into bits
once; hiding a few rows more costs what those few cost, not a pass over all.
Legend: `M` rows of the native index, `E` rows that one search hides.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.index.interface import BoolArray, IntArray

__all__ = ["BitmapCopy", "ByteArray", "RowMask", "SharedMask"]

ByteArray = npt.NDArray[np.uint8]

_NO_ROWS: Final[IntArray] = np.zeros(0, np.int64)
_BIT: Final[ByteArray] = (1 << np.arange(8)).astype(np.uint8)


class SharedMask:
    """`bool[M]`, which rows may be returned; never changed."""

    def __init__(self, allowed: BoolArray) -> None:
        self.allowed = allowed
        self.num_allowed = int(np.count_nonzero(allowed))

    @cached_property
    def bits(self) -> ByteArray:
        """Return the mask as native engines read it: bit `i % 8` of byte `i // 8`."""
        return np.packbits(self.allowed, bitorder="little")

    def hiding(self, rows: IntArray) -> RowMask:
        """Return the mask without `rows`, which are distinct and ascend."""
        if self.num_allowed == len(self.allowed):
            return RowMask(self, rows)
        return RowMask(self, rows[self.allowed.take(rows)])

    def hiding_nothing(self) -> RowMask:
        """Return the mask as it is."""
        return RowMask(self, _NO_ROWS)


class RowMask(NamedTuple):
    """A shared mask, and rows that it allows and this search does not."""

    shared: SharedMask
    hidden: IntArray
    """`int64[E]`, distinct, ascending, all allowed by `shared`: made by `SharedMask.hiding`."""

    @property
    def num_allowed(self) -> int:
        """How many rows may be returned."""
        return self.shared.num_allowed - len(self.hidden)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.shared.allowed)

    def allows(self, rows: IntArray) -> BoolArray:
        """Return which of some rows may be returned; -1 may not. Any shape."""
        allowed = self.shared.allowed.take(rows, mode="wrap") & (rows >= 0)
        if len(self.hidden):
            place = np.minimum(np.searchsorted(self.hidden, rows), len(self.hidden) - 1)
            allowed &= self.hidden.take(place) != rows
        return allowed

    def allowed_rows(self) -> IntArray:
        """Return all rows that may be returned, ascending; a pass over all."""
        allowed = self.shared.allowed.copy()
        allowed[self.hidden] = False
        return np.flatnonzero(allowed)

    def hidden_rows(self) -> IntArray:
        """Return all rows that may not be returned, ascending; a pass over all."""
        allowed = self.shared.allowed.copy()
        allowed[self.hidden] = False
        return np.flatnonzero(~allowed)


class BitmapCopy:
    """One thread's own bits of a shared mask, in which rows are hidden and shown again in turn."""

    def __init__(self, shared: ByteArray) -> None:
        self.shared = shared
        self.bits = shared.copy()

    def load(self, shared: ByteArray) -> None:
        """Copy another mask over the same rows, unless it is there already."""
        if self.shared is not shared:
            self.bits[:] = shared
            self.shared = shared

    def hide(self, rows: IntArray) -> None:
        """Clear the bits of `rows`, all set and distinct, of which several may lie in one byte."""
        np.subtract.at(self.bits, rows >> 3, _BIT.take(rows & 7))

    def show(self, rows: IntArray) -> None:
        """Undo `hide`."""
        place = rows >> 3
        self.bits[place] = self.shared[place]
