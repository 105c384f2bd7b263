"""Events of a day over the tiny checkpoint, and the state that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiny_checkpoint import CUT_MS
from twotower.data.event_log import open_event_log
from twotower.data.events import Event
from twotower.data.ids import Id
from twotower.publishing.delta_rows import DeltaRows
from twotower.serving.retriever import Retriever
from twotower.serving.user_state import UserEvents

__all__ = ["clicked", "extended", "id_array", "rows_over", "shown"]


def shown(number: int, user: Id, item: Id, after_ms: int = 0) -> Event:
    """An impression `number + after_ms` milliseconds after the cut."""
    return Event(
        kind="impression",
        event_id=f"shown-{number}",
        user_id=user,
        item_id=item,
        event_time_ms=CUT_MS + number + after_ms,
    )


def clicked(number: int, user: Id, item: Id, after_ms: int = 0, outcome: str = "click") -> Event:
    """What the user did, at the time of `shown`."""
    return Event(
        kind="outcome",
        event_id=f"{outcome}-{number}",
        user_id=user,
        item_id=item,
        event_time_ms=CUT_MS + number + after_ms,
        outcome=outcome,
    )


def extended(
    state: UserEvents, folder: Path, events: Sequence[Event], piece: int = 1000
) -> UserEvents:
    """The state after the events went through a log and came back in pieces."""
    with open_event_log(folder) as log:
        log.append(events, received_ms=CUT_MS)
        while state.offset < log.end():
            state = state.extend(log.read(state.offset, piece))
    return state


def id_array(ids: Sequence[Id]) -> np.ndarray:
    """IDs as a delta holds them; they must ascend."""
    if ids and isinstance(ids[0], str):
        return np.array([str(value).encode() for value in ids])
    return np.array(ids, np.int64)


def rows_over(
    retriever: Retriever,
    users: Sequence[Id] = (),
    items: Sequence[Id] = (),
    *,
    seed: int = 0,
) -> DeltaRows:
    """Random rows of users and items, sorted by ID, that fit the retriever's generation."""
    rng = np.random.default_rng(seed)
    id_dim = retriever.encoder.user_id_embeddings.shape[1]
    dim = retriever.base.manifest.vector_dim
    vectors = rng.normal(size=(len(items), dim))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return DeltaRows(
        id_array(sorted(users, key=_bytes)),
        rng.normal(size=(len(users), id_dim)).astype(np.float32),
        id_array(sorted(items, key=_bytes)),
        rng.normal(size=(len(items), id_dim)).astype(np.float32),
        vectors.astype(np.float32),
    )


def _bytes(value: Id) -> tuple[int, bytes]:
    return (value, b"") if isinstance(value, int) else (0, value.encode())
