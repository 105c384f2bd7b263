"""One field of a feature specification: its values' rows, its limits, its standardisation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.data.feature_values import (
    MS_PER_DAY,
    is_missing,
    number,
    number_column,
    split_values,
    text_codes,
    text_lists,
    time_column,
    time_ms,
)
from twotower.data.settings import FeatureSettings

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Field",
    "FieldRole",
    "FloatArray",
    "RowArray",
    "fit_numbers",
    "new_values",
    "role_of",
    "value_counts",
]

FieldRole = Literal["categorical", "numeric", "multi"]
FloatArray = npt.NDArray[np.float64]
RowArray = npt.NDArray[np.int32]

_MAX_DEVIATIONS = 1e4


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One feature. The numbers are fixed when it is fitted; values are only ever appended."""

    name: str
    settings: FeatureSettings
    role: FieldRole
    """Which array it enters; a numeric feature with quantiles is categorical."""
    missing_row: int
    """Row of missing and unseen values, -1 for a numeric field."""
    values: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    """The row of each value."""
    mean: float = 0.0
    std: float = 1.0
    limits: tuple[float, ...] | None = None
    """Quantile: `[buckets - 1]` ascending; bucket `b` holds `limits[b - 1] <= x < limits[b]`."""

    def with_values(self, added: list[str], first_row: int) -> Field:
        """Return the field with more values, in rows from `first_row` on."""
        rows = range(first_row, first_row + len(added))
        return msgspec.structs.replace(
            self, values=(*self.values, *added), rows=(*self.rows, *rows)
        )

    def bucket_names(self) -> list[str]:
        """Return the readable limits of the buckets, none where the field has no quantiles."""
        if self.limits is None:
            return []
        edges = [f"{limit:.10g}" for limit in self.limits]
        if not edges:
            return ["any"]
        inner = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [f"below {edges[0]}", *inner, f"{edges[-1]} and above"]

    def bucket_rows(self, numbers: FloatArray) -> RowArray:
        """Return the row of each number's bucket, the missing row for NaN: `int32[n]`."""
        bucket = np.searchsorted(np.asarray(self.limits), numbers, side="right")
        rows = np.asarray(self.rows, np.int32)[np.minimum(bucket, len(self.rows) - 1)]
        return np.where(np.isnan(numbers), np.int32(self.missing_row), rows)

    def is_missing(self, value: object) -> bool:
        """Return whether a value says nothing that this field could use."""
        if self.role == "multi":
            return not split_values(value, self.settings.separator)
        if self.settings.kind == "categorical":
            return is_missing(value)
        return math.isnan(self.measure(value))

    def measure(self, value: object) -> float:
        """Return one value as a number, or as UTC milliseconds; NaN where it is neither."""
        if self.settings.kind == "timestamp":
            return time_ms(value, self.settings.unit)
        return number(value)

    def measure_column(self, series: pl.Series) -> FloatArray:
        """Return `measure` of every value of a column: `float64[N]`."""
        if self.settings.kind == "timestamp":
            return time_column(series, self.settings.unit)
        return number_column(series)

    def scaled(self, numbers: FloatArray, as_of_ms: int) -> FloatArray:
        """Return the standardised numbers, NaN where they are missing: `float64[n]`.

        They are cut at 10,000 standard deviations, so that an outlier stays a float32.
        """
        scaled = (_transformed(self.settings, numbers, as_of_ms) - self.mean) / self.std
        return np.clip(scaled, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)


def role_of(settings: FeatureSettings) -> FieldRole:
    """Return which array a feature enters."""
    if settings.kind == "multi":
        return "multi"
    coded = settings.kind == "categorical" or settings.transform == "quantile"
    return "categorical" if coded else "numeric"


class _Numbers(TypedDict, total=False):
    mean: float
    std: float
    limits: tuple[float, ...]


def _transformed(settings: FeatureSettings, numbers: FloatArray, as_of_ms: float) -> FloatArray:
    """Return numbers before standardisation: ages as log1p of days, log as signed log1p."""
    if settings.kind == "timestamp":
        return np.log1p(np.maximum(as_of_ms - numbers, 0.0) / MS_PER_DAY)
    if settings.transform == "log":
        return np.copysign(np.log1p(np.abs(numbers)), numbers)
    return numbers


def fit_numbers(
    settings: FeatureSettings, series: pl.Series | None, as_of_ms: int | None
) -> _Numbers:
    """Return what a column fixes for good: bucket limits, or mean and standard deviation."""
    if settings.kind not in ("numeric", "timestamp"):
        return {}
    timed = settings.kind == "timestamp"
    found = np.zeros(0)
    if series is not None:
        found = time_column(series, settings.unit) if timed else number_column(series)
    found = found[~np.isnan(found)]
    if settings.transform == "quantile":
        return {"limits": _quantile_limits(found, settings.buckets)}
    if not len(found):
        return {}
    as_of = float(found.max()) if as_of_ms is None else float(as_of_ms)
    values = _transformed(settings, found, as_of)
    return {"mean": float(values.mean()), "std": float(values.std()) or 1.0}


def _quantile_limits(found: FloatArray, buckets: int) -> tuple[float, ...]:
    """Return distinct limits above the smallest value, so that no bucket is empty."""
    if not len(found):
        return ()
    limits = np.unique(np.quantile(found, np.linspace(0, 1, buckets + 1)[1:-1], method="higher"))
    return tuple(limits[limits > found.min()].tolist())


def value_counts(settings: FeatureSettings, series: pl.Series) -> Mapping[str, int]:
    """Return how often each canonical value of a coded column occurs."""
    if settings.kind == "multi":
        uniques, codes, _ = text_lists(series, settings.separator)
    else:
        uniques, codes = text_codes(series)
    counts = np.bincount(codes, minlength=len(uniques) + 1)
    return Counter(dict(zip(uniques, counts.tolist(), strict=False)))


def new_values(counts: Mapping[str, int], known: Mapping[str, int], min_count: int) -> list[str]:
    """Return the values that are frequent enough and not known yet, in ascending order."""
    return sorted(v for v, count in counts.items() if count >= min_count and v not in known)
