"""What the day lays over a base generation: newer ID rows, newer vectors, items it never knew.

The base is never changed: its index is forked, and everything else is looked up here first. An
overlay is immutable too; what comes next makes another one, at the price of the rows.
Legend: `N` items of the base, `m` items that came since, `D` vector dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from twotower.data.ids import lookup
from twotower.data.schema import IdArray
from twotower.errors import CorruptArtifact
from twotower.index.interface import VectorIndex
from twotower.publishing.delta import Delta, DeltaMark
from twotower.publishing.delta_rows import DeltaRows, merge_rows
from twotower.publishing.display import Display
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.item_overlay import ItemVectors
from twotower.serving.day_items import DayItems
from twotower.serving.known_items import KnownItems
from twotower.serving.latest_rows import LatestRows

__all__ = ["OpenedGeneration", "Overlay"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OpenedGeneration:
    """A generation with what answers from it; shared by every overlay."""

    generation: Generation
    encoder: Encoder
    index: VectorIndex
    display: Display

    @cached_property
    def vector_rows(self) -> npt.NDArray[np.int32]:
        """Return the row of each item in `item_vectors.npy`, -1 outside the corpus: `int32[N]`."""
        corpus = self.generation.array("corpus.npy")
        rows = np.full(len(self.encoder.items), -1, np.int32)
        rows[corpus] = np.arange(len(corpus), dtype=np.int32)
        return rows


@dataclass(frozen=True, eq=False)
class Overlay:
    """Rows over a base, and what is searched with them."""

    base: OpenedGeneration
    users: LatestRows
    """Of all deltas so far, the newest row of each user."""
    rows: DeltaRows | None
    """The items' rows of all deltas so far, the newest of each; None before the first."""
    delta: DeltaMark | None
    """The last delta that is in `rows`."""
    newest_event_time_ms: int
    """Of what base and deltas have learned from: freshness counts from it."""
    items: DayItems
    """Added and withdrawn within the day."""
    index: VectorIndex
    """The base's, forked: newer vectors in place of its own or beside them, none withdrawn."""
    added: IdArray
    """`[m]`, ascending: searched items that the base does not know, numbered from `N` on."""

    @classmethod
    def bare(cls, base: OpenedGeneration) -> Overlay:
        """Return an overlay that changes nothing."""
        manifest, items = base.generation.manifest, base.encoder.items
        nothing = DayItems.none(items.ids, manifest.vector_dim)
        return cls(
            base=base,
            users=LatestRows(),
            rows=None,
            delta=None,
            newest_event_time_ms=manifest.window.cut_ms,
            items=nothing,
            index=base.index,
            added=items.ids[:0],
        )

    def after(self, deltas: Iterable[Delta]) -> Overlay:
        """Return the overlay with the deltas that follow, in their order.

        Raises:
            LineageError: one was made for another generation, or is not the next.
            CorruptArtifact: its rows do not fit the generation.
        """
        after, last, newest_ms = self, self.delta, self.newest_event_time_ms
        for delta in deltas:
            last = delta.check_follows(self.base.generation, last).mark
            newest_ms = max(newest_ms, delta.manifest.span.newest_event_time_ms)
            after = after._laid(delta.rows)
        return self if last == self.delta else after._as_of(last, newest_ms)

    def without_deltas(self) -> Overlay:
        """Return the overlay with the items of the day alone."""
        return Overlay.bare(self.base).after_items(self.items)

    def after_rows(self, rows: DeltaRows, newest_event_time_ms: int) -> Overlay:
        """Return the overlay with the rows of a next delta that was never written to a file.

        Raises:
            CorruptArtifact: the rows do not fit the generation.
        """
        last = DeltaMark(self.delta.sequence + 1 if self.delta else 1, "")
        newest_ms = max(self.newest_event_time_ms, newest_event_time_ms)
        return self._laid(rows)._as_of(last, newest_ms)

    def after_items(self, items: DayItems) -> Overlay:
        """Return the overlay with other items of the day."""
        after = replace(self, items=items)
        if items.searches_as(self.items):
            return after
        if self.rows is None:
            return after._searchable()
        changed = items.changed_since(self.items)
        return replace(after, rows=changed.encoded(self.base.encoder, self.rows))._searchable()

    def _as_of(self, last: DeltaMark | None, newest_event_time_ms: int) -> Overlay:
        return replace(self, delta=last, newest_event_time_ms=newest_event_time_ms)

    def _laid(self, newer: DeltaRows) -> Overlay:
        """Return this with the rows of a delta; what it does not name is not looked at.

        An item of the day keeps its features under its newer row.
        """
        _check_fit(newer, self.base)
        users = self.users.with_block(newer.user_ids, newer.user_embeddings)
        if not len(newer.item_ids):
            return replace(self, users=users)
        newer = self.items.encoded(self.base.encoder, newer).without_users()
        rows = newer if self.rows is None else merge_rows(self.rows, newer)
        return replace(self, users=users, rows=rows)._searched_anew(newer)

    def _searched_anew(self, newer: DeltaRows) -> Overlay:
        """Return this with an index that has the vectors of a delta too."""
        numbers = KnownItems(self.base.encoder.items, self.added)
        changed = numbers.positions_of(newer.item_ids)
        if (changed < 0).any():
            return self._searchable()  # an item is new: those behind it get other numbers
        index = self.index.fork()
        index.upsert(changed, newer.item_vectors)
        self._withdraw(index, numbers)
        return replace(self, index=index)

    def _withdraw(self, index: VectorIndex, numbers: KnownItems) -> None:
        gone = numbers.positions_of(self.items.withdrawn)
        if (gone >= 0).any():
            index.delete(gone[gone >= 0])

    def _searchable(self) -> Overlay:
        """Return this with the index that follows from its rows and items."""
        known, index = self.base.encoder.items, self.base.index.fork()
        item_ids, vectors = self.searched
        added = item_ids[known.positions_of(item_ids) < 0]
        numbers = KnownItems(known, added)
        if len(item_ids):
            index.upsert(numbers.positions_of(item_ids), vectors)
        self._withdraw(index, numbers)
        return replace(self, index=index, added=added)

    @cached_property
    def _num_searched(self) -> int:
        return len(self.index)

    def at_most(self, k: int) -> int:
        """Return how many items to search for where `k` are wanted: no more than there are."""
        return max(1, min(k, self._num_searched))

    @cached_property
    def searched(self) -> ItemVectors:
        """The items with newer vectors, ascending: those of deltas win."""
        item_ids, vectors = self.items.vectors
        if self.rows is None:
            return self.items.vectors
        stays = lookup(self.rows.item_ids, None, item_ids) < 0
        every = np.concatenate([self.rows.item_ids, item_ids[stays]])
        order = np.argsort(every, kind="stable")
        every_vector = np.concatenate([self.rows.item_vectors, vectors[stays]])
        return ItemVectors(every[order], every_vector[order])

    def user_embedding(self, user: IdArray) -> FloatArray | None:
        """Return the newer row of a user, `[1, id_dim]`; `user` has one element."""
        return self.users.find(user)


def _check_fit(rows: DeltaRows, base: OpenedGeneration) -> None:
    """Refuse rows of other widths or kinds of IDs than the base's.

    Raises:
        CorruptArtifact: they are not of this base.
    """
    encoder, vector_dim = base.encoder, base.generation.manifest.vector_dim
    id_dim = encoder.user_id_embeddings.shape[1]
    sides = (
        (encoder.users.kind, rows.user_ids, rows.user_embeddings, id_dim),
        (encoder.items.kind, rows.item_ids, rows.item_vectors, vector_dim),
    )
    for kind, ids, values, width in sides:
        found = ("str" if ids.dtype.kind == "S" else "int", values.shape[1])
        if len(ids) and found != (kind, width):
            raise CorruptArtifact(
                f"expected IDs of kind {kind!r} and rows of width {width}, found {found[0]!r} and "
                f"{found[1]}; nothing was applied; publish a delta against the live generation"
            )
