"""What people see of an item: its title, or the features that say what it is.

Stored as JSON text over item positions with offsets, both mapped, so that a million titles cost
a serving process nothing until one is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.features import EncodedFeatures, FeatureSpec

__all__ = ["Display", "display_arrays", "feature_fields"]


class Display:
    """The display fields of a generation's items."""

    def __init__(self, text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self._text = text
        self._offsets = offsets

    def at(self, position: int) -> dict[str, Any]:
        """Return the fields of the item at `position`; empty where there are none."""
        fields: dict[str, Any] = msgspec.json.decode(self.json_at(position))
        return fields

    def json_at(self, position: int) -> bytes:
        """Return the same as the JSON text that is stored."""
        start, end = self._offsets[position], self._offsets[position + 1]
        return self._text[start:end].tobytes() or b"{}"


def display_arrays(fields: Sequence[Mapping[str, object]]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that `Display` reads, by file name; `fields` are over item positions."""
    lines = [msgspec.json.encode(dict(entry)) if entry else b"" for entry in fields]
    offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines], dtype=np.int64)])
    text = np.frombuffer(b"".join(lines), np.uint8)
    return {"display": text, "display_offsets": offsets.astype(np.int64)}


def feature_fields(spec: FeatureSpec, profiles: EncodedFeatures) -> list[dict[str, object]]:
    """Return the readable features of every item, for a log whose items have no titles."""
    decoded = (spec.decode(profiles, index) for index in range(len(profiles.categorical)))
    return [{name: value for name, value in fields.items() if value} for fields in decoded]
