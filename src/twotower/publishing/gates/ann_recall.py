"""Gate: the index finds what an exact search finds."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_least
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["AnnRecall"]


class AnnRecall(Gate):
    """The index finds what an exact search finds."""

    name = "ann_recall_at_100"

    def __init__(self, bar: float) -> None:
        self._bar = bar

    @classmethod
    def of(cls, settings: GateSettings) -> AnnRecall:
        """Return the gate with the project's bar."""
        return cls(settings.ann_recall_at_100)

    def measure(self, measured: Measured) -> GateResult:
        """Return the recall of the index on the probe users."""
        return at_least(self.name, measured.ann_recall_at_100, self._bar)
