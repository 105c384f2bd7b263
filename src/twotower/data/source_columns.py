"""Columns of a source to typed columns: IDs, times with their unit, outcomes, days.

A value that cannot be understood becomes null here; who calls decides what that means.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

import polars as pl
import xxhash

from twotower.data.feature_values import MS_PER_DAY, MS_PER_UNIT
from twotower.data.ids import IdKind
from twotower.data.settings import OutcomeColumn, TimeColumn, TimeUnit
from twotower.errors import DataError

__all__ = [
    "EARLIEST_MS",
    "check_unit",
    "day_text",
    "hash_rows",
    "hash_texts",
    "id_kind",
    "id_text",
    "is_integer_text",
    "local_day",
    "outcomes",
    "times_ms",
    "typed_ids",
]

EARLIEST_MS: Final = 631_152_000_000
"""1990-01-01 in UTC: an earlier event time is taken for a mistake."""
_UNITS: Final[tuple[TimeUnit, ...]] = ("s", "ms", "us", "ns", "iso")
_INTEGER: Final = r"^(?:0|-?[1-9][0-9]{0,18})$"
_OFFSET_FORMATS: Final = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")
_LOCAL_FORMATS: Final = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


def id_text(series: pl.Series) -> pl.Series:
    """Return IDs as text, null where there is none; 7 and 7.0 of a number column are `7`."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
        if (series.drop_nulls() % 1 == 0).all():
            series = series.cast(pl.Int64, strict=False)
    text = series.cast(pl.String)
    return text.set(text == "", None)


def is_integer_text(texts: pl.Series) -> pl.Series:
    """Return whether each text is a 64-bit integer in its only spelling (`7`, not `07`)."""
    return texts.str.contains(_INTEGER) & texts.cast(pl.Int64, strict=False).is_not_null()


def id_kind(columns: list[pl.Series]) -> IdKind:
    """Return `int` if every ID of a side is an integer, `str` if one is not."""
    return "int" if all(is_integer_text(column).all() for column in columns) else "str"


def typed_ids(texts: pl.Series, kind: IdKind) -> pl.Series:
    """Return IDs in their stored type."""
    return texts.cast(pl.Int64) if kind == "int" else texts


def times_ms(series: pl.Series, unit: TimeUnit, zone: str) -> pl.Series:
    """Return UTC milliseconds, `Int64`, null where a value is no time of this unit.

    Times without an offset are local in `zone`: of the two of a clock put back the earlier one,
    and null for those that a clock put forward skips.
    """
    if series.dtype.is_temporal():
        return _temporal_ms(series, zone) if unit == "iso" else _nulls(len(series))
    if unit == "iso":
        return (
            _iso_ms(series.cast(pl.String), zone)
            if series.dtype == pl.String
            else _nulls(len(series))
        )
    if series.dtype.is_integer() or series.dtype == pl.String:
        whole = series.cast(pl.Int64, strict=False)
        if whole.null_count() == series.null_count():
            return _scaled_whole(whole, unit)
    numbers = series.cast(pl.Float64, strict=False) * MS_PER_UNIT[unit]
    return numbers.set(~numbers.is_finite(), None).floor().cast(pl.Int64, strict=False)


def check_unit(
    series: pl.Series, column: TimeColumn, zone: str, now_ms: int, where: str
) -> pl.Series:
    """Return the times of a column, refusing a unit that most of its values contradict.

    Raises:
        DataError: no time, or less than half, lies between 1990 and tomorrow, and another unit
            makes sense.
    """
    times = times_ms(series, column.unit, zone)
    present = len(series) - series.null_count()
    if 2 * _num_sensible(times, now_ms) >= present:
        return times
    for unit in _UNITS:
        found = times_ms(series, unit, zone)
        if unit != column.unit and 2 * _num_sensible(found, now_ms) >= present:
            sensible = found.filter(_sensible(found, now_ms))
            first, last = (_utc_day(int(value)) for value in (sensible.min(), sensible.max()))  # type: ignore[arg-type]
            raise DataError(
                f"{where}: column '{column.column}' read in the unit '{column.unit}' gives no "
                f"times between 1990 and tomorrow (first value: {series.drop_nulls()[0]}); in the "
                f"unit '{unit}' it gives {first} to {last}; set unit = \"{unit}\"; "
                "nothing was written"
            )
    return times


