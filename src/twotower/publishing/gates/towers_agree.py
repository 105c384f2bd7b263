"""Gate: what is served is what was trained."""

from __future__ import annotations

import numpy as np

from twotower.publishing.gates.gate import Gate, Measured, at_most
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["TowersAgree"]


class TowersAgree(Gate):
    """What is served is what was trained: both sides' vectors, from torch and from ONNX."""

    name = "towers_agree"

    def __init__(self, max_difference: float) -> None:
        self._bar = max_difference

    @classmethod
    def of(cls, settings: GateSettings) -> TowersAgree:
        """Return the gate with the project's bar."""
        return cls(settings.max_tower_difference)

    def measure(self, measured: Measured) -> GateResult:
        """Return the largest difference of a coordinate."""
        pairs = (
            (measured.user_vectors, measured.trainer_user_vectors),
            (measured.item_vectors, measured.trainer_item_vectors),
        )
        found = [
            float(np.abs(served[: len(trained)] - trained).max(initial=0.0))
            for served, trained in pairs
        ]
        return at_most(
            self.name, max(found), self._bar, f"users {found[0]:.2g}, items {found[1]:.2g}"
        )
