"""What the sender of events is told; free of the log's engine, for clients."""

from __future__ import annotations

import msgspec

__all__ = ["Receipt", "RejectedRow"]


class RejectedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was not stored."""

    row: int
    """Its place, counted from 0: in the array, or the line."""
    code: str
    """invalid, too_large, conflict or too_many_names."""
    reason: str
    """What was expected and found."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of every row: a row that is named nowhere is stored and was new."""

    accepted: int
    """Rows that are stored: those stored now, and duplicates."""
    duplicates: list[int]
    """Rows that were stored before, or earlier in the same body."""
    rejected: list[RejectedRow]
    end_offset: int
    """The log's end: a reader that has come so far has seen all accepted rows."""
