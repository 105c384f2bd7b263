"""What people see of items: their IDs and display fields in place of numbers.

Legend: `n` items, `K` found, `H` clicks.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.serving.answer import Candidate, RecentClick
from twotower.serving.known_items import KnownItems
from twotower.serving.overlay import Overlay

__all__ = ["ShownItems"]

IntArray = npt.NDArray[np.int64]


class ShownItems:
    """Items of one retriever by their numbers."""

    def __init__(self, items: KnownItems, overlay: Overlay) -> None:
        self._items = items
        self._overlay = overlay

    def display_json(self, number: int) -> bytes:
        """Return the display fields of an item as JSON text."""
        base = self._overlay.base
        if number < len(base.encoder.items):
            return base.display.json_at(number)
        return self._overlay.items.display_json(self._items.decode(np.array([number]))[0])

    def candidates(self, found: IntArray, scores: npt.NDArray[np.float32]) -> list[Candidate]:
        """Return what was found, `int64[K]` and `float32[K]`, best first."""
        return [
            Candidate(item_id, float(score), rank, self._fields(number))
            for rank, (item_id, score, number) in enumerate(
                zip(self._items.decode(found), scores, found.tolist(), strict=True), start=1
            )
        ]

    def clicks(self, numbers: IntArray) -> list[RecentClick]:
        """Return clicks, `int64[H]`, without those on withdrawn items."""
        is_withdrawn = np.isin(numbers, self._items.positions_of(self._overlay.items.withdrawn))
        numbers = numbers[~is_withdrawn]
        ids = self._items.decode(numbers)
        return [
            RecentClick(item_id, self._fields(number))
            for item_id, number in zip(ids, numbers.tolist(), strict=True)
        ]

    def _fields(self, number: int) -> dict[str, Any]:
        fields: dict[str, Any] = msgspec.json.decode(self.display_json(number))
        return fields
