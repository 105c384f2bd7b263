"""The log to typed events: one row an impression, each event ID once."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from twotower.data.feature_values import MS_PER_DAY
from twotower.data.import_report import FileReport, Rejection
from twotower.data.settings import EventSource
from twotower.data.source_columns import (
    EARLIEST_MS,
    check_unit,
    day_text,
    hash_rows,
    hash_texts,
    id_text,
    local_day,
    outcomes,
)
from twotower.data.sources import Sources, SourceTable
from twotower.errors import DataError

__all__ = ["EventTable", "event_columns", "read_events", "typed_rows"]


class EventTable(NamedTuple):
    """Typed events of all sources, in source order; IDs are still text."""

    frame: pl.DataFrame
    """event_id, user_id, item_id, event_time_ms, outcome, day, and stage where configured."""
    times: pl.DataFrame
    """day and event_time_ms of every accepted row, duplicates included."""
    files: tuple[FileReport, ...]
    rejections: list[Rejection]
    duplicates: int
    conflicting_duplicates: int


def event_columns(source: EventSource) -> dict[str, str]:
    """Return the columns that the configuration names, by the setting that names them."""
    named = {
        "user_id": source.user_id,
        "item_id": source.item_id,
        "time.column": source.time.column,
        "outcome.column": source.outcome.column if source.outcome else None,
        "event_id": source.event_id,
        "stage": source.stage,
        "day": source.day,
    }
    return {setting: column for setting, column in named.items() if column is not None}


def read_events(sources: Sources, source: EventSource, zone: str, now_ms: int) -> EventTable:
    """Read and check the whole log; about 100 bytes of memory a row beside the largest file.

    Raises:
        DataError: a file contradicts the configuration, no row is left, or no row is a positive.
    """
    frames, files, rejections = [], [], []
    for table in sources.read():
        typed, reasons = typed_rows(table, source, zone, now_ms)
        files.append(table.report())
        rejections += table.rejections(reasons)
        frames.append(typed.filter(reasons.is_null()))
    everything = pl.concat(frames)
    _refuse_empty(everything, sum(file.rows for file in files), rejections)
    kept = everything.unique("event_id", keep="first", maintain_order=True)
    duplicates = len(everything) - len(kept)
    conflicting = len(everything.unique()) - len(kept) if duplicates and source.event_id else 0
    _refuse_no_positives(kept, source)
    kept, orphans = _without_orphans(kept)
    rejections += orphans
    times = everything.join(kept.select("day").unique(), on="day", how="semi")
    times = times.select("day", "event_time_ms")
    return EventTable(kept, times, tuple(files), rejections, duplicates, conflicting)


def _without_orphans(events: pl.DataFrame) -> tuple[pl.DataFrame, list[Rejection]]:
    """Leave out eliminated candidates of days without an impression: they make no day."""
    if "stage" not in events.columns:
        return events, []
    days = events.filter(pl.col("stage").is_null()).select("day").unique()
    kept = events.join(days, on="day", how="semi", maintain_order="left")
    num_orphans = len(events) - len(kept)
    reason = "stage says that it was not shown, and nothing was shown on its day"
    return kept, [Rejection(reason=reason, rows=num_orphans, sample=())] if num_orphans else []


def typed_rows(
    table: SourceTable, source: EventSource, zone: str, now_ms: int
) -> tuple[pl.DataFrame, pl.Series]:
    """Return the typed columns of one source and, a row, why it is rejected or null."""
    frame = table.frame
    times = check_unit(frame[source.time.column], source.time, zone, now_ms, table.name)
    columns = {
        "event_id": hash_texts(id_text(frame[source.event_id]).fill_null(""))
        if source.event_id
        else hash_rows(frame),
        "user_id": id_text(frame[source.user_id]),
        "item_id": id_text(frame[source.item_id]),
        "event_time_ms": times,
        "outcome": _outcome_column(frame, source),
        "day": day_text(frame[source.day]) if source.day else local_day(times, zone),
    }
    typed = pl.DataFrame(columns)
    if source.stage:
        typed = _with_stage(typed, frame[source.stage], source)
    return typed, _reasons(frame, typed, source, now_ms)


def _with_stage(typed: pl.DataFrame, stage: pl.Series, source: EventSource) -> pl.DataFrame:
    """Add the stage that eliminated a row, null where it was shown; such a row needs no outcome."""
    text = stage.cast(pl.String).str.strip_chars()
    text = text.set(text.is_in(["", *source.shown_stages]), None)
    outcome = pl.col("outcome") if source.outcome else pl.lit(0, pl.UInt8)
    return typed.with_columns(stage=text).with_columns(
        outcome=pl.when(pl.col("stage").is_null())
        .then(pl.col("outcome"))
        .otherwise(outcome.fill_null(0))
    )


def _outcome_column(frame: pl.DataFrame, source: EventSource) -> pl.Series:
    if source.outcome is None:
        return pl.Series([1] * len(frame), dtype=pl.UInt8)
    return outcomes(frame[source.outcome.column], source.outcome).cast(pl.UInt8)


def _reasons(
    frame: pl.DataFrame, typed: pl.DataFrame, source: EventSource, now_ms: int
) -> pl.Series:
    time = pl.col("event_time_ms")
    missing_time = frame[source.time.column].is_null()
    rules = [
        (pl.col("user_id").is_null(), "user ID is empty"),
        (pl.col("item_id").is_null(), "item ID is empty"),
        (pl.col("user_id").str.contains("\0", literal=True), "user ID holds a NUL character"),
        (pl.col("item_id").str.contains("\0", literal=True), "item ID holds a NUL character"),
        (pl.lit(missing_time), "time is empty"),
        (time.is_null(), f"time is not readable in the unit '{source.time.unit}'"),
        (time < EARLIEST_MS, "time is before 1990"),
        (time > now_ms + MS_PER_DAY, "time is in the future"),
        (pl.col("day").is_null(), "day is neither 20220425 nor 2022-04-25"),
        (pl.col("outcome").is_null(), _outcome_reason(source)),
    ]
    if source.stage:
        was_eliminated = pl.col("stage").is_not_null() & (pl.col("outcome") == 1)
        rules.append((was_eliminated, "stage says that it was not shown, but its outcome is 1"))
    if source.event_id:
        rules.append((pl.lit(id_text(frame[source.event_id]).is_null()), "event ID is empty"))
    verdicts = [pl.when(rule).then(pl.lit(reason)) for rule, reason in rules]
    return typed.select(reason=pl.coalesce(verdicts))["reason"]


def _outcome_reason(source: EventSource) -> str:
    if source.outcome is not None and source.outcome.threshold is not None:
        return "outcome is not a number"
    return "outcome is not 0 or 1"


def _refuse_empty(frame: pl.DataFrame, num_read: int, rejections: list[Rejection]) -> None:
    if len(frame):
        return
    if not num_read:
        raise DataError("the event files hold no rows; nothing was written")
    worst = max(rejections, key=lambda rejection: rejection.rows)
    first = worst.sample[0]
    raise DataError(
        f"all {num_read:,} rows of the event files are rejected, {worst.rows:,} because the "
        f"{worst.reason} (first: {first.file}"
        f"{'' if first.line is None else f' line {first.line}'}, {first.values}); "
        "nothing was written"
    )


def _refuse_no_positives(frame: pl.DataFrame, source: EventSource) -> None:
    if frame["outcome"].sum():
        return
    if source.outcome is None:
        raise DataError(
            f"the column '{source.stage}' says of all {len(frame):,} events that they were never "
            "shown, so there is nothing to learn from; name the values that mean shown in "
            "$.events.shown_stages; nothing was written"
        )
    raise DataError(
        f"the outcome '{source.outcome.column}' is 0 in all {len(frame):,} events, so there is "
        "nothing to learn from; check $.events.outcome (column, threshold, values); "
        "nothing was written"
    )
