"""What an incremental update takes of the joined examples: their positives, in their order.

Legend: `n` positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.example_log import JoinedExamples
from twotower.data.schema import IdArray, IntArray

__all__ = ["Positives"]


class Positives(NamedTuple):
    """Some of the stream; every array is `[n]`."""

    offset: IntArray
    user_id: IdArray
    item_id: IdArray
    event_time_ms: IntArray
    weight: npt.NDArray[np.float32]

    @classmethod
    def of(cls, examples: JoinedExamples) -> Positives:
        """Pick the positives, in their order."""
        wanted = examples.is_positive
        return cls(
            examples.offset[wanted],
            examples.user_id[wanted],
            examples.item_id[wanted],
            examples.event_time_ms[wanted],
            examples.weight[wanted],
        )

    @classmethod
    def joined(cls, parts: Sequence[Positives]) -> Positives:
        """Return several parts, at least one, as one."""
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))

    def take(self, start: int, end: int) -> Positives:
        """Return those at places from `start` to before `end`."""
        columns: tuple[npt.NDArray[Any], ...] = self
        return Positives._make([column[start:end] for column in columns])
