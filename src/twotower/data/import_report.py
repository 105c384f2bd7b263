"""What an import says about its sources: counts, rejected rows with samples, features, warnings.

Plain structs without polars, so that a report can be read where nothing is imported.
"""

from __future__ import annotations

import msgspec

from twotower.data.settings import FeatureKind

__all__ = [
    "SAMPLE_ROWS",
    "EntityReport",
    "EventReport",
    "FeatureReport",
    "FileReport",
    "HistoryReport",
    "ImportReport",
    "RejectedRow",
    "Rejection",
    "collect_rejections",
]

SAMPLE_ROWS = 5
"""Rejected rows kept as a sample, for each reason."""


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """One source file, or a table handed over in Python."""

    name: str
    rows: int


class RejectedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was left out, as the source has it."""

    file: str
    line: int | None
    """Line of a CSV file (counting a quoted line break as none); None for Parquet and tables."""
    values: dict[str, str | None]
    """The columns that the configuration names."""


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """All rows that were left out for one reason."""

    reason: str
    rows: int
    sample: tuple[RejectedRow, ...]


class EventReport(msgspec.Struct, frozen=True, kw_only=True):
    """The log. rows_read = rows + eliminated + duplicates + the rows of `rejected`."""

    files: tuple[FileReport, ...]
    rows_read: int
    duplicates: int
    """Rows dropped because an earlier row has their event ID."""
    conflicting_duplicates: int
    """Of these, rows whose typed content differs from the row that was kept."""
    rejected: tuple[Rejection, ...]
    rows: int
    """Impressions."""
    positives: int
    users: int
    items: int
    before_day_rows: int = 0
    """Rows, duplicates included, timed before the day that their day column names."""
    before_day_minutes: int = 0
    """How far at most."""
    after_day_rows: int = 0
    after_day_minutes: int = 0
    eliminated: int = 0
    """Candidates that a stage eliminated before they were shown."""
    eliminated_at: dict[str, int] = {}
    """How many by stage; the most frequent stages."""


class FeatureReport(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of a side."""

    name: str
    kind: FeatureKind
    cardinality: int
    """Distinct values, missing apart."""
    missing_share: float
    unreadable: int = 0
    """Values that are no number or no time; they count as missing."""


class EntityReport(msgspec.Struct, frozen=True, kw_only=True):
    """The table of users or of items."""

    files: tuple[FileReport, ...]
    rows_read: int
    duplicates: int
    """Rows whose ID comes again later; the last row wins."""
    rejected: tuple[Rejection, ...]
    rows: int
    unlisted_in_events: int
    """IDs of the events that have no row here."""
    features: tuple[FeatureReport, ...]


class HistoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """Past items per user."""

    files: tuple[FileReport, ...]
    rows_read: int
    duplicates: int
    rejected: tuple[Rejection, ...]
    rows: int
    positives: int
    """Entries of all positive lists."""
    seen: int
    """Distinct items of all seen lists, summed over the users."""


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole import."""

    digest: str | None
    """Name of the import, a digest of its data; None for a dry run."""
    changed: bool | None
    """Whether the live import was replaced; None for a dry run."""
    user_id_kind: str
    item_id_kind: str
    days: dict[str, int]
    """Rows of each day."""
    events: EventReport
    users: EntityReport | None
    items: EntityReport | None
    history: HistoryReport | None
    notes: tuple[str, ...]
    """Facts worth knowing."""
    warnings: tuple[str, ...]
    """Facts that are probably a mistake."""


def collect_rejections(rejections: list[Rejection]) -> tuple[Rejection, ...]:
    """Add up rejections of several files by reason, in the order of their first appearance."""
    merged: dict[str, Rejection] = {}
    for found in rejections:
        seen = merged.get(found.reason, Rejection(reason=found.reason, rows=0, sample=()))
        sample = (seen.sample + found.sample)[:SAMPLE_ROWS]
        merged[found.reason] = Rejection(
            reason=found.reason, rows=seen.rows + found.rows, sample=sample
        )
    return tuple(merged.values())
