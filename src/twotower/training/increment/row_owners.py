"""Whose row it is: from the rows of an ID table to the IDs, without a search through all IDs.

Legend: `R` rows, `n` examples, `t` touched rows.
"""

from __future__ import annotations

import numpy as np

from twotower.data.ids import UNKNOWN_ROW, IdMap
from twotower.data.schema import IntArray

__all__ = ["RowOwners"]

_NOBODY = -1


class RowOwners:
    """The position of the ID that each row belongs to; the unknown-ID row is nobody's."""

    def __init__(self, ids: IdMap) -> None:
        self._ids = ids
        self._position = np.full(ids.num_rows, _NOBODY)
        own = np.flatnonzero(ids.rows != UNKNOWN_ROW)
        self._position[ids.rows[own]] = own

    def follow(self, positions: IntArray) -> None:
        """Take in rows that were admitted since; their IDs are among the examples' `[n]`."""
        extra = self._ids.num_rows - len(self._position)
        if extra > 0:
            first = len(self._position)
            self._position = np.concatenate([self._position, np.full(extra, _NOBODY)])
            rows = self._ids.rows[positions]
            self._position[rows[rows >= first]] = positions[rows >= first]

    def in_order(self, rows: IntArray) -> IntArray:
        """Return the positions of the rows' IDs, in ascending order of the IDs: `int64[t]`."""
        positions = self._position[rows]
        positions = positions[positions != _NOBODY]
        order: IntArray = np.argsort(self._ids.ids[positions])  # distinct: any sort will do
        found: IntArray = positions[order]
        return found
