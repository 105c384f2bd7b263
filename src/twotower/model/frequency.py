"""Streaming estimate of how often each item is an example: the `p` of the logQ correction.

Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations"
(RecSys 2019), section 4: the mean gap between two occurrences of an item, in examples, is the
inverse of its probability. Counting gaps in examples, not in batches, makes the estimate
independent of the batch size and right when an item occurs several times in a batch.
Legend: `n` examples, `N` items.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["FrequencyEstimator"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class FrequencyEstimator:
    """Moving average of each item's gap between occurrences, updated in the order of events.

    The first occurrences of an item are averaged evenly, later ones with `learning_rate`
    (equation 3 of the paper), so a new item is not held back by its starting value.
    """

    def __init__(self, learning_rate: float, floor: float) -> None:
        self.learning_rate = learning_rate
        self.floor = floor
        self.num_examples = 0
        self.gap = np.zeros(0, np.float64)
        self.last = np.zeros(0, np.int64)
        self.occurrences = np.zeros(0, np.int64)

    def grow(self, num_items: int) -> None:
        """Make room for `num_items` items.

        An item that joins a stream that is running counts as absent for as many examples as there
        are items: measured from now, its first click would make it look as frequent as that click
        is early.
        """
        extra = num_items - len(self.gap)
        if extra > 0:
            since = self.num_examples - num_items if self.num_examples else 0
            self.gap = np.concatenate([self.gap, np.zeros(extra)])
            self.last = np.concatenate([self.last, np.full(extra, since)])
            self.occurrences = np.concatenate([self.occurrences, np.zeros(extra, np.int64)])

    def observe(self, items: IntArray) -> npt.NDArray[np.float32]:
        """Learn from `items` in their order; return each one's log probability at its time.

        Args:
            items: `[n]` item positions below the size last grown to.

        Returns:
            `float32[n]`, at most 0. Entry `i` depends on `items[:i + 1]` alone.
        """
        order = np.argsort(items, kind="stable")
        sorted_items = items[order]
        first = np.flatnonzero(np.r_[True, sorted_items[1:] != sorted_items[:-1]][: len(items)])
        rank = np.arange(len(items)) - np.repeat(first, np.diff(np.r_[first, len(items)]))
        clock = self.num_examples + 1 + order
        gaps = np.empty(len(items))
        by_rank = np.argsort(rank, kind="stable")
        for chosen in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1]):
            gaps[order[chosen]] = self._update(sorted_items[chosen], clock[chosen])
        self.num_examples += len(items)
        return self._log(gaps)

    def _update(self, items: IntArray, clock: IntArray) -> FloatArray:
        """Take in one occurrence of each of some distinct items; return their new gaps."""
        self.occurrences[items] += 1
        rate = np.maximum(self.learning_rate, 1.0 / self.occurrences[items])
        self.gap[items] += rate * (clock - self.last[items] - self.gap[items])
        self.last[items] = clock
        return self.gap[items]

    def log_probability(self) -> npt.NDArray[np.float32]:
        """Return every item's log probability as of now, `float32[N]`; the floor if never seen.

        An item that has been absent for longer than its mean gap counts as being as rare as its
        absence says: the paper's estimate moves only when the item occurs, and would keep an item
        that is gone at its old probability for good.
        """
        absent = (self.num_examples - self.last).astype(np.float64)
        gap = np.maximum(self.gap, absent)
        return self._log(np.where(self.occurrences > 0, gap, np.inf))

    def _log(self, gaps: FloatArray) -> npt.NDArray[np.float32]:
        return np.log(np.clip(1.0 / np.maximum(gaps, 1.0), self.floor, 1.0)).astype(np.float32)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the state as named plain arrays."""
        return {
            "gap": self.gap,
            "last": self.last,
            "occurrences": self.occurrences,
            "num_examples": np.array([self.num_examples]),
        }

    def load_arrays(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from the state that `arrays` came from."""
        self.gap = arrays["gap"].astype(np.float64)
        self.last = arrays["last"].astype(np.int64)
        self.occurrences = arrays["occurrences"].astype(np.int64)
        self.num_examples = int(arrays["num_examples"][0])
