"""What an incremental update takes of the joined examples: their positives, in their order.

Legend: `n` examples.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from twotower.data.schema import BoolArray, IdArray, IntArray

__all__ = ["Positives", "StreamExamples"]


class StreamExamples(Protocol):
    """Joined examples in the order of their offsets; every array is `[n]`."""

    @property
    def offset(self) -> IntArray:
        """Ascending."""

    @property
    def user_id(self) -> IdArray:
        """IDs of the log."""

    @property
    def item_id(self) -> IdArray:
        """IDs of the log."""

    @property
    def event_time_ms(self) -> IntArray:
        """When each happened; not in order where one was late."""

    @property
    def is_positive(self) -> BoolArray:
        """Whether it had the wanted outcome."""

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """Of each in the loss."""


class Positives(NamedTuple):
    """The positives of some joined examples."""

    offset: IntArray
    user_id: IdArray
    item_id: IdArray
    event_time_ms: IntArray
    weight: npt.NDArray[np.float32]

    @classmethod
    def of(cls, examples: StreamExamples) -> Positives:
        """Pick the positives, in their order."""
        wanted = examples.is_positive
        return cls(
            examples.offset[wanted],
            examples.user_id[wanted],
            examples.item_id[wanted],
            examples.event_time_ms[wanted],
            examples.weight[wanted],
        )
