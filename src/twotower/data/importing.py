"""Anybody's log files to typed, checked Parquet days.

Everything is read and checked before anything is written; a failed import leaves the earlier one
live. The same rows give the same import, whatever their order in the files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import polars as pl

from twotower.data.days import day_limits_ms, event_digest
from twotower.data.entity_tables import (
    Table,
    entity_columns,
    history_columns,
    read_entities,
    read_history,
)
from twotower.data.event_table import EventTable, event_columns, read_events
from twotower.data.feature_values import flat_values
from twotower.data.ids import IdKind
from twotower.data.import_report import ImportReport
from twotower.data.import_store import write_import
from twotower.data.import_summary import (
    entity_report,
    event_report,
    find_notes,
    find_warnings,
    history_report,
    late_history,
    mixed_ids,
)
from twotower.data.schema import EVENT_COLUMNS, DayEntry, ImportedSchema
from twotower.data.settings import EntitySource, EventSource, HistorySource
from twotower.data.source_columns import id_kind, typed_ids
from twotower.data.sources import Sources
from twotower.errors import ConfigError

__all__ = ["ImportReport", "ImportableProject", "import_tables"]


class ImportableProject(Protocol):
    """What an import needs of a project; `twotower.config.Project` has it."""

    @property
    def events(self) -> EventSource:
        """Where the log is."""

    @property
    def users(self) -> EntitySource | None:
        """Where the users' table is."""

    @property
    def items(self) -> EntitySource | None:
        """Where the items' table is."""

    @property
    def history(self) -> HistorySource | None:
        """Where the past items per user are."""

    @property
    def time_zone(self) -> str:
        """The zone that days are local in."""

    @property
    def root(self) -> Path:
        """Folder that relative paths start from."""

    @property
    def data_path(self) -> Path:
        """Where everything is written."""


class _Read(NamedTuple):
    """All sources, checked."""

    log: EventTable
    users: Table | None
    items: Table | None
    history: Table | None


def import_tables(
    project: ImportableProject,
    *,
    events: object = None,
    users: object = None,
    items: object = None,
    history: object = None,
    dry_run: bool = False,
    now_ms: int | None = None,
) -> ImportReport:
    """Check a project's sources and make them the live import.

    Args:
        project: says which columns hold what, and where the data folder is.
        events: a polars, pandas or Arrow table in place of the configured files.
        users: likewise, for the configuration's section of this name.
        items: likewise.
        history: likewise.
        dry_run: check and report, write nothing.
        now_ms: the present in UTC milliseconds, the clock's if None; an event more than a day
            later is a mistake.

    Returns:
        The report; `changed` is False where the same data was live already.

    Raises:
        ConfigError: a part has neither files nor a table, or a table has no section.
        DataError: a source contradicts the configuration. The earlier import stays live.
    """
    tables = {"events": events, "users": users, "items": items, "history": history}
    now = int(time.time() * 1000) if now_ms is None else now_ms
    read = _read(project, tables, now)
    typed, schema = _typed(project, read)
    events, eliminated = _divided(typed.pop("events"))
    days = _day_entries(events, eliminated, project.time_zone)
    report = _report(project, read, typed | {"events": events}, schema, days)
    if dry_run:
        return report
    files = {f"days/{day}.parquet": frame for day, frame in _by_day(events)}
    files |= {f"eliminated/{day}.parquet": frame for day, frame in _by_day(eliminated)}
    files |= {f"{part}.parquet": frame for part, frame in typed.items()}
    return write_import(project.data_path / "imported", files, schema, days, report)


def _read(project: ImportableProject, tables: Mapping[str, object], now_ms: int) -> _Read:
    def sources(part: str, files: str | tuple[str, ...], columns: dict[str, str]) -> Sources:
        return Sources(part, project.root, files, columns, tables[part])

    for part, table in tables.items():
        if table is not None and getattr(project, part) is None:
            raise ConfigError(
                f"a table of {part} was handed over, but there is no [{part}] section"
            )
    zone, log, past = project.time_zone, project.events, project.history
    entities: dict[str, Table | None] = {"users": None, "items": None}
    for part, source in (("users", project.users), ("items", project.items)):
        if source is not None:
            found = sources(part, source.files, entity_columns(source))
            entities[part] = read_entities(found, source, f"{part[:-1]}_id", zone, now_ms)
    return _Read(
        read_events(sources("events", log.files, event_columns(log)), log, zone, now_ms),
        entities["users"],
        entities["items"],
        read_history(sources("history", past.files, history_columns(past)), past, zone, now_ms)
        if past
        else None,
    )


