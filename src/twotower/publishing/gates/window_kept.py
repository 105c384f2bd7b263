"""Gate: the data window is not empty, and did not shrink."""

from __future__ import annotations

from datetime import date

from twotower import checkpoint
from twotower.publishing.gates.gate import Gate, Measured, at_most, not_measured
from twotower.publishing.manifest import GateResult, Window
from twotower.publishing.settings import GateSettings

__all__ = ["WindowKept"]


class WindowKept(Gate):
    """A day of the window has positives, and not far fewer than a day of the parent's had."""

    name = "window_kept"

    def __init__(self, max_loss: float) -> None:
        self._bar = max_loss

    @classmethod
    def of(cls, settings: GateSettings) -> WindowKept:
        """Return the gate with the project's bar."""
        return cls(settings.max_window_loss)

    def measure(self, measured: Measured) -> GateResult:
        """Return the share by which positives a day fell, 1 for an empty window."""
        meta, parent = measured.meta, measured.parent
        if meta.kind == "base":
            return not_measured(self.name, self._bar, "a base model has no window")
        now = meta.trained.window_rows / _num_days(meta.window)
        before = 0.0
        if parent is not None and parent.kind == "full":
            rows = parent.trained.window_rows or parent.trained.rows
            before = rows / _num_days(parent.window)
        lost = max(0.0, 1 - now / before) if before else float(now == 0)
        detail = f"{before:,.0f} positives a day before, {now:,.0f} now"
        return at_most(self.name, lost, self._bar, detail)


def _num_days(window: checkpoint.Window | Window) -> int:
    """Return how many days were trained, those skipped by name left out."""
    first, last = window.from_day, window.through_day
    if first is None or last is None:
        return 1
    skipped = sum(first <= day <= last for day in window.skipped)
    return 1 + (date.fromisoformat(last) - date.fromisoformat(first)).days - skipped
