"""Tables of users and items, and histories, to typed tables: one row an ID, the last one wins."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from twotower.data.feature_values import number_column
from twotower.data.import_report import FileReport, Rejection
from twotower.data.settings import EntitySource, FeatureSettings, HistorySource, TimeColumn
from twotower.data.source_columns import check_unit, id_text
from twotower.data.sources import Sources, SourceTable
from twotower.errors import DataError

__all__ = [
    "Table",
    "entity_columns",
    "history_columns",
    "read_entities",
    "read_history",
]


class Table(NamedTuple):
    """A typed table, unsorted, its ID column still text."""

    frame: pl.DataFrame
    files: tuple[FileReport, ...]
    rejections: list[Rejection]
    duplicates: int
    unreadable: dict[str, int]
    """Feature to the number of its values that are no number or no time."""


def entity_columns(source: EntitySource) -> dict[str, str]:
    """Return the columns that the configuration names, by the setting that names them."""
    features = {
        f"features.{name}": feature.column or name for name, feature in source.features.items()
    }
    shown = {f"display[{i}]": c for i, c in enumerate(source.display) if c not in source.features}
    return {"id": source.id, **features, **shown}


def history_columns(source: HistorySource) -> dict[str, str]:
    """Return the columns that the configuration names, by the setting that names them."""
    named = {"user_id": source.user_id, "positives": source.positives}
    named |= {f"seen[{i}]": column for i, column in enumerate(source.seen)}
    return named | ({"last_time.column": source.last_time.column} if source.last_time else {})


def read_entities(
    sources: Sources, source: EntitySource, id_name: str, zone: str, now_ms: int
) -> Table:
    """Read a table of users or items: the ID, every feature by its name, the display columns."""
    frames, unreadable = [], dict.fromkeys(source.features, 0)
    tables = list(sources.read())
    for table in tables:
        columns = {id_name: id_text(table.frame[source.id])}
        for name, feature in source.features.items():
            series = table.frame[feature.column or name]
            columns[name] = _feature(series, feature, name, table.name, zone, now_ms)
            if feature.kind in ("numeric", "timestamp"):
                unreadable[name] += columns[name].null_count() - _num_missing(series)
        for name in source.display:
            columns.setdefault(name, table.frame[name])
        frames.append(pl.DataFrame(columns))
    return _last_rows(tables, frames, id_name, unreadable)


def read_history(sources: Sources, source: HistorySource, zone: str, now_ms: int) -> Table:
    """Read the past items per user: user_id, positives, seen, and last_time_ms where configured."""
    frames, tables = [], list(sources.read())
    for table in tables:
        lists = {name: _items(table.frame[name], source.separator) for name in source.seen}
        positives = _items(table.frame[source.positives], source.separator)
        frame = pl.DataFrame({"user_id": id_text(table.frame[source.user_id])}).with_columns(
            positives=positives,
            seen=pl.concat_list([*lists.values(), positives]).list.unique(maintain_order=True),
        )
        if source.last_time is not None:
            column = table.frame[source.last_time.column]
            times = check_unit(column, source.last_time, zone, now_ms, table.name)
            frame = frame.with_columns(last_time_ms=times)
        frames.append(frame)
    return _last_rows(tables, frames, "user_id", {})


def _last_rows(
    tables: list[SourceTable], frames: list[pl.DataFrame], id_name: str, unreadable: dict[str, int]
) -> Table:
    rejections: list[Rejection] = []
    for table, frame in zip(tables, frames, strict=True):
        ids = pl.col(id_name)
        empty = pl.when(ids.is_null()).then(pl.lit("ID is empty"))
        nul = pl.when(ids.str.contains("\0", literal=True)).then(pl.lit("ID holds a NUL character"))
        rejections += table.rejections(frame.select(reason=pl.coalesce(empty, nul))["reason"])
    everything = pl.concat(frames, how="vertical_relaxed")
    good = everything.filter(
        pl.col(id_name).is_not_null() & ~pl.col(id_name).str.contains("\0", literal=True)
    )
    kept = good.unique(id_name, keep="last", maintain_order=True)
    files = tuple(table.report() for table in tables)
    return Table(kept, files, rejections, len(good) - len(kept), unreadable)


def _feature(
    series: pl.Series, feature: FeatureSettings, name: str, file: str, zone: str, now_ms: int
) -> pl.Series:
    """Return a feature in its stored type: text, Float64, UTC time, or a list of texts."""
    if feature.kind == "multi":
        values = _items(series, feature.separator)
        return values.set(values.list.len() == 0, None)
    if series.dtype.is_nested():
        raise DataError(
            f"{file}: feature '{name}' is {feature.kind}, but its column holds lists; "
            'set kind = "multi"; nothing was written'
        )
    if feature.kind == "timestamp":
        column = TimeColumn(column=feature.column or name, unit=feature.unit)
        times = check_unit(series, column, zone, now_ms, file)
        return times.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    if feature.kind == "numeric":
        return _checked_numbers(series, name, file)
    text = series.fill_nan(None) if series.dtype.is_float() else series
    text = text.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "${1}")
    return text.set(text == "", None)


def _checked_numbers(series: pl.Series, name: str, file: str) -> pl.Series:
    numbers = pl.Series(number_column(series)).fill_nan(None)
    present = len(series) - _num_missing(series)
    if present and numbers.null_count() == len(series):
        raise DataError(
            f"{file}: feature '{name}' is numeric, but none of its {present:,} values is a "
            f'number (first: {series.drop_nulls()[0]!r}); set kind = "categorical"; '
            "nothing was written"
        )
    return numbers


def _items(series: pl.Series, separator: str) -> pl.Series:
    """Return a column as lists of non-empty texts, never null."""
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if isinstance(series.dtype, pl.List):
        lists = series.cast(pl.List(pl.String))
    else:
        lists = series.cast(pl.String).str.split(separator)
    element = pl.element().str.strip_chars()
    cleaned = lists.list.eval(element.filter(element.is_not_null() & (element != "")))
    return cleaned.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


def _num_missing(series: pl.Series) -> int:
    if series.dtype == pl.String:
        return int((series.str.strip_chars().fill_null("") == "").sum())
    if series.dtype.is_float():
        return int(series.fill_nan(None).null_count())
    return series.null_count()
