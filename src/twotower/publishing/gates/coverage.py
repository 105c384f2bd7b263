"""Gate: the lists of all users together still hold much of the corpus."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_least
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["Coverage"]


class Coverage(Gate):
    """Users are not all given the same few items: share of the corpus in anybody's list."""

    name = "coverage"

    def __init__(self, max_loss: float) -> None:
        self._max_loss = max_loss

    @classmethod
    def of(cls, settings: GateSettings) -> Coverage:
        """Return the gate with the project's bar."""
        return cls(settings.max_coverage_loss)

    def measure(self, measured: Measured) -> GateResult:
        """Return the candidate's coverage; the bar is a share of the live generation's.

        A base model is no yardstick: it has seen no day, and a model with a popularity coordinate
        rightly narrows its lists when it sees the first.
        """
        live = measured.live_coverage
        if live is None or (measured.parent is not None and measured.parent.kind == "base"):
            return at_least(self.name, measured.coverage, 0.0, "no full update to compare with")
        bar = (1 - self._max_loss) * live
        return at_least(self.name, measured.coverage, bar, f"live {live:.4f}, same users")
