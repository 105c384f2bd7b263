"""Gate: the held-out user-days are predicted no worse than by the live generation."""

from __future__ import annotations

from twotower.metrics import paired_bootstrap
from twotower.publishing.gates.gate import Gate, Measured, at_least, not_measured
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["RecallNotBelowLive"]


class RecallNotBelowLive(Gate):
    """A model that is surely worse than what is live, by more than the tolerance, is refused."""

    name = "recall_not_below_live"

    def __init__(self, max_loss: float, confidence: float) -> None:
        self._kept = 1 - max_loss
        self._confidence = confidence

    @classmethod
    def of(cls, settings: GateSettings) -> RecallNotBelowLive:
        """Return the gate with the project's tolerance and confidence."""
        return cls(settings.max_recall_loss, settings.confidence)

    def measure(self, measured: Measured) -> GateResult:
        """Return the candidate's recall; the bar is the live one's less tolerance and noise.

        One-sided: refused where even the upper limit of the mean of `candidate - (1 - tolerance)
        * live`, users resampled, is below 0.
        """
        held_out = measured.held_out
        if isinstance(held_out, str):
            return not_measured(self.name, 0.0, held_out)
        if held_out.live is None:
            return not_measured(self.name, 0.0, "nothing was live before")
        ours, needed = held_out.candidate, self._kept * held_out.live
        level = 2 * self._confidence - 1
        gain = paired_bootstrap(ours, needed, held_out.users, seed=0, level=level)
        noise = gain.high - gain.estimate
        detail = f"{held_out.sample()}; live {held_out.live.mean():.4f}, noise {noise:.4f}"
        return at_least(self.name, float(ours.mean()), float(needed.mean()) - noise, detail)
