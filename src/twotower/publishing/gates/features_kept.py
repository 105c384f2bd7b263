"""Gate: the feature specifications fit the towers and continue those of the live generation."""

from __future__ import annotations

import msgspec

from twotower.data.features import FeatureSpec
from twotower.publishing.gates.gate import Gate, Measured, Side, at_most
from twotower.publishing.manifest import GateResult

__all__ = ["FeaturesKept"]


class FeaturesKept(Gate):
    """No feature value changed its row: a stale or reordered specification looks up others'."""

    name = "features_kept"

    def measure(self, measured: Measured) -> GateResult:
        """Return how many rows have no value's or another value's meaning."""
        wrong = {side.name: _num_wrong(side) for side in measured.sides}
        detail = ", ".join(f"{name} {count}" for name, count in wrong.items())
        return at_most(self.name, float(sum(wrong.values())), 0.0, detail)


def _num_wrong(side: Side) -> int:
    missing = abs(side.num_feature_rows - side.features.num_rows)
    if side.live_features is None:
        return missing
    known = _meanings(side.features)
    moved = sum(meaning not in known for meaning in _meanings(side.live_features))
    return missing + moved


def _meanings(spec: FeatureSpec) -> set[object]:
    """Return every (field, value, row), and every field's place with its fixed numbers."""
    values: set[object] = {
        (field.name, value, row)
        for field in spec.fields
        for value, row in zip(field.values, field.rows, strict=True)
    }
    fixed = (msgspec.structs.replace(field, values=(), rows=()) for field in spec.fields)
    return values | {(place, msgspec.json.encode(field)) for place, field in enumerate(fixed)}
