"""What the day lays over a base generation: newer ID rows, newer vectors, items it never knew.

The base is never changed: its index is forked, and everything else is looked up here first. An
overlay is immutable too; what comes next makes another one, at the price of the rows.
Legend: `N` items of the base, `m` items that came since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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

__all__ = ["OpenedGeneration", "Overlay"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OpenedGeneration:
    """A generation with what answers from it; shared by every overlay."""

    generation: Generation
    encoder: Encoder
    index: VectorIndex
    display: Display


@dataclass(frozen=True, eq=False)
class Overlay:
    """Rows over a base, and what is searched with them."""

    base: OpenedGeneration
    rows: DeltaRows | None
    """Of all deltas so far, the newest of each ID; None before the first."""
    delta: DeltaMark | None
    """The last delta that is in `rows`."""
    newest_event_time_ms: int
    """Of what base and deltas have learned from: freshness counts from it."""
    index: VectorIndex
    """The base's, forked: vectors of `rows` in place of its own, or beside them."""
    added: IdArray
    """`[m]`, ascending: items of `rows` that the base does not know, numbered from `N` on."""

    @classmethod
    def bare(cls, base: OpenedGeneration) -> Overlay:
        """Return an overlay that changes nothing."""
        cut_ms = base.generation.manifest.window.cut_ms
        return cls(base, None, None, cut_ms, base.index, base.encoder.items.ids[:0])

    def after(self, deltas: Iterable[Delta]) -> Overlay:
        """Return the overlay with the deltas that follow, in their order.

        Raises:
            LineageError: one was made for another generation, or is not the next.
            CorruptArtifact: its rows do not fit the generation.
        """
        last, newest_ms, rows = self.delta, self.newest_event_time_ms, self.rows
        for delta in deltas:
            last = delta.check_follows(self.base.generation, last).mark
            _check_fit(delta.rows, self.base)
            newest_ms = max(newest_ms, delta.manifest.span.newest_event_time_ms)
            rows = delta.rows if rows is None else merge_rows(rows, delta.rows)
        return self if last == self.delta else self._with(rows, last, newest_ms)

    def after_rows(self, rows: DeltaRows, newest_event_time_ms: int) -> Overlay:
        """Return the overlay with the rows of a next delta that was never written to a file.

        Raises:
            CorruptArtifact: the rows do not fit the generation.
        """
        _check_fit(rows, self.base)
        last = DeltaMark(self.delta.sequence + 1 if self.delta else 1, "")
        merged = rows if self.rows is None else merge_rows(self.rows, rows)
        return self._with(merged, last, max(self.newest_event_time_ms, newest_event_time_ms))

    def _with(self, rows: DeltaRows | None, last: DeltaMark | None, newest_ms: int) -> Overlay:
        assert rows is not None, "a delta has rows, if only none"
        items, index = self.base.encoder.items, self.base.index.fork()
        numbers = items.positions_of(rows.item_ids)
        is_new = numbers < 0
        numbers[is_new] = len(items) + np.arange(np.count_nonzero(is_new))
        if len(numbers):
            index.upsert(numbers, rows.item_vectors)
        return Overlay(self.base, rows, last, newest_ms, index, rows.item_ids[is_new])

    def user_embedding(self, user: IdArray) -> FloatArray | None:
        """Return the newer row of a user, `[1, id_dim]`; `user` has one element."""
        if self.rows is None:
            return None
        place = int(lookup(self.rows.user_ids, None, user)[0])
        return None if place < 0 else self.rows.user_embeddings[place][None]


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
