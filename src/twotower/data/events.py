"""What producers send: impressions, outcomes and eliminated candidates, one by one and as arrays.

An event is checked when it is decoded: what is stored can be joined, and what cannot is rejected
with a reason. Legend: `n` events.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.ids import IdKind
from twotower.data.schema import BoolArray, EventIdArray, IdArray, IntArray

__all__ = [
    "EVENT_KINDS",
    "LONGEST_ID_BYTES",
    "MAX_NAMES",
    "NO_NAME",
    "NO_REQUEST",
    "Event",
    "EventColumns",
    "EventKind",
    "IdKinds",
    "fit_ids",
    "kinds_of",
]

EventKind = Literal["impression", "outcome", "candidate"]
EVENT_KINDS: Final[tuple[EventKind, ...]] = ("impression", "outcome", "candidate")
"""The code of a kind is its place here."""
NO_NAME: Final = 255
"""Code of an event without outcome or stage."""
MAX_NAMES: Final = NO_NAME
"""How many different outcomes, and how many stages, a log can name."""
NO_REQUEST: Final = 0
"""Key of an event without a request."""
LONGEST_ID_BYTES: Final = 256
"""Longest ID of a user, an item, an event or a request, in UTF-8."""

_EARLIEST_MS: Final = 631_152_000_000  # 1990: an earlier time is one in another unit
_LATEST_MS: Final = 253_402_300_799_999  # the year 9999
_LARGEST: Final = 3.4e38  # of a float32

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_ID_BYTES)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
UnsignedCodes = npt.NDArray[np.uint8]


class IdKinds(NamedTuple):
    """What the IDs of a project are; a log keeps to one kind a side."""

    user: IdKind
    item: IdKind


class Event(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """One thing that happened. Times are milliseconds since 1970 in UTC."""

    kind: EventKind
    """impression: the item was shown. outcome: what the user did. candidate: it was retrieved,
    but a stage eliminated it before it was shown."""
    event_id: Text
    """The producer's; sending an event again under it changes nothing."""
    user_id: Whole | Text
    item_id: Whole | Text
    event_time_ms: Annotated[int, msgspec.Meta(ge=_EARLIEST_MS, le=_LATEST_MS)]
    """When it happened, by the producer's clock."""
    request_id: Text | None = None
    """Ties an outcome to the impression of the same request."""
    outcome: Name | None = None
    """What the user did, as "click"; of outcomes, and only of them."""
    value: Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)] = 1.0
    """How much of it, as seconds watched."""
    stage: Name | None = None
    """Which stage eliminated it, as "ranking"; of candidates, and only of them."""

    def __post_init__(self) -> None:
        """Refuse an event that contradicts its kind."""
        if (self.outcome is None) == (self.kind == "outcome"):
            raise ValueError(_expected("outcome", "outcomes", self.kind, self.outcome))
        if (self.stage is None) == (self.kind == "candidate"):
            raise ValueError(_expected("stage", "candidates", self.kind, self.stage))


def _expected(field: str, kinds: str, kind: str, found: str | None) -> str:
    if found is None:
        return f"expected '{field}' in an event of kind '{kind}', found none"
    return f"'{field}' is for {kinds}, found {found!r} in an event of kind '{kind}'"


class EventColumns(NamedTuple):
    """`n` events as arrays, in offset order. Its length is that of `offset`."""

    offset: IntArray
    """`int64[n]`, contiguous."""
    kind: UnsignedCodes
    """`uint8[n]`, places in `EVENT_KINDS`."""
    event_key: EventIdArray
    """`uint64[n]`, xxh3_64 of the event ID; no two events of a log share one."""
    user_id: IdArray
    item_id: IdArray
    event_time_ms: IntArray
    received_ms: IntArray
    """`int64[n]`, when it was received, by the collector's clock."""
    request_key: EventIdArray
    """`uint64[n]`, xxh3_64 of the request ID, `NO_REQUEST` without one."""
    outcome: UnsignedCodes
    """`uint8[n]`, places in `outcome_names`, `NO_NAME` without an outcome."""
    value: npt.NDArray[np.float32]
    stage: UnsignedCodes
    """`uint8[n]`, places in `stage_names`, `NO_NAME` without a stage."""
    outcome_names: tuple[str, ...]
    """All outcomes that the log knows: a later read may know more, in the same order."""
    stage_names: tuple[str, ...]

    def take(self, rows: slice | IntArray | BoolArray) -> EventColumns:
        """Return the columns of some rows."""
        columns: tuple[Any, ...] = self
        return EventColumns._make([*(column[rows] for column in columns[:-2]), *columns[-2:]])


def kinds_of(event: Event) -> IdKinds:
    """Return what the IDs of an event are."""
    sides = (event.user_id, event.item_id)
    return IdKinds(*("int" if isinstance(value, int) else "str" for value in sides))


def fit_ids(event: Event, kinds: IdKinds) -> Event:
    """Return `event` with its IDs as the kinds of the project, the text of a number as one.

    Raises:
        ValueError: an ID is not of its kind; what was expected and found.
    """
    user_id = _fit(event.user_id, kinds.user, "user_id")
    item_id = _fit(event.item_id, kinds.item, "item_id")
    if user_id is event.user_id and item_id is event.item_id:
        return event
    return msgspec.structs.replace(event, user_id=user_id, item_id=item_id)


def _fit(value: int | str, kind: IdKind, field: str) -> int | str:
    if kind == "int":
        return value if isinstance(value, int) else _whole(value, field)
    text = value if isinstance(value, str) else str(value)
    if "\0" in text or len(text.encode()) > LONGEST_ID_BYTES:
        raise ValueError(
            f"expected '{field}' without NUL and of at most {LONGEST_ID_BYTES} bytes, "
            f"found {text[:40]!r}"
        )
    return text


def _whole(text: str, field: str) -> int:
    try:
        found = int(text) if text.isascii() and len(text) <= 20 else None
    except ValueError:
        found = None
    if found is None or not -(2**63) <= found < 2**63:
        raise ValueError(f"expected a whole number as '{field}', found {text[:40]!r}")
    return found
