"""From a user to candidates: the live user tower, the index of the same generation, filters.

Everything comes from one generation, which every answer names. Never imports torch: numpy,
msgspec, onnxruntime and the index's engine are enough. Legend: `k` candidates asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id
from twotower.errors import ConfigError
from twotower.index import open_index
from twotower.publishing.activation import Activation
from twotower.publishing.display import Display
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore

__all__ = ["Answer", "Candidate", "Found", "RecentClick", "Retriever"]

IntArray = npt.NDArray[np.int64]


class Candidate(msgspec.Struct, frozen=True):
    """One returned item."""

    item_id: Id
    score: float
    """The cosine; with a popularity coordinate, the inner product."""
    rank: int
    """1 is the best."""
    display: dict[str, Any]


class RecentClick(msgspec.Struct, frozen=True):
    """One of the user's recent clicks, which the user vector is made from."""

    item_id: Id
    display: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """What a user gets, and what made it."""

    user_id: Id
    generation: str
    sequence: int | None
    """Of the activation; None where the generation was named and is not live."""
    degraded: list[str]
    """Why this is less than it could be: `unknown_user`, `feature:city=unseen`, …"""
    candidates: list[Candidate]
    """Best first; fewer than `k` only where no more may be returned."""
    recent: list[RecentClick]
    """Newest first."""


class Found(NamedTuple):
    """What a search found, in item positions: the server writes its answers from it."""

    positions: IntArray
    """`int64[K]`, best first, `K <= k`."""
    scores: npt.NDArray[np.float32]
    """`float32[K]`."""
    clicks: IntArray
    """`int64[H]`: the user's recent clicks, oldest first."""
    degraded: list[str]
    tower_s: float
    """Time for the user's vector: looking up, encoding the request's features, the tower."""
    filter_s: float
    """Time to list the items that may not be returned."""
    ann_s: float
    """Time of the search, which leaves those items out."""


class Retriever:
    """Answers from one generation, opened whole. Safe for many threads; never changes."""

    def __init__(
        self, generation: Generation, activation: Activation | None = None, *, threads: int = 1
    ) -> None:
        """Load a generation whose checksums were verified.

        Args:
            generation: What to answer from.
            activation: What made it live, None where it is not.
            threads: Threads of one tower call.
        """
        self.generation = generation.name
        self.sequence = activation.sequence if activation else None
        self.encoder = Encoder.of(generation, threads=threads)
        self.index = open_index(generation.file("index"))
        self._display = Display(
            generation.array("items/display.npy"), generation.array("items/display_offsets.npy")
        )

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

    def retrieve(
        self,
        user_id: Id,
        k: int = 20,
        *,
        features: Mapping[str, object] | None = None,
        recent: Sequence[Id] | None = None,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
    ) -> Answer:
        """Return the `k` best items for a user; a user never seen is no error.

        Args:
            user_id: The log's ID.
            k: How many, at least 1.
            features: Override the stored profile; what is not named keeps its stored value.
            recent: The user's newest clicks, oldest first, instead of the stored ones.
            exclude: Items not to return.
            include_seen: Return items too that the user has seen or has in `recent`.

        Raises:
            ConfigError: `k` is below 1, or a feature is none of the model's.
            DataError: an ID is of the wrong kind.
        """
        found = self.find(
            user_id, k, features=features, recent=recent, exclude=exclude, include_seen=include_seen
        )
        return Answer(
            user_id=self.encoder.users.normal(user_id),
            generation=self.generation,
            sequence=self.sequence,
            degraded=found.degraded,
            candidates=self._candidates(found.positions, found.scores),
            recent=self._clicks(found.clicks[::-1]),
        )

    def find(
        self,
        user_id: Id,
        k: int,
        *,
        features: Mapping[str, object] | None = None,
        recent: Sequence[Id] | None = None,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
    ) -> Found:
        """Do what `retrieve` does, without making anything readable. Arguments as there."""
        if k < 1:
            raise ConfigError(f"expected k of at least 1, found {k}; nothing was searched")
        began = time.perf_counter()
        position = int(self.encoder.users.positions([user_id])[0])
        profile, notes = self.encoder.profile(position, features or {})
        clicks, unknown_clicks = self._recent(position, recent)
        vector = self.encoder.user_vector(position, profile, clicks)
        encoded = time.perf_counter()
        hidden = self._hidden(position, clicks, exclude, include_seen)
        filtered = time.perf_counter()
        result = self.index.search(vector, max(1, min(k, len(self.index))), exclude=[hidden])
        num_found = int(np.count_nonzero(result.ids[0] >= 0))  # padding stands at the end
        degraded = ["unknown_user"] if position < 0 else []
        return Found(
            positions=result.ids[0, :num_found],
            scores=result.scores[0, :num_found],
            clicks=clicks,
            degraded=[*degraded, *notes, *(["recent:unknown_items"] if unknown_clicks else [])],
            tower_s=encoded - began,
            filter_s=filtered - encoded,
            ann_s=time.perf_counter() - filtered,
        )

    def display_json(self, position: int) -> bytes:
        """Return the display fields of the item at `position` as JSON text."""
        return self._display.json_at(position)

    def _recent(self, position: int, recent: Sequence[Id] | None) -> tuple[IntArray, bool]:
        """Return the item positions of the user's clicks, and whether any item was unknown."""
        if recent is None:
            nobody = np.zeros(0, np.int64)
            return self.encoder.recent.list_at(position) if position >= 0 else nobody, False
        found = self.encoder.items.positions(recent)
        return found[found >= 0], bool((found < 0).any())

    def _hidden(
        self, position: int, clicks: IntArray, exclude: Sequence[Id], include_seen: bool
    ) -> IntArray:
        """Return the item positions that may not be returned: `int64[m]`."""
        named = self.encoder.items.positions(exclude)
        hidden = [named[named >= 0]]
        if not include_seen:
            hidden.append(clicks)
            if position >= 0:
                hidden.append(self.encoder.seen.list_at(position))
        return np.concatenate(hidden)

    def _candidates(self, found: IntArray, scores: npt.NDArray[np.float32]) -> list[Candidate]:
        ids = self.encoder.items.decode(found)
        return [
            Candidate(item_id, float(score), rank, self._display.at(position))
            for rank, (item_id, score, position) in enumerate(
                zip(ids, scores, found.tolist(), strict=True), start=1
            )
        ]

    def _clicks(self, positions: IntArray) -> list[RecentClick]:
        ids = self.encoder.items.decode(positions)
        return [
            RecentClick(item_id, self._display.at(position))
            for item_id, position in zip(ids, positions.tolist(), strict=True)
        ]
