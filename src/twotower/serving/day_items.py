"""The items that the day added and withdrew, as one generation's retriever uses them.

Legend: `m` items, `n` rows of a delta, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np

from twotower.data.ids import Id, IdKind, decode_ids, lookup
from twotower.data.schema import IdArray
from twotower.publishing.day_items import item_profile
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.encoding import Encoder
from twotower.publishing.item_overlay import ItemVectors
from twotower.publishing.item_register import DayItem, ItemRegister

__all__ = ["DayItems"]


@dataclass(frozen=True, eq=False)
class DayItems:
    """Immutable; `number` is the change of the register that all of it is of."""

    number: int
    added_number: int
    """The change that `vectors` and `added` are of."""
    vectors: ItemVectors
    """What is searched of them unless a delta has a newer row."""
    added: Mapping[Id, DayItem]
    withdrawn: IdArray
    """Ascending."""

    @classmethod
    def none(cls, item_ids: IdArray, vector_dim: int) -> DayItems:
        """Return no items, with IDs of the kind of those given."""
        vectors = np.zeros((0, vector_dim), np.float32)
        return cls(0, 0, ItemVectors(item_ids[:0], vectors), {}, item_ids[:0])

    def with_withdrawn(self, register: ItemRegister, kind: IdKind) -> DayItems:
        """Return these with the items that the register withdraws."""
        return replace(self, withdrawn=register.withdrawn_ids(kind))

    def with_added(self, register: ItemRegister, vectors: ItemVectors) -> DayItems:
        """Return these with the items that the register adds, and its number."""
        added = self.added
        if register.added_number != self.added_number:
            added = {item.item_id: item for item in register.added}
        return replace(
            self,
            number=register.number,
            added_number=register.added_number,
            vectors=vectors,
            added=added,
        )

    def searches_as(self, other: DayItems) -> bool:
        """Return whether a search with these finds what one with the others finds."""
        is_same = self.added_number == other.added_number
        return is_same and np.array_equal(self.withdrawn, other.withdrawn)

    def changed_since(self, older: DayItems) -> DayItems:
        """Return those that were added, or added again with other features."""
        added = {i: item for i, item in self.added.items() if older.added.get(i) != item}
        return replace(self, added=added)

    def encoded(self, encoder: Encoder, rows: DeltaRows) -> DeltaRows:
        """Return rows of a delta in which items of the day have the vector of their features.

        Increments know an item's row, the register knows its features; the tower takes both.
        """
        if not self.added or not len(rows.item_ids):
            return rows
        places = np.flatnonzero(lookup(self.vectors.item_ids, None, rows.item_ids) >= 0).tolist()
        vectors = rows.item_vectors.copy()
        for place, item_id in zip(places, decode_ids(rows.item_ids[places]), strict=True):
            if item_id in self.added:
                profile = item_profile(encoder, self.added[item_id])
                embedding = rows.item_embeddings[place][None]
                popularity = vectors[place, -1]  # as the increment had it, where there is one
                vectors[place] = encoder.item_vector(embedding, profile, popularity)[0]
        return rows._replace(item_vectors=vectors)

    @cached_property
    def _displayed(self) -> dict[Id, bytes]:
        return {
            i: msgspec.json.encode(item.display or item.features) for i, item in self.added.items()
        }

    def display_json(self, item_id: Id) -> bytes:
        """Return the display fields of an item as JSON text, empty where it is none of these."""
        return self._displayed.get(item_id, b"{}")
