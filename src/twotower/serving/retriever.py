"""From a user to candidates: the live user tower, the index of the same generation, filters.

Everything comes from one generation, one delta over it and one offset of the event log, all of
which every answer names. Never imports torch: numpy, msgspec, onnxruntime and the index's engine
are enough. Legend: `k` candidates asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id
from twotower.errors import ConfigError
from twotower.index import TunableIndex, VectorIndex, open_index
from twotower.publishing.activation import Activation
from twotower.publishing.delta import Delta
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.display import Display
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.serving.answer import Answer, Candidate, Found, RecentClick
from twotower.serving.asking_user import KnownUsers, joined
from twotower.serving.day_items import DayItems
from twotower.serving.item_filter import EVERYTHING, ItemFilter
from twotower.serving.item_space import ItemSpace
from twotower.serving.known_items import KnownItems
from twotower.serving.messages import Condition
from twotower.serving.overlay import OpenedGeneration, Overlay
from twotower.serving.profiles import OF_GENERATION, StoredProfile
from twotower.serving.shown_items import ShownItems
from twotower.serving.user_state import MAX_EVENTS, UserEvents

__all__ = ["Answer", "Candidate", "Found", "RecentClick", "Retriever"]

IntArray = npt.NDArray[np.int64]


class Retriever:
    """Answers from one generation, opened whole. Safe for many threads; never changes.

    What the day brings makes another retriever, which shares the generation: see `with_deltas` and
    `with_user_state`.
    """

    def __init__(
        self, generation: Generation, activation: Activation | None = None, *, threads: int = 1
    ) -> None:
        """Load a generation whose checksums were verified.

        Args:
            generation: What to answer from.
            activation: What made it live, None where it is not.
            threads: Threads of one tower call.
        """
        encoder = Encoder.of(generation, threads=threads)
        display = Display(
            generation.array("items/display.npy"), generation.array("items/display_offsets.npy")
        )
        index = open_index(generation.file("index"))
        self.base = generation
        self.generation = generation.name
        self.sequence = activation.sequence if activation else None
        self.encoder = encoder
        self.overlay = Overlay.bare(OpenedGeneration(generation, encoder, index, display))
        self.user_state: UserEvents | None = None
        """What users did since the cut; None: only what the generation knows counts."""
        self.items = KnownItems(encoder.items)
        self.users = KnownUsers(encoder, self.overlay, None, self.items)
        self.filter = ItemFilter(self.overlay, self.items)
        self.space = ItemSpace(self.overlay, self.items)
        self.shown = ShownItems(self.items, self.overlay)
        """What `find` found, for people."""

    @property
    def index(self) -> VectorIndex:
        """What is searched, the day's changes included."""
        return self.overlay.index

    @property
    def delta(self) -> int | None:
        """The number of the last delta applied over the generation."""
        return self.overlay.delta.sequence if self.overlay.delta else None

    @property
    def items_number(self) -> int | None:
        """The last change of the day's items that is applied; None before the first."""
        return self.overlay.items.number or None

    @property
    def user_state_offset(self) -> int | None:
        """The event log's: what users did before it counts."""
        return None if self.user_state is None else self.user_state.offset

    @classmethod
    def open(
        cls,
        data_path: Path,
        generation: str | None = None,
        *,
        verify: bool = True,
        threads: int = 1,
    ) -> Retriever:
        """Open the live generation of a project, or the one named.

        Args:
            data_path: The project's data folder.
            generation: A name such as `g-000001`; None for the live one.
            verify: Compare every file with its checksum before anything is loaded.
            threads: Threads of one tower call.

        Raises:
            NotReady: nothing is live, or there is no such generation.
            CorruptArtifact: the generation is damaged.
            MissingExtra: onnxruntime or the index's engine is not installed.
        """
        store = ModelStore(data_path)
        if generation is None:
            return cls(*store.open_live(verify=verify), threads=threads)
        opened, live = store.open(generation, verify=verify), store.live()
        is_live = live is not None and live.manifest == opened.digest
        return cls(opened, live if is_live else None, threads=threads)

    def with_deltas(self, deltas: Iterable[Delta]) -> Retriever:
        """Return a retriever that also answers from the deltas which follow, in their order.

        Raises:
            LineageError: one was made for another generation, or is not the next.
            CorruptArtifact: its rows do not fit the generation. This retriever is unchanged.
        """
        return self._with(self.overlay.after(deltas), self.user_state)

    def without_deltas(self) -> Retriever:
        """Return a retriever that answers from the generation's own rows."""
        return self._with(self.overlay.without_deltas(), self.user_state)

    def with_rows(self, rows: DeltaRows, newest_event_time_ms: int = 0) -> Retriever:
        """Return a retriever that also answers from rows which were never written to a file.

        The answers name the next number; a delta from the disk no longer follows.

        Raises:
            CorruptArtifact: the rows do not fit the generation. This retriever is unchanged.
        """
        return self._with(self.overlay.after_rows(rows, newest_event_time_ms), self.user_state)

    def with_items(self, items: DayItems) -> Retriever:
        """Return a retriever that also finds the items of the day, and none that is withdrawn."""
        return self._with(self.overlay.after_items(items), self.user_state)

    def with_user_state(self, state: UserEvents) -> Retriever:
        """Return a retriever that also knows what users did since the cut.

        Args:
            state: Made for this generation, see `new_user_state`.
        """
        return self._with(self.overlay, state)

    def with_less_effort(self, share: float) -> Retriever:
        """Return a retriever whose search looks at about `share` as many candidates.

        This one itself where its index has no such setting, or it is at its lowest.
        """
        index = self.overlay.index
        if not isinstance(index, TunableIndex):
            return self
        lower = [effort for effort in index.efforts() if effort <= share * index.effort]
        if not lower:
            return self
        cheaper = copy.copy(index)
        cheaper.effort = max(lower)
        return self._with(dataclasses.replace(self.overlay, index=cheaper), self.user_state)

    def _with(self, overlay: Overlay, state: UserEvents | None) -> Retriever:
        after = copy.copy(self)
        after.overlay, after.user_state = overlay, state
        strange = None if state is None else state.strange
        after.items = KnownItems(self.encoder.items, overlay.added, strange)
        after.users = KnownUsers(self.encoder, overlay, state, after.items)
        if overlay is not self.overlay:
            after.filter = ItemFilter(overlay, after.items)
            after.space = ItemSpace(overlay, after.items)
        after.shown = ShownItems(after.items, overlay)
        return after

    def new_user_state(
        self,
        offset: int = 0,
        positive_outcomes: Sequence[str] = ("click",),
        max_events: int = MAX_EVENTS,
        event_cut: int | None = None,
    ) -> UserEvents:
        """Return the state of users who did nothing since the cut, ready to be extended.

        Args:
            offset: Of the event log, where the first piece begins.
            positive_outcomes: Outcomes that count as clicks.
            max_events: The newest events that count.
            event_cut: Of the log when the generation's last day was cut, None where it was not.
        """
        return UserEvents(
            self.encoder.items,
            self.base.manifest.window.cut_ms,
            event_cut=event_cut,
            offset=offset,
            positive_outcomes=positive_outcomes,
            max_events=max_events,
        )

    def retrieve(
        self,
        user_id: Id,
        k: int = 20,
        *,
        features: Mapping[str, object] | None = None,
        recent: Sequence[Id] | None = None,
        exclude: Sequence[Id] = (),
        conditions: Sequence[Condition] = (),
        include_seen: bool = False,
        stored: StoredProfile = OF_GENERATION,
    ) -> Answer:
        """Return the `k` best items for a user; a user never seen is no error.

        Args:
            user_id: The log's ID.
            k: How many, at least 1.
            features: Override the stored profile; what is not named keeps its stored value.
            recent: The user's newest clicks, oldest first, instead of the stored ones.
            exclude: Items not to return.
            conditions: That every item returned meets.
            include_seen: Return items too that the user has seen or has in `recent`.
            stored: The profile that a store elsewhere has, in place of the generation's.

        Raises:
            ConfigError: `k` is below 1, or a feature is none of the model's.
            DataError: an ID is of the wrong kind, or a condition fits no item.
        """
        found = self.find(
            user_id,
            k,
            features=features,
            recent=recent,
            exclude=exclude,
            conditions=conditions,
            include_seen=include_seen,
            stored=stored,
        )
        return Answer(
            user_id=self.encoder.users.normal(user_id),
            generation=self.generation,
            sequence=self.sequence,
            delta=self.delta,
            items_number=self.items_number,
            user_state_offset=self.user_state_offset,
            degraded=found.degraded,
            candidates=self.shown.candidates(found.positions, found.scores),
            recent=self.shown.clicks(found.clicks[::-1]),
        )

    def find(
        self,
        user_id: Id,
        k: int,
        *,
        features: Mapping[str, object] | None = None,
        recent: Sequence[Id] | None = None,
        exclude: Sequence[Id] = (),
        conditions: Sequence[Condition] = (),
        include_seen: bool = False,
        stored: StoredProfile = OF_GENERATION,
    ) -> Found:
        """Do what `retrieve` does, without making anything readable. Arguments as there."""
        if k < 1:
            raise ConfigError(f"expected k of at least 1, found {k}; nothing was searched")
        began = time.perf_counter()
        user = self.users.asking(user_id, features or {}, recent, stored)
        vector = user.vector(self.encoder)
        encoded = time.perf_counter()
        hidden = self.users.numbers(exclude)
        if not include_seen:
            hidden = joined([hidden, self.users.shown(user)])
        allowed = self.filter.allowed(conditions) if conditions else EVERYTHING
        filtered = time.perf_counter()
        result = self.index.search(
            vector, self.overlay.at_most(k), exclude=[hidden], allowed=allowed.mask
        )
        num_found = _num_found(result.ids[0])
        return Found(
            positions=result.ids[0, :num_found],
            scores=result.scores[0, :num_found],
            clicks=user.clicks,
            degraded=user.degraded + allowed.degraded,
            tower_s=encoded - began,
            filter_s=filtered - encoded,
            ann_s=time.perf_counter() - filtered,
        )

    def decode_items(self, numbers: IntArray) -> list[Id]:
        """Return the log's IDs of what `find` found."""
        return self.items.decode(numbers)


def _num_found(numbers: IntArray) -> int:
    """Return how many places of one answer an item fills; padding stands at the end."""
    if numbers[-1] >= 0:
        return len(numbers)
    return int(np.count_nonzero(numbers >= 0))
