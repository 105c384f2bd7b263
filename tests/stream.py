"""Joined examples as a stream brings them, made without a log and a join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.ids import Id, IdKind, as_id_array

__all__ = ["Stream", "stream_of"]


class Stream(NamedTuple):
    """What an incremental update reads of joined examples."""

    offset: npt.NDArray[np.int64]
    user_id: npt.NDArray[np.generic]
    item_id: npt.NDArray[np.generic]
    event_time_ms: npt.NDArray[np.int64]
    is_positive: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float32]

    def part(self, start: int, end: int) -> Stream:
        """The examples at places from `start` to before `end`."""
        return self._replace(**{name: values[start:end] for name, values in self._asdict().items()})


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
) -> Stream:
    """One example after the other, `every_ms` apart, all positive unless told otherwise."""
    size = len(users)
    return Stream(
        offset=first_offset + np.arange(size),
        user_id=as_id_array(users, kind),
        item_id=as_id_array(items, item_kind or kind),
        event_time_ms=start_ms + every_ms * np.arange(size),
        is_positive=np.ones(size, np.bool_) if is_positive is None else np.array(is_positive),
        weight=np.ones(size, np.float32),
    )
