"""Joined examples as a stream brings them, made without a log and a join."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twotower.data.example_log import IMPRESSION, JoinedExamples
from twotower.data.ids import Id, IdKind, as_id_array

__all__ = ["stream_of"]


def stream_of(
    users: Sequence[Id],
    items: Sequence[Id],
    *,
    kind: IdKind = "int",
    item_kind: IdKind | None = None,
    first_offset: int = 0,
    start_ms: int = 1_651_420_800_000,
    every_ms: int = 1000,
    is_positive: Sequence[bool] | None = None,
) -> JoinedExamples:
    """One example after the other, `every_ms` apart, all positive unless told otherwise."""
    size = len(users)
    positive = np.ones(size, np.bool_) if is_positive is None else np.array(is_positive)
    return JoinedExamples(
        offset=first_offset + np.arange(size),
        user_id=as_id_array(users, kind),
        item_id=as_id_array(items, item_kind or kind),
        event_time_ms=start_ms + every_ms * np.arange(size),
        event_key=np.arange(size).astype(np.uint64) + np.uint64(first_offset),
        kind=np.full(size, IMPRESSION, np.uint8),
        is_positive=positive,
        weight=np.ones(size, np.float32),
        stage=np.zeros(size, "S1"),
    )
