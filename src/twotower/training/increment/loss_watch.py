"""Stops an incremental update whose loss is not finite or grows: its rows must reach nobody."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from twotower.errors import GateRefused

__all__ = ["LossWatch"]

_NUM_STEPS: Final = 32
_LOWEST: Final = 0.1
"""A mean below it counts as this: near zero a ratio says nothing."""


class LossWatch:
    """Holds the mean loss of the newest steps against that of the first ones."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._first: list[float] = []
        self._newest: deque[float] = deque(maxlen=_NUM_STEPS)

    def check(self, loss: float, offset: int) -> None:
        """Take in the loss of one step, whose first example has that offset.

        Raises:
            GateRefused: it is not finite, or the newest steps' mean is too high.
        """
        if not math.isfinite(loss):
            raise GateRefused(_refusal("a finite loss", str(loss), offset))
        if len(self._first) < _NUM_STEPS:
            self._first.append(loss)
            return
        self._newest.append(loss)
        bound = self._limit * max(sum(self._first) / _NUM_STEPS, _LOWEST)
        mean = sum(self._newest) / len(self._newest)
        if len(self._newest) == _NUM_STEPS and mean > bound:
            wanted = f"a loss of at most {bound:.4f}, {self._limit} times that of the first steps"
            raise GateRefused(_refusal(wanted, f"{mean:.4f}", offset))

    def check_rows(self, weight: npt.NDArray[np.float32], offset: int) -> None:
        """Refuse rows that a finite loss has made infinite; the next loss would show it too late.

        Raises:
            GateRefused: a number is not finite.
        """
        if not np.isfinite(weight).all():
            raise GateRefused(_refusal("finite rows", "others", offset))

    def losses(self) -> tuple[list[float], list[float]]:
        """Return the state, those of the first and of the newest steps."""
        return self._first, list(self._newest)

    def restore(self, first: list[float], newest: list[float]) -> None:
        """Continue from the state that `losses` gave."""
        self._first, self._newest = list(first), deque(newest, maxlen=_NUM_STEPS)


def _refusal(wanted: str, found: str, offset: int) -> str:
    return (
        f"expected {wanted} of the incremental update, found {found} at example {offset}; nothing "
        "of it was stored or published and the last delta stays live; lower "
        "$.increment.learning_rate, or wait for the next full update"
    )
