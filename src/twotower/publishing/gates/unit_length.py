"""Gate: every vector has length 1."""

from __future__ import annotations

from typing import Final

import numpy as np

from twotower.publishing.gates.gate import Gate, Measured, at_most
from twotower.publishing.manifest import GateResult

__all__ = ["UnitLength"]

_MAX_LENGTH_ERROR: Final = 1e-3


class UnitLength(Gate):
    """Every vector has length 1: else the inner product is no cosine and long items win."""

    name = "unit_length"

    def measure(self, measured: Measured) -> GateResult:
        """Return the largest difference of a length from 1."""
        vectors = (measured.item_vectors, measured.user_vectors)
        errors = [np.abs(np.linalg.norm(v, axis=1) - 1).max(initial=0.0) for v in vectors]
        return at_most(self.name, float(max(errors)), _MAX_LENGTH_ERROR)
