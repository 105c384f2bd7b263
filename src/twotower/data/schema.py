"""Types of what the rest of the system learns from: events, days, histories, coded features.

Only numpy and msgspec, so that every layer may import it. Legend: `n` rows, `N` entities, `F`
categorical fields (quantile fields included), `M` numeric fields (timestamps included), `G`
multi-valued fields, `L` slots a multi-valued field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import IdKind

__all__ = [
    "EVENT_COLUMNS",
    "IMPORT_FORMAT_VERSION",
    "BoolArray",
    "DayEntry",
    "DayEvents",
    "EncodedFeatures",
    "EventIdArray",
    "HistoryLists",
    "IdArray",
    "ImportedSchema",
    "IntArray",
]

IntArray = npt.NDArray[np.int64]
EventIdArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]
IdArray = npt.NDArray[np.generic]
"""External IDs: `int64[n]`, or UTF-8 bytes `S[n]`; see `twotower.data.ids`."""

IMPORT_FORMAT_VERSION: Final = 2
EVENT_COLUMNS: Final = ("event_id", "user_id", "item_id", "event_time_ms", "outcome", "stage")
"""Columns of a day file, sorted by (event_time_ms, event_id); `stage` only of the eliminated."""


@dataclass(frozen=True, eq=False, slots=True)
class DayEvents:
    """The impressions of one day, oldest first, ties in the order of their event IDs.

    Or, where `stage` is there, the candidates that a stage eliminated that day: nobody saw them.
    """

    event_id: EventIdArray
    user_id: IdArray
    item_id: IdArray
    event_time_ms: IntArray
    outcome: BoolArray
    stage: npt.NDArray[np.str_] | None
    """`[n]`, which stage eliminated each candidate, never empty; None for impressions."""
    weight: npt.NDArray[np.float32] | None = None
    """`[n]`, how much each positive counts; None for 1, which all but late positives have."""

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, rows: BoolArray | IntArray) -> DayEvents:
        """Return some rows."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {
            name: None if v is None else v[rows] for name, v in columns.items()
        }
        return replace(self, **taken)

    def followed_by(self, other: DayEvents) -> DayEvents:
        """Return the rows of both; a stage is kept where both have one."""
        columns: dict[str, Any] = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in fields(self)
            if field.name not in ("stage", "weight")
        }
        weight = stage = None
        if self.weight is not None or other.weight is not None:
            weight = np.concatenate([self.weights(), other.weights()])
        if self.stage is not None and other.stage is not None:
            stage = np.concatenate([self.stage, other.stage])
        return DayEvents(**columns, stage=stage, weight=weight)

    def weights(self) -> npt.NDArray[np.float32]:
        """Return how much each row counts, `float32[n]`."""
        return np.ones(len(self), np.float32) if self.weight is None else self.weight


class HistoryLists(NamedTuple):
    """Past items per user, oldest first, flat with offsets: user `i` has `[o[i], o[i + 1])`.

    `positives` may name an item several times, as the source does; `seen` holds each item once
    and contains the positives. `before` is the first day that is not covered.
    """

    user_id: IdArray
    positives: IdArray
    positive_offsets: IntArray
    seen: IdArray
    seen_offsets: IntArray
    last_time_ms: IntArray | None
    before: str


class EncodedFeatures(NamedTuple):
    """The features of `N` entities as the towers take them.

    A value that is missing or was never admitted is its field's missing row, never a negative
    number: only padding is -1, and slot 0 of a multi-valued field is never padding.
    """

    categorical: npt.NDArray[np.int32]
    """`[N, F]`, rows of the side's feature table."""
    numeric: npt.NDArray[np.float32]
    """`[N, 2 * M]`: standardised value (0 where missing), then presence 0 or 1, a field."""
    multi: npt.NDArray[np.int32]
    """`[N, G, L]`, rows of the side's feature table, -1 for padding."""


class DayEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the import says about one day."""

    rows: int
    """Impressions; each event ID occurs once."""
    positives: int
    digest: str
    """Order-free digest of the event IDs of all rows; see `twotower.data.days.event_digest`."""
    positives_digest: str
    """The same of the positives alone."""
    start_ms: int
    """UTC milliseconds at which the local day starts."""
    end_ms: int
    """UTC milliseconds at which the next local day starts."""
    outside_rows: int = 0
    """Rows that a day column puts here although their time is outside [start_ms, end_ms)."""
    eliminated: int = 0
    """Candidates that a stage eliminated; none of them is among `rows`."""


class ImportedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """What the imported files hold, beside the days."""

    user_id_kind: IdKind
    item_id_kind: IdKind
    time_zone: str
    history_before: str | None = None
    """First day the history does not cover; None without a history."""
