"""Gate: vectors point in different directions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twotower.publishing.gates.gate import Gate, Measured, at_most
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["NotCollapsed", "mean_pairwise_cosine"]


class NotCollapsed(Gate):
    """Vectors of different items, and of different users, point in different directions."""

    name = "not_collapsed"

    def __init__(self, max_mean_cosine: float, max_mean_user_cosine: float) -> None:
        self._item_bar = max_mean_cosine
        self._user_bar = max_mean_user_cosine

    @classmethod
    def of(cls, settings: GateSettings) -> NotCollapsed:
        """Return the gate with both sides' bars."""
        return cls(settings.max_mean_cosine, settings.max_mean_user_cosine)

    def measure(self, measured: Measured) -> GateResult:
        """Return the mean pairwise cosine of the side that is nearer to its bar."""
        items = mean_pairwise_cosine(measured.item_vectors)
        users = mean_pairwise_cosine(measured.user_vectors)
        detail = f"items {items:.4f}, users {users:.4f}"
        if users - self._user_bar > items - self._item_bar:
            return at_most(self.name, users, self._user_bar, detail)
        return at_most(self.name, items, self._item_bar, detail)


def mean_pairwise_cosine(vectors: npt.NDArray[np.float32]) -> float:
    """Return the mean cosine of two different rows, 0 for fewer than two.

    With unit rows, `|sum of rows|^2` is the sum of all pairwise cosines and of one 1 a row, so no
    `C x C` matrix is needed.
    """
    num_rows = len(vectors)
    if num_rows < 2:
        return 0.0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float64)
    unit = vectors / np.maximum(lengths, 1e-12)
    total, own = float(np.square(unit.sum(axis=0)).sum()), float(np.square(unit).sum())
    return (total - own) / (num_rows * (num_rows - 1))
