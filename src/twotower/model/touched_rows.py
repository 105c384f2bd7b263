"""Which rows of a table may move, and which did since a mark.

A mark is a moment: the last stored state, the last delta, the start. A byte a row holds a bit a
mark, so asking costs one pass over the table's rows and no copy of it.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.model.growing_rows import GrowingRows

__all__ = ["Mark", "TouchedRows"]


class Mark(IntFlag):
    """Since when touched rows are asked for."""

    COMMIT = 1
    """Since the state was stored."""
    DELTA = 2
    """Since the last delta."""
    START = 4
    """Since the rows are tracked; never set anew."""


_ALL = int(Mark.COMMIT | Mark.DELTA | Mark.START)


class TouchedRows:
    """Of one table with `R` rows."""

    def __init__(self, may_move: Tensor) -> None:
        """Track from now on.

        Args:
            may_move: `bool[R]`.
        """
        self._may_move = GrowingRows(may_move)
        self._marks = GrowingRows(torch.zeros(len(may_move), dtype=torch.uint8))

    def grow(self, num_rows: int) -> None:
        """Follow the table: its new rows may move and count as touched."""
        self._may_move.append(torch.ones(num_rows, dtype=torch.bool))
        self._marks.append(torch.full((num_rows,), _ALL, dtype=torch.uint8))

    def release(self, rows: npt.NDArray[np.int64]) -> None:
        """Let `rows` move too."""
        self._may_move.values[torch.from_numpy(rows)] = True

    def may_move(self, rows: Tensor) -> Tensor:
        """Return which of `rows` may move, as a mask."""
        return self._may_move.values[rows]

    def note(self, rows: Tensor) -> None:
        """Count `rows` as touched."""
        self._marks.values[rows] = _ALL

    def since(self, mark: Mark) -> npt.NDArray[np.int64]:
        """Return the rows touched since `mark` was set, ascending."""
        rows: npt.NDArray[np.int64] = (self._marks.values & int(mark)).nonzero()[:, 0].numpy()
        return rows

    def set_mark(self, mark: Mark, touched: npt.NDArray[np.int64] | None = None) -> None:
        """Set `mark` to now, or to a moment since which exactly the rows `touched` moved."""
        self._marks.values &= _ALL - int(mark)
        if touched is not None:
            self._marks.values[torch.from_numpy(touched)] |= int(mark)
