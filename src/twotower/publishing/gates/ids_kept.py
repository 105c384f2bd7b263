"""Gate: every ID that is live is still found where it was."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_most
from twotower.publishing.manifest import GateResult

__all__ = ["IdsKept"]


class IdsKept(Gate):
    """Positions are for ever: an ID map that moved by one gives everybody a neighbour's list."""

    name = "ids_kept"

    def measure(self, measured: Measured) -> GateResult:
        """Return how many IDs are not found at the position they have in the live generation."""
        moved = {side.name: side.num_moved for side in measured.sides}
        detail = ", ".join(f"{name} {count}" for name, count in moved.items())
        return at_most(self.name, float(sum(moved.values())), 0.0, detail)
