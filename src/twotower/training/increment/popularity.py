"""The popularity coordinate of an incremental update's items: as of the base's cut, or of now.

Popularity moves faster than anything that is learned. Where it is live, the positives that are
trained are counted too, and a delta brings every item whose coordinate has moved by more than a
step since it was sent, besides those whose rows moved.
Legend: `N` items, `D` vector dimension, `n` asked for.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from twotower.checkpoint import Checkpoint
from twotower.data.schema import IntArray
from twotower.errors import ConfigError
from twotower.training.increment.settings import IncrementSettings

__all__ = ["PopularityCoordinate"]

FloatArray = npt.NDArray[np.float32]


class PopularityCoordinate:
    """Of one update, whose checkpoint's counts it moves on where they are live."""

    def __init__(self, state: Checkpoint, settings: IncrementSettings) -> None:
        """Start with what the base's index serves.

        Args:
            state: the update's own.
            settings: whether the coordinate is live, and the step.

        Raises:
            ConfigError: it is to be live, and the model has none.
        """
        model = state.meta.model.popularity
        self._is_live = settings.popularity == "live"
        if self._is_live and not model.weight:
            raise ConfigError(
                "expected model.popularity.weight above 0 with increment.popularity = 'live', "
                "found 0: the model has no popularity coordinate; nothing was learned"
            )
        self._state = state
        self._step = settings.popularity_step
        self._smoothing = model.smoothing
        self._weight = np.float32(model.weight * state.meta.training.temperature)
        self._num_known = len(state.items)
        self._cut_ms = state.meta.window.cut_ms
        self._sent = self._logarithms()

    def note(self, items: IntArray, event_time_ms: IntArray) -> None:
        """Count trained positives, of items by position; the newest is as of when counts are."""
        if not self._is_live or not len(items):
            return
        counts = self._state.popularity
        counts.advance(items, event_time_ms, max(self._as_of_ms(), int(event_time_ms.max()) + 1))

    def moved(self) -> IntArray:
        """Return the served items whose coordinate moved since it was sent, and new ones."""
        if not self._is_live:
            return np.zeros(0, np.int64)
        now = self._logarithms()
        sent = np.full(len(now), -np.inf, np.float32)
        sent[: len(self._sent)] = self._sent
        self._sent = sent
        served = np.unique(self._state.corpus)
        moved: IntArray = served[np.abs(now - sent)[served] > self._step]
        return moved

    def send(self, positions: IntArray, vectors: Tensor) -> FloatArray:
        """Return vectors as an index takes them, `[n, D]`: with the coordinate, where there is one.

        An item that the base does not know and nobody counted has the least of all.
        """
        if not self._weight:
            return np.asarray(vectors.numpy())
        logarithms = self._logarithms()
        if self._is_live:
            self._sent[positions] = logarithms[positions]
        return np.column_stack([vectors.numpy(), self._weight * logarithms[positions]])

    def _as_of_ms(self) -> int:
        counted_ms = self._state.popularity.as_of_ms
        return self._cut_ms if counted_ms is None else max(self._cut_ms, counted_ms)

    def _logarithms(self) -> FloatArray:
        counted = self._state.popularity.log_popularity(self._as_of_ms(), self._smoothing)
        least = math.log(self._smoothing)
        logarithms = np.full(len(self._state.items), min(0.0, least), np.float32)
        logarithms[: self._num_known] = least
        logarithms[: len(counted)] = counted
        return logarithms
