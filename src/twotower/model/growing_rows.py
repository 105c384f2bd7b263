"""Rows that are appended at the price of what is appended, not of what is there.

A stream meets new users in every few thousand events: copying a table of millions of rows each
time would cost more than the learning.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["GrowingRows"]

_SPARE_SHARE = 8
"""One row in so many is allocated ahead."""


class GrowingRows:
    """A tensor with room behind its last row."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._storage = values

    def append(self, added: Tensor) -> None:
        """Put `added` behind the last row; `values` is another view afterwards."""
        num_rows = len(self.values)
        needed = num_rows + len(added)
        if len(self._storage) < needed:
            storage = self.values.new_empty((needed + needed // _SPARE_SHARE, *added.shape[1:]))
            storage[:num_rows] = self.values
            self._storage = storage
        self._storage[num_rows:needed] = added
        self.values = self._storage[:needed]
