"""Bytes to events, row by row: one bad row never costs its neighbours.

A JSON array or NDJSON, one object an event; the first character that is no blank decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from twotower.data.events import Event, IdKinds, fit_ids, kinds_of

__all__ = ["Refusal", "Rows", "decode_rows"]

_EVENTS: Final = msgspec.json.Decoder(list[Event])
_EVENT: Final = msgspec.json.Decoder(Event)
_RAW: Final = msgspec.json.Decoder(list[msgspec.Raw])
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding raises: `UnicodeError` for invalid UTF-8, `RecursionError` for deep nesting."""
_SHOWN_LETTERS: Final = 200


class Refusal(NamedTuple):
    """A row that cannot be stored."""

    row: int
    """Its place, counted from 0: in the array, or the line."""
    code: str
    reason: str
    raw: bytes


class Rows(NamedTuple):
    """The rows of one body."""

    events: list[Event]
    places: Sequence[int]
    """The row of each event."""
    refused: list[Refusal]

    def parts(self, num_events: int) -> Iterator[Rows]:
        """Yield them in parts of at most `num_events`, all that was refused with the first."""
        for start in range(0, max(len(self.events), 1), num_events):
            part = slice(start, start + num_events)
            refused = self.refused if start == 0 else []
            yield Rows(self.events[part], self.places[part], refused)


def decode_rows(body: bytes, kinds: IdKinds | None, row_limit_bytes: int) -> Rows:
    """Return the events of `body` and the rows that are none.

    Args:
        body: a JSON array, or NDJSON; blank lines count as lines and are no rows.
        kinds: what the project's IDs are; None where the first good event decides.
        row_limit_bytes: a row that is longer is refused; where all rows are events, none is.

    Raises:
        ValueError: the body is an array that cannot be read as one, so that it has no rows.
    """
    is_array = body[:100].lstrip()[:1] == b"["
    events = _all_at_once(body, is_array)
    if events is None:
        raws = _array_rows(body) if is_array else _line_rows(body)
        return _fitted(*_one_by_one(raws, row_limit_bytes), kinds)
    return _fitted(events, range(len(events)), [], kinds)


def _all_at_once(body: bytes, is_array: bool) -> list[Event] | None:
    """Return all events where every row is one; the common case, and the fast one."""
    try:
        if is_array:
            return _EVENTS.decode(body)
        events = _EVENT.decode_lines(body)
    except _UNREADABLE:
        return None
    return events if len(events) == len(body.rstrip(b"\n").split(b"\n")) else None


def _array_rows(body: bytes) -> list[tuple[int, bytes]]:
    try:
        return [(row, bytes(raw)) for row, raw in enumerate(_RAW.decode(body))]
    except _UNREADABLE as error:
        raise ValueError(f"expected a JSON array of events, found: {_reason(error)}") from None


def _line_rows(body: bytes) -> list[tuple[int, bytes]]:
    lines = [line.strip() for line in body.split(b"\n")]
    return [(row, line) for row, line in enumerate(lines) if line]


def _one_by_one(
    raws: list[tuple[int, bytes]], row_limit_bytes: int
) -> tuple[list[Event], list[int], list[Refusal]]:
    events, places, refused = [], [], []
    for row, raw in raws:
        decoded = _decode(raw, row, row_limit_bytes)
        if isinstance(decoded, Refusal):
            refused.append(decoded)
        else:
            events.append(decoded)
            places.append(row)
    return events, places, refused


def _decode(raw: bytes, row: int, row_limit_bytes: int) -> Event | Refusal:
    if len(raw) > row_limit_bytes:
        reason = f"expected a row of at most {row_limit_bytes} bytes, found {len(raw)}"
        return Refusal(row, "too_large", reason, raw)
    try:
        return _EVENT.decode(raw)
    except _UNREADABLE as error:
        return Refusal(row, "invalid", _reason(error), raw)


def _fitted(
    events: list[Event], places: Sequence[int], refused: list[Refusal], kinds: IdKinds | None
) -> Rows:
    """Give all IDs the project's kinds."""
    kinds = kinds or (kinds_of(events[0]) if events else None)
    if kinds is None:
        return Rows(events, places, refused)
    good: list[Event] = []
    kept: list[int] = []
    for event, row in zip(events, places, strict=True):
        fitted = _fit(event, kinds, row)
        if isinstance(fitted, Refusal):
            refused.append(fitted)
        else:
            good.append(fitted)
            kept.append(row)
    return Rows(good, kept, sorted(refused))


def _fit(event: Event, kinds: IdKinds, row: int) -> Event | Refusal:
    try:
        return fit_ids(event, kinds)
    except ValueError as error:
        return Refusal(row, "invalid", str(error), msgspec.json.encode(event))


def _reason(error: Exception) -> str:
    """Put what the decoder says into the house's words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text, _, place = str(error).partition(" - at ")
    where = place.strip("`").removeprefix("$").removeprefix(".")
    text = text.replace("`", "'").replace(", got ", ", found ")[:_SHOWN_LETTERS]
    return f"{where}: {text}" if where else text
