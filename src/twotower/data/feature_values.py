"""Readable feature values to canonical form: the same for a column and for one value of a request.

A canonical text is what a value is compared by: `1`, `1.0` and `"1"` are one category. Numbers
are float64 with NaN for missing, times are UTC milliseconds as float64 with NaN for missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from twotower.data.settings import TimeUnit

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "MAX_NUMBER",
    "MS_PER_DAY",
    "MS_PER_UNIT",
    "flat_values",
    "is_missing",
    "number",
    "number_column",
    "split_values",
    "text",
    "text_codes",
    "text_lists",
    "time_column",
    "time_ms",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_NUMBER: Final = 1e30
MS_PER_DAY: Final = 86_400_000
MS_PER_UNIT: Final = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_WHOLE_FLOAT: Final = re.compile(r"(-?\d+)\.0+")


def is_missing(value: object) -> bool:
    """Return whether a value says nothing: None, NaN, or text that is empty or blank."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def text(value: object) -> str | None:
    """Return the canonical text of a categorical value, None where it is missing."""
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    written = str(value).strip()
    whole = _WHOLE_FLOAT.fullmatch(written)
    return whole[1] if whole else written


def split_values(value: object, separator: str) -> list[str]:
    """Return the canonical texts of a multi value: a list, or one text with separators."""
    if isinstance(value, str):
        parts: Iterable[object] = value.split(separator)
    elif isinstance(value, Iterable):
        parts = value
    else:
        parts = [value]
    return [part for part in map(text, parts) if part is not None]


def number(value: object) -> float:
    """Return a number of at most `MAX_NUMBER` in size, NaN where the value is no such number."""
    if isinstance(value, (bool, int, float, str)):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return math.nan
        return found if abs(found) <= MAX_NUMBER else math.nan
    return math.nan


def time_ms(value: object, unit: TimeUnit) -> float:
    """Return UTC milliseconds, NaN where the value is no time.

    Text without an offset is UTC here: a request does not know the project's time zone, and an
    age in days hardly depends on it.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if unit == "iso" and isinstance(value, str):
        try:
            value = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", value.strip()))
        except ValueError:
            return math.nan
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return math.floor(aware.timestamp() * 1000)
    return number(value) * MS_PER_UNIT.get(unit, math.nan)


def text_codes(series: pl.Series) -> tuple[list[str], IntArray]:
    """Return the distinct canonical texts, sorted, and each value's place in them.

    Returns:
        `U` texts, and `int64[N]` codes in `[0, U]`, where `U` stands for missing.
    """
    import polars as pl

    if isinstance(series.dtype, (pl.Categorical, pl.Enum)):
        series = series.cast(pl.String)
    distinct = series.unique().drop_nulls()
    canonical = [text(value) for value in distinct.to_list()]
    uniques = sorted({value for value in canonical if value is not None})
    place = {value: code for code, value in enumerate(uniques)}
    codes = [place.get(value or "", len(uniques)) for value in canonical]
    if not codes:
        return uniques, np.full(len(series), len(uniques), np.int64)
    mapped = series.replace_strict(
        distinct, pl.Series(codes, dtype=pl.Int64), default=len(uniques), return_dtype=pl.Int64
    )
    return uniques, mapped.to_numpy().astype(np.int64, copy=False)


def text_lists(series: pl.Series, separator: str) -> tuple[list[str], IntArray, IntArray]:
    """Return the distinct canonical texts of a multi column, and its values one by one.

    Returns:
        `U` texts; `int64[V]` codes into them; `int64[V]` the row each value belongs to, ascending.
    """
    import polars as pl

    if isinstance(series.dtype, (pl.List, pl.Array)):
        lists = series.cast(pl.List(series.dtype.inner))
    elif series.dtype == pl.String:
        lists = series.str.split(separator)
    else:
        lists = series.reshape((-1, 1)).arr.to_list()
    owners = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
    uniques, codes = text_codes(flat_values(lists))
    present = codes < len(uniques)
    return uniques, codes[present], owners.astype(np.int64)[present]


def flat_values(lists: pl.Series) -> pl.Series:
    """Return the values of a list column one after the other; empty lists give none."""
    return lists.filter(lists.list.len() > 0).explode()


def number_column(series: pl.Series) -> FloatArray:
    """Return `number` of every value of a column, `float64[N]`."""
    import polars as pl

    if series.dtype == pl.String:
        distinct = series.unique().drop_nulls()
        numbers = pl.Series([number(value) for value in distinct.to_list()], dtype=pl.Float64)
        if not len(distinct):
            return np.full(len(series), np.nan)
        series = series.replace_strict(distinct, numbers, default=None, return_dtype=pl.Float64)
    values = series.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    return np.where(np.abs(values) <= MAX_NUMBER, values, np.nan)


def time_column(series: pl.Series, unit: TimeUnit) -> FloatArray:
    """Return a column as UTC milliseconds, NaN for missing values and for what is no time."""
    import polars as pl

    if series.dtype.is_temporal():
        return number_column(series.cast(pl.Datetime("ms")).to_physical())
    if unit == "iso":
        distinct = series.cast(pl.String).unique().drop_nulls()
        times = pl.Series([time_ms(value, unit) for value in distinct.to_list()], dtype=pl.Float64)
        if not len(distinct):
            return np.full(len(series), np.nan)
        return number_column(
            series.cast(pl.String).replace_strict(
                distinct, times, default=None, return_dtype=pl.Float64
            )
        )
    return number_column(series) * MS_PER_UNIT[unit]
