"""Gate: every ID still has its own embedding."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_least, not_measured
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["EmbeddingsKept"]


class EmbeddingsKept(Gate):
    """An embedding moves in a night, but not to another ID: else the map to rows is wrong.

    Recall need not show it where histories say more than user IDs; half of the pairs agree by
    chance.
    """

    name = "embeddings_kept"

    def __init__(self, min_share: float) -> None:
        self._bar = min_share

    @classmethod
    def of(cls, settings: GateSettings) -> EmbeddingsKept:
        """Return the gate with the project's bar."""
        return cls(settings.min_recognised)

    def measure(self, measured: Measured) -> GateResult:
        """Return the share of recognised IDs of the side that has fewer."""
        shares = {
            side.name: side.share_recognised
            for side in measured.sides
            if side.share_recognised is not None
        }
        if not shares:
            return not_measured(self.name, self._bar, "too few IDs have a row in both generations")
        detail = ", ".join(f"{name} {share:.4f}" for name, share in shares.items())
        return at_least(self.name, min(shares.values()), self._bar, detail)
