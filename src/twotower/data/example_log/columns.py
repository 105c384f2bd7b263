"""Labelled examples as arrays, and as the columns of a TFRecord shard.

Legend: `n` examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from twotower.data.events import IdKinds
from twotower.data.ids import IdKind
from twotower.data.schema import BoolArray, EventIdArray, IdArray, IntArray

if TYPE_CHECKING:
    from twotower.data.tfrecord import Column, ColumnKind

__all__ = [
    "CANDIDATE",
    "EXAMPLE_KINDS",
    "IMPRESSION",
    "LATE_POSITIVE",
    "JoinedExamples",
    "column_kinds",
    "concatenate_examples",
    "from_columns",
    "no_examples",
    "to_columns",
]

IMPRESSION: Final = 0
"""It was shown; `is_positive` says whether a wanted outcome came in time."""
CANDIDATE: Final = 1
"""A stage eliminated it, nobody saw it; never positive."""
LATE_POSITIVE: Final = 2
"""A wanted outcome of an impression that was emitted as a negative before; always positive."""
EXAMPLE_KINDS: Final = ("impression", "candidate", "late_positive")
"""The code of a kind is its place here."""


class JoinedExamples(NamedTuple):
    """`n` examples in offset order. Its length is that of `offset`."""

    offset: IntArray
    """`int64[n]`, contiguous."""
    event_key: EventIdArray
    """`uint64[n]`, of the impression or candidate; of the outcome in a late positive. Each once."""
    user_id: IdArray
    item_id: IdArray
    event_time_ms: IntArray
    """`int64[n]`, when that event happened. Nearly ascending: late examples come when they come."""
    kind: npt.NDArray[np.uint8]
    """`uint8[n]`, places in `EXAMPLE_KINDS`."""
    is_positive: BoolArray
    weight: npt.NDArray[np.float32]
    """`float32[n]`, 1 but for late positives."""
    stage: npt.NDArray[np.bytes_]
    """`S[n]`, which stage eliminated a candidate; empty for all others."""

    def take(self, rows: slice | IntArray | BoolArray) -> JoinedExamples:
        """Return some rows."""
        columns: tuple[npt.NDArray[Any], ...] = self
        return JoinedExamples._make([column[rows] for column in columns])


def no_examples(id_kinds: IdKinds | None = None) -> JoinedExamples:
    """Return none, with IDs of the given kinds."""
    kinds = id_kinds or IdKinds("int", "int")
    return JoinedExamples(
        offset=np.zeros(0, np.int64),
        event_key=np.zeros(0, np.uint64),
        user_id=_no_ids(kinds.user),
        item_id=_no_ids(kinds.item),
        event_time_ms=np.zeros(0, np.int64),
        kind=np.zeros(0, np.uint8),
        is_positive=np.zeros(0, np.bool_),
        weight=np.zeros(0, np.float32),
        stage=np.zeros(0, "S1"),
    )


def _no_ids(kind: IdKind) -> IdArray:
    return np.zeros(0, np.int64) if kind == "int" else np.zeros(0, "S1")


def concatenate_examples(parts: Sequence[JoinedExamples]) -> JoinedExamples:
    """Return the examples of consecutive parts, at least one of them."""
    return JoinedExamples._make([np.concatenate(columns) for columns in zip(*parts, strict=True)])


def to_columns(examples: JoinedExamples) -> dict[str, Column]:
    """Return the features of a shard: `offset` is the shard's and is not among them.

    Keys are written as integers with a sign, because `tf.train.Example` has no others. A feature
    `stage` is there for candidates alone.
    """
    from twotower.data.tfrecord import RaggedColumn

    columns: dict[str, Column] = {
        "event_key": examples.event_key.view(np.int64),
        "user_id": examples.user_id,
        "item_id": examples.item_id,
        "event_time_ms": examples.event_time_ms,
        "kind": examples.kind.astype(np.int64),
        "is_positive": examples.is_positive.astype(np.int64),
        "weight": examples.weight,
    }
    has_stage = examples.stage != b""
    if has_stage.any():
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_stage, dtype=np.int64)])
        columns["stage"] = RaggedColumn(examples.stage[has_stage], offsets)
    return columns


def column_kinds(id_kinds: IdKinds) -> dict[str, ColumnKind]:
    """Return what a reader asks a shard for."""
    sides: dict[IdKind, ColumnKind] = {"int": "int", "str": "bytes"}
    return {
        "event_key": "int",
        "user_id": sides[id_kinds.user],
        "item_id": sides[id_kinds.item],
        "event_time_ms": "int",
        "kind": "int",
        "is_positive": "int",
        "weight": "float",
        "stage": "byte_lists",
    }


def from_columns(start: int, columns: Mapping[str, Column]) -> JoinedExamples:
    """Return the examples of a shard whose first one has offset `start`."""
    from twotower.data.tfrecord import RaggedColumn

    plain = cast(Mapping[str, npt.NDArray[Any]], columns)
    stages = columns["stage"]
    assert isinstance(stages, RaggedColumn), "it was asked for as lists"
    num = len(plain["event_key"])
    stage = np.zeros(num, stages.values.dtype if len(stages.values) else "S1")
    stage[np.diff(stages.offsets) > 0] = stages.values
    return JoinedExamples(
        offset=np.arange(start, start + num, dtype=np.int64),
        event_key=plain["event_key"].view(np.uint64),
        user_id=plain["user_id"],
        item_id=plain["item_id"],
        event_time_ms=plain["event_time_ms"],
        kind=plain["kind"].astype(np.uint8),
        is_positive=plain["is_positive"].astype(np.bool_),
        weight=plain["weight"],
        stage=stage,
    )
