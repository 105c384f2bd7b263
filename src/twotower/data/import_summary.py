"""The report of an import: its parts, its notes, and the warnings about probable mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from twotower.data.entity_tables import Table
from twotower.data.event_table import EventTable
from twotower.data.feature_values import flat_values, text_codes
from twotower.data.import_report import (
    EntityReport,
    EventReport,
    FeatureReport,
    HistoryReport,
    ImportReport,
    collect_rejections,
)
from twotower.data.schema import DayEntry, ImportedSchema
from twotower.data.settings import EntitySource, EventSource
from twotower.data.source_columns import is_integer_text

__all__ = [
    "entity_report",
    "event_report",
    "find_notes",
    "find_warnings",
    "history_report",
    "late_history",
    "mixed_ids",
]

_MS_PER_MINUTE = 60_000
_MOSTLY = 0.9
_NUM_STAGES = 10


def event_report(
    log: EventTable, events: pl.DataFrame, days: Mapping[str, DayEntry]
) -> EventReport:
    """Return the counts of the log, and how far rows are timed outside their day.

    Args:
        log: all rows.
        events: the impressions among them.
        days: of the log.
    """
    limits = [(entry.start_ms, entry.end_ms) for entry in days.values()]
    starts, ends = (dict(zip(days, side, strict=True)) for side in zip(*limits, strict=True))
    time = pl.col("event_time_ms")
    early = pl.col("day").replace_strict(starts, return_dtype=pl.Int64) - time
    late = time - pl.col("day").replace_strict(ends, return_dtype=pl.Int64) + 1
    outside = log.times.select(early=early, late=late)
    return EventReport(
        files=log.files,
        rows_read=sum(file.rows for file in log.files),
        duplicates=log.duplicates,
        conflicting_duplicates=log.conflicting_duplicates,
        rejected=collect_rejections(log.rejections),
        rows=len(events),
        positives=int(events["outcome"].sum()),
        users=events["user_id"].n_unique(),
        items=events["item_id"].n_unique(),
        before_day_rows=int((outside["early"] > 0).sum()),
        before_day_minutes=_minutes(outside["early"]),
        after_day_rows=int((outside["late"] > 0).sum()),
        after_day_minutes=_minutes(outside["late"]),
        eliminated=len(log.frame) - len(events),
        eliminated_at=_stages(log.frame),
    )


def _stages(frame: pl.DataFrame) -> dict[str, int]:
    if "stage" not in frame.columns:
        return {}
    counted = frame["stage"].drop_nulls().value_counts().sort("count", "stage", descending=True)
    return dict(counted.head(_NUM_STAGES).iter_rows())


def _minutes(excess_ms: pl.Series) -> int:
    """Return the largest excess in minutes, rounded to the nearest one."""
    return round(max(0, int(excess_ms.max() or 0)) / _MS_PER_MINUTE)  # type: ignore[arg-type]


def entity_report(
    source: EntitySource | None,
    table: Table | None,
    events: pl.DataFrame,
    entities: pl.DataFrame | None,
) -> EntityReport | None:
    """Return the counts of a table and what its features hold."""
    if source is None or table is None or entities is None:
        return None
    name = entities.columns[0]
    unlisted = events.select(name).unique().join(entities, on=name, how="anti")
    return EntityReport(
        files=table.files,
        rows_read=sum(file.rows for file in table.files),
        duplicates=table.duplicates,
        rejected=collect_rejections(table.rejections),
        rows=len(entities),
        unlisted_in_events=len(unlisted),
        features=tuple(_feature_reports(source, table)),
    )


def _feature_reports(source: EntitySource, table: Table) -> Iterator[FeatureReport]:
    for name, feature in source.features.items():
        series = table.frame[name]
        yield FeatureReport(
            name=name,
            kind=feature.kind,
            cardinality=_cardinality(series),
            missing_share=series.null_count() / max(1, len(series)),
            unreadable=table.unreadable[name],
        )


def _cardinality(series: pl.Series) -> int:
    if isinstance(series.dtype, pl.List):
        series = flat_values(series)
    if series.dtype == pl.String:
        return len(text_codes(series)[0])
    return series.drop_nulls().n_unique()


def history_report(table: Table | None) -> HistoryReport | None:
    """Return the counts of the past items."""
    if table is None:
        return None
    return HistoryReport(
        files=table.files,
        rows_read=sum(file.rows for file in table.files),
        duplicates=table.duplicates,
        rejected=collect_rejections(table.rejections),
        rows=len(table.frame),
        positives=int(table.frame["positives"].list.len().sum()),
        seen=int(table.frame["seen"].list.len().sum()),
    )


def find_notes(report: ImportReport) -> tuple[str, ...]:
    """Return facts that are no mistake but surprise whoever does not know them."""
    events = report.events
    notes = []
    if events.duplicates:
        notes.append(f"{events.duplicates:,} rows repeat an earlier event and are dropped")
    if events.eliminated:
        stages = ", ".join(f"{count:,} at '{name}'" for name, count in events.eliminated_at.items())
        notes.append(
            f"{events.eliminated:,} rows are candidates that were eliminated before they were "
            f"shown ({stages}); they are no impressions and are kept aside, for hard negatives"
        )
    if events.before_day_rows:
        notes.append(
            f"{events.before_day_rows:,} rows are timed up to {events.before_day_minutes} minutes "
            "before their date's midnight; they stay in the day that their date names"
        )
    if events.after_day_rows:
        notes.append(
            f"{events.after_day_rows:,} rows are timed up to {events.after_day_minutes} minutes "
            "after their date's end; they stay in the day that their date names"
        )
    return tuple(notes)


def find_warnings(report: ImportReport, source: EventSource) -> tuple[str, ...]:
    """Return what is probably a mistake in the configuration or in the sources."""
    events, warnings = report.events, []
    if source.outcome is not None and events.positives == events.rows:
        warnings.append(
            f"the outcome '{source.outcome.column}' is 1 in all {events.rows:,} events; check "
            "$.events.outcome, or leave it out where the log holds positives only"
        )
    if events.conflicting_duplicates:
        warnings.append(
            f"{events.conflicting_duplicates:,} rows repeat an event ID with other contents; the "
            f"first is kept; is '{source.event_id}' unique?"
        )
    warnings += [f"{r.rows:,} events are rejected: {r.reason}" for r in events.rejected]
    for side, entity, in_events in (
        ("users", report.users, events.users),
        ("items", report.items, events.items),
    ):
        if entity is not None:
            warnings += _entity_warnings(side, entity, in_events)
    if report.history is not None and report.history.duplicates:
        warnings.append(f"history: {_repeated(report.history.duplicates)}")
    return tuple(warnings)


def _entity_warnings(side: str, entity: EntityReport, in_events: int) -> Iterator[str]:
    if entity.duplicates:
        yield f"{side}: {_repeated(entity.duplicates)}"
    if entity.unlisted_in_events == in_events:
        yield f"{side}: no ID of the events has a row; is '$.{side}.id' the right column?"
    for rejection in entity.rejected:
        yield f"{side}: {rejection.rows:,} rows are rejected: {rejection.reason}"
    for feature in entity.features:
        if feature.cardinality == 0:
            yield f"{side}: feature '{feature.name}' is missing in every row"
        elif feature.cardinality == 1 and feature.missing_share == 0:
            yield f"{side}: feature '{feature.name}' is constant"
        if feature.unreadable:
            yield (
                f"{side}: feature '{feature.name}' has {feature.unreadable:,} unreadable values, "
                "which count as missing"
            )


def _repeated(duplicates: int) -> str:
    return f"{duplicates:,} rows have an ID that comes again; the last row of an ID wins"


def mixed_ids(events: pl.DataFrame, schema: ImportedSchema) -> Iterator[str]:
    """Warn where nearly every ID is an integer and a few make all of them strings."""
    kinds = {"user_id": schema.user_id_kind, "item_id": schema.item_id_kind}
    for name in (name for name, kind in kinds.items() if kind == "str"):
        distinct = events[name].unique()
        others = distinct.filter(~is_integer_text(distinct))
        if len(others) < (1 - _MOSTLY) * len(distinct):
            example = f", such as {others.sort()[0]!r}" if len(others) else " outside the events"
            yield (
                f"{name}: the IDs are kept as strings because {len(others):,} of "
                f"{len(distinct):,} are no integers{example}"
            )


def late_history(
    history: pl.DataFrame | None, schema: ImportedSchema, days: Mapping[str, DayEntry]
) -> Iterator[str]:
    """Warn where the history and the events overlap: that would show the model its own target."""
    if history is None or schema.history_before is None or not days:
        return
    first_day = min(days)
    if first_day < schema.history_before:
        yield (
            f"the events begin on {first_day}, but the history covers the time before "
            f"{schema.history_before}; check $.history.before"
        )
    if "last_time_ms" in history.columns:
        late = int((history["last_time_ms"] >= days[first_day].start_ms).sum())
        if late:
            yield (
                f"the histories of {late:,} users end after the first day, {first_day}, began: "
                "they may hold what is to be predicted"
            )
