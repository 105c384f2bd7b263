"""Gate: the held-out user-days are predicted better than by a list of what is popular."""

from __future__ import annotations

from twotower.metrics import paired_bootstrap
from twotower.publishing.gates.gate import Gate, Measured, not_measured
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["RecallAbovePopularity"]


class RecallAbovePopularity(Gate):
    """A model that a list without any user beats, or may beat, is not served."""

    name = "recall_above_popularity"

    def __init__(self, confidence: float) -> None:
        self._confidence = confidence

    @classmethod
    def of(cls, settings: GateSettings) -> RecallAbovePopularity:
        """Return the gate with the project's confidence."""
        return cls(settings.confidence)

    def measure(self, measured: Measured) -> GateResult:
        """Return the candidate's recall; the bar is popularity's with the noise on top.

        One-sided: the lower limit of the mean difference, users resampled, must be above 0.
        """
        held_out = measured.held_out
        if isinstance(held_out, str):
            return not_measured(self.name, 0.0, held_out)
        ours, theirs = held_out.candidate, held_out.popularity
        level = 2 * self._confidence - 1
        gain = paired_bootstrap(ours, theirs, held_out.users, seed=0, level=level)
        popular, noise = float(theirs.mean()), gain.estimate - gain.low
        return GateResult(
            gate=self.name,
            measured=float(ours.mean()),
            bar=popular + noise,
            needs=f"more than {popular + noise:.4f}",
            passed=gain.low > 0,
            detail=f"{held_out.sample()}; decayed popularity {popular:.4f}, noise {noise:.4f}",
        )
