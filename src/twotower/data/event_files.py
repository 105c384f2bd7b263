"""A log file of the project's own form, as events: the mapping of `[events]` reads it.

The same rows that `twotower import` would take become impressions and, where the outcome says so,
clicks; rows with a stage become candidates. So a day that was logged as a table can go through the
stream. Legend: `n` rows.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from twotower.data.event_log.rows import Refusal, Rows
from twotower.data.event_table import event_columns, typed_rows
from twotower.data.events import Event, IdKinds, fit_ids
from twotower.data.settings import EventSource
from twotower.data.source_columns import id_kind, id_text
from twotower.data.sources import Sources, SourceTable

__all__ = ["POSITIVE_OUTCOME", "read_event_file"]

POSITIVE_OUTCOME: Final = "click"
"""What a positive row of a table is called as an event."""


def read_event_file(
    file: Path, source: EventSource, zone: str, kinds: IdKinds | None, now_ms: int
) -> Rows:
    """Return the events of a CSV or Parquet file, and the rows that are none.

    An impression has the row's event ID, and so has its request; its click has the same with
    `/outcome` behind it, and the same time, because a table has no other.

    Args:
        file: with the columns that `source` names.
        source: the mapping.
        zone: IANA name, for times without an offset.
        kinds: what the project's IDs are; None where the file decides.
        now_ms: no event is later.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    sources = Sources(
        "events", file.parent, glob.escape(str(file.resolve())), event_columns(source)
    )
    (table,) = sources.read()
    typed, reasons = typed_rows(table, source, zone, now_ms)
    if source.event_id:
        ids = id_text(table.frame[source.event_id])
    else:
        ids = pl.Series([f"{value:016x}" for value in typed["event_id"].to_list()], dtype=pl.String)
    typed = typed.with_columns(event_id=ids, reason=reasons).with_row_index("row")
    kinds = kinds or _kinds(typed.filter(pl.col("reason").is_null()))
    refused = [
        Refusal(row, "invalid", reason, _raw(table, row))
        for row, reason in typed.filter(pl.col("reason").is_not_null())
        .select("row", "reason")
        .iter_rows()
    ]
    return _events(table, typed.filter(pl.col("reason").is_null()), kinds, refused)


def _kinds(typed: pl.DataFrame) -> IdKinds:
    return IdKinds(id_kind([typed["user_id"]]), id_kind([typed["item_id"]]))


def _events(
    table: SourceTable, typed: pl.DataFrame, kinds: IdKinds, refused: list[Refusal]
) -> Rows:
    events: list[Event] = []
    places: list[int] = []
    for fields in typed.iter_rows(named=True):
        found = _checked(fields, kinds)
        if isinstance(found, str):
            refused.append(Refusal(fields["row"], "invalid", found, _raw(table, fields["row"])))
        else:
            events += found
            places += [fields["row"]] * len(found)
    return Rows(events, places, sorted(refused))


def _checked(fields: dict[str, Any], kinds: IdKinds) -> list[Event] | str:
    """Return the events of a row, or why it has none."""
    try:
        return [fit_ids(msgspec.convert(one, Event), kinds) for one in _of_row(fields)]
    except (msgspec.ValidationError, ValueError) as error:
        return str(error)


def _of_row(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    shared = {name: fields[name] for name in ("user_id", "item_id", "event_time_ms")}
    shared |= {"event_id": fields["event_id"], "request_id": fields["event_id"]}
    if fields.get("stage") is not None:
        yield {**shared, "kind": "candidate", "stage": fields["stage"]}
        return
    yield {**shared, "kind": "impression"}
    if fields["outcome"]:
        outcome_id = f"{fields['event_id']}/outcome"
        yield {**shared, "kind": "outcome", "event_id": outcome_id, "outcome": POSITIVE_OUTCOME}


def _raw(table: SourceTable, row: int) -> bytes:
    """Return the named columns of a source row, as JSON."""
    values = table.frame.select(table.named).row(row, named=True)
    return msgspec.json.encode(values, enc_hook=str)
