"""Gate: the corpus did not shrink."""

from __future__ import annotations

from twotower.publishing.gates.gate import Gate, Measured, at_most
from twotower.publishing.manifest import GateResult
from twotower.publishing.settings import GateSettings

__all__ = ["CorpusKept"]


class CorpusKept(Gate):
    """The corpus did not shrink by more than a share of the parent's."""

    name = "corpus_kept"

    def __init__(self, max_loss: float) -> None:
        self._bar = max_loss

    @classmethod
    def of(cls, settings: GateSettings) -> CorpusKept:
        """Return the gate with the project's bar."""
        return cls(settings.max_corpus_loss)

    def measure(self, measured: Measured) -> GateResult:
        """Return the share of the parent's corpus that is gone, 0 without a parent."""
        now = len(measured.item_vectors)
        before = measured.parent.counts.get("corpus", 0) if measured.parent else 0
        lost = max(0.0, 1 - now / before) if before else 0.0
        return at_most(self.name, lost, self._bar, f"{before:,} items before, {now:,} now")
