"""Gate: one search takes no longer than it may."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_most, not_measured
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["SearchLatency"]


class SearchLatency(Gate):
    """The search that reaches the ANN recall target is quick enough, on the publishing machine."""

    name = "search_p50_us"

    def __init__(self, budget_us: int) -> None:
        self._budget_us = budget_us

    @classmethod
    def of(cls, settings: GateSettings) -> SearchLatency:
        """Return the gate with the project's budget."""
        return cls(settings.max_search_us)

    def measure(self, measured: Measured) -> GateResult:
        """Return the median of single searches for the probe users; 0 is no budget."""
        if not self._budget_us:
            return not_measured(self.name, 0.0, "no latency budget is set")
        if measured.search_p50_us is None:
            return not_measured(self.name, self._budget_us, "there is no user to search for")
        return at_most(self.name, measured.search_p50_us, self._budget_us)
