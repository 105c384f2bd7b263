"""What the join keeps between two batches, and its bytes.

Bounded by time: whatever is older than `remember_s` behind the watermark is forgotten, so the
state holds what arrives in that time, whatever the log's length.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.label_join.watermark import Clock
from twotower.data.schema import BoolArray, EventIdArray, IdArray, IntArray
from twotower.errors import CorruptArtifact, LineageError

__all__ = [
    "JoinState",
    "Outcomes",
    "Remembered",
    "Shown",
    "Waiting",
    "decode_state",
    "encode_state",
    "joined_rows",
    "picked_rows",
]

STATE_VERSION: Final = 1


class Remembered(NamedTuple):
    """Every accepted event: its ID tells duplicates."""

    event_key: EventIdArray
    time_ms: IntArray


class Shown(NamedTuple):
    """Impressions that an outcome may be credited to, by offset."""

    offset: IntArray
    match_key: EventIdArray
    time_ms: IntArray
    is_positive: BoolArray
    """An outcome was credited to it."""


class Waiting(NamedTuple):
    """Examples that wait until the watermark has passed them by the window."""

    offset: IntArray
    """Of the event in the event log."""
    kind: npt.NDArray[np.uint8]
    """As in `JoinedExamples`."""
    event_key: EventIdArray
    user_id: IdArray
    item_id: IdArray
    time_ms: IntArray
    stage: npt.NDArray[np.bytes_]


class Outcomes(NamedTuple):
    """Positive outcomes that are not credited to an impression."""

    offset: IntArray
    event_key: EventIdArray
    match_key: EventIdArray
    user_id: IdArray
    item_id: IdArray
    time_ms: IntArray


class JoinState(NamedTuple):
    """Everything between two batches."""

    clock: Clock
    num_examples: int
    """Emitted so far: the offset of the next one."""
    next_midnight_ms: int | None
    """End of the local day that what is emitted is in; None before the first event."""
    remembered: Remembered
    shown: Shown
    waiting: Waiting
    outcomes: Outcomes

    @property
    def num_rows(self) -> int:
        """How many rows are held in memory."""
        return sum(len(getattr(self, name)[0]) for name in _TABLES)

    @property
    def num_undecided(self) -> int:
        """How many events have no fate yet."""
        return len(self.waiting.offset) + len(self.outcomes.offset)

    @classmethod
    def empty(cls) -> JoinState:
        """Return the state before the first event."""
        keys, times = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return cls(
            clock=Clock(),
            num_examples=0,
            next_midnight_ms=None,
            remembered=Remembered(keys, times),
            shown=Shown(times, keys, times, np.zeros(0, np.bool_)),
            waiting=Waiting(
                times, np.zeros(0, np.uint8), keys, times, times, times, np.zeros(0, "S1")
            ),
            outcomes=Outcomes(times, keys, keys, times, times, times),
        )


Table = TypeVar("Table", Remembered, Shown, Waiting, Outcomes)


def joined_rows(first: Table, second: Table) -> Table:
    """Return the rows of `first`, then those of `second`.

    Raises:
        LineageError: the IDs of the two are of different kinds.
    """
    if not len(first[0]) or not len(second[0]):
        return first if len(first[0]) else second
    before: tuple[npt.NDArray[Any], ...] = first
    after: tuple[npt.NDArray[Any], ...] = second
    for name, a, b in zip(first._fields, before, after, strict=True):
        if a.dtype.kind != b.dtype.kind:
            raise LineageError(
                f"expected '{name}' of kind '{a.dtype}' as the join's state holds, found "
                f"'{b.dtype}' in the event log; nothing of this batch was joined; the state and "
                "the log belong to different projects"
            )
    columns = [np.concatenate(pair) for pair in zip(before, after, strict=True)]
    return type(first)(*columns)


def picked_rows(table: Table, rows: BoolArray | IntArray) -> Table:
    """Return the chosen rows of a table."""
    columns: tuple[npt.NDArray[Any], ...] = table
    return type(table)(*[column[rows] for column in columns])


class _Column(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    content: bytes


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    clock: Clock
    num_examples: int
    next_midnight_ms: int | None
    tables: dict[str, dict[str, _Column]]


_TABLES: Final[dict[str, Any]] = {
    "remembered": Remembered,
    "shown": Shown,
    "waiting": Waiting,
    "outcomes": Outcomes,
}


def encode_state(state: JoinState) -> bytes:
    """Return the state as MessagePack; arrays as their bytes, texts as wide as the longest.

    Two joins that came the same way in other batches have the same bytes.
    """
    tables = {
        name: {field: _stored(column) for field, column in getattr(state, name)._asdict().items()}
        for name in _TABLES
    }
    stored = _Stored(
        version=STATE_VERSION,
        clock=state.clock,
        num_examples=state.num_examples,
        next_midnight_ms=state.next_midnight_ms,
        tables=tables,
    )
    return msgspec.msgpack.encode(stored)


def _stored(column: npt.NDArray[Any]) -> _Column:
    if column.dtype.kind == "S":
        letters = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.itemsize)
        used = np.flatnonzero(letters.any(axis=0))
        column = column.astype(f"S{used[-1] + 1 if len(used) else 1}")
    return _Column(column.dtype.str, np.ascontiguousarray(column).tobytes())


def decode_state(content: bytes) -> JoinState:
    """Return the state that `encode_state` wrote.

    Raises:
        CorruptArtifact: the bytes are of a newer format or are no state.
    """
    try:
        stored = msgspec.msgpack.decode(content, type=_Stored)
        if stored.version > STATE_VERSION:
            raise CorruptArtifact(
                f"the join's state has format version {stored.version}, this twotower reads up to "
                f"{STATE_VERSION}; nothing was joined; upgrade twotower"
            )
        tables = {
            name: kind(**{field: _array(stored.tables[name][field]) for field in kind._fields})
            for name, kind in _TABLES.items()
        }
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as error:
        raise CorruptArtifact(
            f"the join's state cannot be read: {error}; nothing was joined"
        ) from error
    return JoinState(stored.clock, stored.num_examples, stored.next_midnight_ms, **tables)


def _array(column: _Column) -> npt.NDArray[Any]:
    dtype = np.dtype(column.dtype)
    if dtype.kind not in "biuS":
        raise ValueError(f"unexpected type {column.dtype}")
    return np.frombuffer(column.content, dtype)