def outcomes(series: pl.Series, rule: OutcomeColumn) -> pl.Series:
    """Return whether each row is a positive, `Boolean`, null where the rule cannot tell."""
    if rule.values is not None:
        wanted = [_plain(value) for value in rule.values]
        return id_text(series).str.to_lowercase().is_in(wanted).fill_null(value=False)
    if rule.threshold is not None:
        return series.cast(pl.Float64, strict=False) >= rule.threshold
    text = id_text(series).str.strip_chars().str.to_lowercase()
    names = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    return text.replace_strict(names, default=None, return_dtype=pl.Boolean)


def day_text(series: pl.Series) -> pl.Series:
    """Return a day column as `2022-04-25`, null where a value is no day."""
    if series.dtype.is_temporal():
        return series.cast(pl.Date).cast(pl.String)
    text = id_text(series).str.strip_chars()
    compact = text.str.to_date("%Y%m%d", strict=False).set(text.str.len_bytes() != 8, None)
    dashed = text.str.to_date("%Y-%m-%d", strict=False)
    return compact.zip_with(compact.is_not_null(), dashed).cast(pl.String)


def local_day(times: pl.Series, zone: str) -> pl.Series:
    """Return the local day of UTC milliseconds as `2022-04-25`."""
    instants = times.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")
    return instants.dt.convert_time_zone(zone).dt.date().cast(pl.String)


def hash_texts(texts: pl.Series) -> pl.Series:
    """Return xxh3_64 of each text, `UInt64`.

    Two different texts among n share a hash with a chance of about n**2 / 2**65: 3e-8 for a
    million events, 3 % for a billion; each such pair loses one event.
    """
    hashed = [xxhash.xxh3_64_intdigest(value) for value in texts.cast(pl.Binary).to_list()]
    return pl.Series(hashed, dtype=pl.UInt64)


def hash_rows(frame: pl.DataFrame) -> pl.Series:
    """Return a hash of every whole row, `UInt64`; columns in any order, nulls as if not there."""
    parts = [
        pl.concat_str(
            [pl.lit(f"{name}\x1f"), pl.col(name).cast(pl.String), pl.lit("\x1e")]
        ).fill_null("")
        for name in sorted(frame.columns)
    ]
    return hash_texts(frame.select(row=pl.concat_str(parts))["row"])


def _plain(value: str | int | bool) -> str:
    return str(value).lower()


def _nulls(length: int) -> pl.Series:
    return pl.Series([None] * length, dtype=pl.Int64)


def _scaled_whole(whole: pl.Series, unit: TimeUnit) -> pl.Series:
    """Scale exactly; a product beyond 64 bits is no time."""
    if unit == "s":
        return whole.set(whole.abs() > 2**53, None) * 1000
    return {"ms": whole, "us": whole // 1000, "ns": whole // 1_000_000}[unit]


def _temporal_ms(series: pl.Series, zone: str) -> pl.Series:
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("ms"))
    if getattr(series.dtype, "time_zone", None) is None:
        series = _localised(series.cast(pl.Datetime("ms")), zone)
    return series.dt.epoch("ms")


def _localised(naive: pl.Series, zone: str) -> pl.Series:
    return naive.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def _iso_ms(texts: pl.Series, zone: str) -> pl.Series:
    """Parse ISO 8601, with or without offset, with a blank or T between date and time."""
    tidy = texts.str.strip_chars().str.replace(" ", "T").str.replace("[zZ]$", "+00:00")
    parsed = _nulls(len(texts))
    for form in (*_OFFSET_FORMATS, *_LOCAL_FORMATS):
        if parsed.null_count() == texts.null_count():
            break
        aware = form in _OFFSET_FORMATS
        found = tidy.str.to_datetime(
            form, time_unit="ms", time_zone="UTC" if aware else None, strict=False
        )
        found = found if aware else _localised(found, zone)
        parsed = parsed.zip_with(parsed.is_not_null(), found.dt.epoch("ms"))
    return parsed


def _sensible(times: pl.Series, now_ms: int) -> pl.Series:
    return times.is_between(EARLIEST_MS, now_ms + MS_PER_DAY).fill_null(value=False)


def _num_sensible(times: pl.Series, now_ms: int) -> int:
    return int(_sensible(times, now_ms).sum())


def _utc_day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).date().isoformat()
