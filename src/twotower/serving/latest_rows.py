"""The newest row of each user over all deltas of the day, none of which is copied.

A delta's rows stay where they are, mapped from its file and so in memory once for all workers. What
is kept here is where each user's newest row is, in a few runs that ascend by ID and are merged as
they grow: taking in a delta costs some bytes an ID of it, and a look-up a bisection a run.
Legend: `n` IDs, `D` dimension of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.schema import IdArray
from twotower.publishing.delta_rows import merge_by_id

__all__ = ["LatestRows"]

FloatArray = npt.NDArray[np.float32]

_GROWTH: Final = 4
"""A run is at least so many times as long as the next newer one."""
_BLOCK_ROWS: Final = 1 << 32
"""More than a block has: block and row are one integer."""


class _Run(NamedTuple):
    """Where the newest rows of some users are, as far as this run knows."""

    ids: IdArray
    """`[n]`, ascending."""
    place: npt.NDArray[np.int64]
    """`int64[n]`, number of the block times `_BLOCK_ROWS`, and the row there."""

    def find(self, wanted: IdArray) -> int | None:
        """Return the place of one ID; `wanted` has one element, may be of a longer text."""
        narrow = wanted if wanted.dtype == self.ids.dtype else wanted.astype(self.ids.dtype)
        at = int(self.ids.searchsorted(narrow)[0])
        if at == len(self.ids) or self.ids[at] != wanted[0]:
            return None
        return int(self.place[at])

    def followed_by(self, newer: _Run) -> _Run:
        """Return one run of both; the places of `newer` win."""
        ids, (place,) = merge_by_id(self.ids, [self.place], newer.ids, [newer.place])
        return _Run(ids, place)


@dataclass(frozen=True, eq=False)
class LatestRows:
    """Immutable: what comes next makes another one."""

    runs: tuple[_Run, ...] = ()
    """Oldest first."""
    blocks: tuple[FloatArray, ...] = ()
    """`[rows, D]` each, as they came."""

    def with_block(self, ids: IdArray, rows: FloatArray) -> LatestRows:
        """Return these with newer rows, `[n, D]` of the ascending IDs `[n]`."""
        if not len(ids):
            return self
        place = len(self.blocks) * _BLOCK_ROWS + np.arange(len(ids))
        runs = (*self.runs, _Run(ids, place))
        while len(runs) > 1 and len(runs[-2].ids) < _GROWTH * len(runs[-1].ids):
            runs = (*runs[:-2], runs[-2].followed_by(runs[-1]))
        return LatestRows(runs, (*self.blocks, rows))

    def find(self, wanted: IdArray) -> FloatArray | None:
        """Return the newest row of an ID, `[1, D]`, None where there is none."""
        for run in reversed(self.runs):
            place = run.find(wanted)
            if place is not None:
                block, row = divmod(place, _BLOCK_ROWS)
                return self.blocks[block][row : row + 1]
        return None
