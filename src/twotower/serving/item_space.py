"""Items as their vectors, whoever brought them, and what each vector is made from.

Legend: `N` items of the base generation, `n` asked for, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id, lookup
from twotower.data.schema import EncodedFeatures
from twotower.publishing.day_items import item_profile
from twotower.serving.known_items import KnownItems
from twotower.serving.overlay import Overlay

__all__ = ["ItemParts", "ItemSpace"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class ItemParts(NamedTuple):
    """What an item's vector is made from."""

    embedding: FloatArray
    """`[1, id_dim]`"""
    profile: EncodedFeatures
    popularity: np.float32
    """The last coordinate, where vectors have one for it."""


class _Newer(NamedTuple):
    """The items whose vectors are not the base's."""

    numbers: IntArray
    order: IntArray
    vectors: FloatArray


class ItemSpace:
    """The vectors that one retriever searches, by the numbers of the items."""

    def __init__(self, overlay: Overlay, items: KnownItems) -> None:
        self._overlay = overlay
        self._items = items

    @cached_property
    def _newer(self) -> _Newer:
        item_ids, vectors = self._overlay.searched
        numbers = self._items.positions_of(item_ids)
        return _Newer(numbers, np.argsort(numbers, kind="stable"), vectors)

    @property
    def num_items(self) -> int:
        """Items of smaller numbers have a vector; others only the log knows."""
        return len(self._overlay.base.encoder.items) + len(self._overlay.added)

    def is_searched(self, number: int) -> bool:
        """Return whether the item is in the index, unless it is withdrawn."""
        in_base = number < len(self._overlay.base.vector_rows)
        return bool(
            (in_base and self._overlay.base.vector_rows[number] >= 0)
            or number in self._newer.numbers
        )

    def numbers_of(self, item_ids: Sequence[Id]) -> IntArray:
        """Return the number of each item, -1 for one that has no vector: `int64[n]`.

        Raises:
            DataError: an ID is of the wrong kind.
        """
        return self._items.positions_of(self._overlay.base.encoder.items.stored_form(item_ids))

    def vectors(self, numbers: IntArray) -> FloatArray:
        """Return the vectors of items that have one, also of those that no answer holds: `[n, D]`.

        One that the index lacks, because it is in no corpus any more, is encoded now.
        """
        base = self._overlay.base
        newer = lookup(self._newer.numbers, self._newer.order, numbers)
        rows = np.full(len(numbers), -1, np.int64)
        in_base = (newer < 0) & (numbers < len(base.encoder.items))
        rows[in_base] = base.vector_rows[numbers[in_base]]
        vectors = np.zeros((len(numbers), base.generation.manifest.vector_dim), np.float32)
        vectors[newer >= 0] = self._newer.vectors[newer[newer >= 0]]
        indexed = rows >= 0
        vectors[indexed] = base.generation.array("item_vectors.npy")[rows[indexed]]
        left = in_base & ~indexed
        if left.any():
            vectors[left] = base.encoder.item_vectors(numbers[left])
        return vectors

    def directions(self, numbers: IntArray) -> FloatArray:
        """Return the vectors as unit vectors with no popularity, so that products are cosines."""
        vectors = self.vectors(numbers)
        if self._overlay.base.generation.manifest.scoring.has_popularity:
            vectors[:, -1] = 0.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)

    def parts(self, number: int) -> ItemParts:
        """Return what the vector of an item is made from."""
        encoder, overlay = self._overlay.base.encoder, self._overlay
        position = number if number < len(encoder.items) else -1
        item_id = self._items.decode(np.array([number]))[0]
        stored = encoder.items.stored_form([item_id])
        row = -1 if overlay.rows is None else int(lookup(overlay.rows.item_ids, None, stored)[0])
        embedding = encoder.item_embedding(position)
        if overlay.rows is not None and row >= 0:
            embedding = overlay.rows.item_embeddings[row][None]
        if lookup(overlay.items.vectors.item_ids, None, stored)[0] >= 0:
            profile = item_profile(encoder, overlay.items.added[item_id])
        elif position >= 0:
            profile = encoder.items.profiles_at(np.array([position]))
        else:
            profile = encoder.item_features.missing(1)
        return ItemParts(embedding, profile, self.vectors(np.array([number]))[0, -1])