def _typed(
    project: ImportableProject, read: _Read
) -> tuple[dict[str, pl.DataFrame], ImportedSchema]:
    """Return the tables in their stored types and order, with one kind of ID a side."""
    tables = {"events": read.log.frame}
    for part, table in (("users", read.users), ("items", read.items), ("history", read.history)):
        if table is not None:
            tables[part] = table.frame
    user_kind = id_kind([frame["user_id"] for frame in tables.values() if "user_id" in frame])
    item_columns = [frame["item_id"] for frame in tables.values() if "item_id" in frame]
    if read.history is not None:
        item_columns.append(flat_values(read.history.frame["seen"]))
    item_kind = id_kind(item_columns)
    kinds: dict[str, IdKind] = {"user_id": user_kind, "item_id": item_kind}
    typed = {part: _stored(part, frame, kinds) for part, frame in tables.items()}
    return typed, ImportedSchema(
        user_id_kind=user_kind,
        item_id_kind=item_kind,
        time_zone=project.time_zone,
        history_before=project.history.before if project.history else None,
    )


def _stored(part: str, frame: pl.DataFrame, kinds: Mapping[str, IdKind]) -> pl.DataFrame:
    ids = [typed_ids(frame[name], kind) for name, kind in kinds.items() if name in frame]
    frame = frame.with_columns(ids)
    if part == "events":
        columns = [name for name in (*EVENT_COLUMNS, "day") if name in frame]
        return frame.select(columns).sort("event_time_ms", "event_id")
    if part == "history" and kinds["item_id"] == "int":
        frame = frame.with_columns(pl.col("positives", "seen").cast(pl.List(pl.Int64)))
    return frame.sort(frame.columns[0])


def _divided(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the impressions, and the candidates that a stage eliminated."""
    if "stage" not in events.columns:
        return events, events.clear()
    was_shown = pl.col("stage").is_null()
    return events.filter(was_shown).drop("stage"), events.filter(~was_shown)


def _by_day(events: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    parts = events.partition_by("day", as_dict=True, include_key=False)
    return [(str(day), frame) for (day,), frame in sorted(parts.items())]


def _day_entries(events: pl.DataFrame, eliminated: pl.DataFrame, zone: str) -> dict[str, DayEntry]:
    entries = {}
    num_eliminated = {day: len(frame) for day, frame in _by_day(eliminated)}
    for day, frame in _by_day(events):
        start_ms, end_ms = day_limits_ms(day, zone)
        inside = frame["event_time_ms"].is_between(start_ms, end_ms, closed="left")
        positives = frame.filter(pl.col("outcome") == 1)
        entries[day] = DayEntry(
            rows=len(frame),
            positives=len(positives),
            digest=event_digest(frame["event_id"].to_numpy()),
            positives_digest=event_digest(positives["event_id"].to_numpy()),
            start_ms=start_ms,
            end_ms=end_ms,
            outside_rows=int((~inside).sum()),
            eliminated=num_eliminated.get(day, 0),
        )
    return entries


def _report(
    project: ImportableProject,
    read: _Read,
    typed: Mapping[str, pl.DataFrame],
    schema: ImportedSchema,
    days: Mapping[str, DayEntry],
) -> ImportReport:
    report = ImportReport(
        digest=None,
        changed=None,
        user_id_kind=schema.user_id_kind,
        item_id_kind=schema.item_id_kind,
        days={day: entry.rows for day, entry in days.items()},
        events=event_report(read.log, typed["events"], days),
        users=entity_report(project.users, read.users, typed["events"], typed.get("users")),
        items=entity_report(project.items, read.items, typed["events"], typed.get("items")),
        history=history_report(read.history),
        notes=(),
        warnings=(),
    )
    warnings = (*mixed_ids(read.log.frame, schema), *find_warnings(report, project.events))
    late = late_history(typed.get("history"), schema, days)
    return msgspec.structs.replace(report, notes=find_notes(report), warnings=(*warnings, *late))
