"""How often each item was clicked, every click fading with its age.

Legend: `N` items, `n` events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from twotower.errors import DataError

__all__ = ["DecayedCounts"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_MS_PER_HOUR: Final = 3_600_000


class DecayedCounts:
    """A sum over an item's clicks of 0.5 ** (age / half-life), brought forward cut by cut.

    A cut is the moment as of which counts are asked: what happened at it or later is not known
    yet. Because every click fades by the same factor, one number an item is the whole state.
    """

    def __init__(self, half_life_h: float, num_items: int = 0) -> None:
        if not half_life_h > 0:
            raise DataError(f"expected a half-life of more than 0 hours, found {half_life_h}")
        self.half_life_h = half_life_h
        self.counts: FloatArray = np.zeros(num_items)
        self.as_of_ms: int | None = None

    def grow(self, num_items: int) -> None:
        """Make room for at least `num_items` items; new ones have count 0."""
        missing = num_items - len(self.counts)
        if missing > 0:
            self.counts = np.concatenate([self.counts, np.zeros(missing)])

    def advance(self, item_positions: IntArray, event_time_ms: IntArray, cut_ms: int) -> None:
        """Move the cut to `cut_ms` and count the events before it.

        Events at or after the cut are left out; hand them over again with the next cut. Events
        older than the last cut are counted with their true age.

        Args:
            item_positions: `int64[n]`; the counts grow to hold them.
            event_time_ms: `int64[n]`.
            cut_ms: Not before the last cut.
        """
        counts = self.at(cut_ms)
        known = event_time_ms < cut_ms
        items = item_positions[known]
        self.counts = counts
        self.grow(int(items.max(initial=-1)) + 1)
        share_left = self._share_left(cut_ms - event_time_ms[known])
        self.counts += np.bincount(items, weights=share_left, minlength=len(self.counts))
        self.as_of_ms = cut_ms

    def at(self, cut_ms: int) -> FloatArray:
        """Return the counts as of a later cut if nothing more were clicked, `float64[N]`.

        Raises:
            DataError: `cut_ms` is before the last cut; a click cannot be forgotten.
        """
        if self.as_of_ms is None:
            return self.counts.copy()
        if cut_ms < self.as_of_ms:
            raise DataError(
                f"expected a cut not before {self.as_of_ms}, up to where clicks are counted, "
                f"found {cut_ms}; the counts are unchanged"
            )
        faded: FloatArray = self.counts * self._share_left(np.array(cut_ms - self.as_of_ms))
        return faded

    def log_popularity(self, cut_ms: int, smoothing: float) -> npt.NDArray[np.float32]:
        """Return log(count + smoothing) of each item as of the cut, `float32[N]`."""
        if not smoothing > 0:
            raise DataError(f"expected a smoothing of more than 0, found {smoothing}")
        return np.log(self.at(cut_ms) + smoothing).astype(np.float32)

    def _share_left(self, age_ms: npt.NDArray[np.integer]) -> FloatArray:
        share: FloatArray = 0.5 ** (age_ms / (self.half_life_h * _MS_PER_HOUR))
        return share

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the whole state as named plain arrays."""
        as_of = [] if self.as_of_ms is None else [self.as_of_ms]
        return {
            "counts": self.counts,
            "as_of_ms": np.array(as_of, np.int64),
            "half_life_h": np.array([self.half_life_h]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> DecayedCounts:
        """Rebuild the counts that `arrays` came from."""
        created = cls(float(arrays["half_life_h"].astype(np.float64)[0]))
        created.counts = arrays["counts"].astype(np.float64)
        as_of = arrays["as_of_ms"].astype(np.int64)
        created.as_of_ms = int(as_of[0]) if len(as_of) else None
        return created
