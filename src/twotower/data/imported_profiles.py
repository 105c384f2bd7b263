"""The imported features of users as readable values, for a store that others read and write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from twotower.data.days import ImportedData
from twotower.data.feature_values import MS_PER_UNIT
from twotower.data.ids import Id
from twotower.data.settings import FeatureSettings, TimeUnit
from twotower.errors import NotReady

if TYPE_CHECKING:
    import polars as pl

__all__ = ["imported_profiles", "readable_profiles"]


def imported_profiles(
    data: ImportedData, features: Mapping[str, FeatureSettings]
) -> tuple[int, Iterator[tuple[Id, dict[str, object]]]]:
    """Return how many users have a row, and each with the features that say something.

    A value is written as a request would give it, so a server that is given it as the stored
    profile encodes it as training did: times in the feature's unit, lists as lists.

    Raises:
        NotReady: the import has no table of users, or was made before a feature was named.
    """
    frame = data.users()
    if frame is None:
        raise NotReady("expected a table of users in the import; name one in [users], import again")
    if absent := [name for name in features if name not in frame.columns]:
        raise NotReady(
            f"expected the feature '{absent[0]}' of users in the import, found "
            f"{frame.columns[1:]}; nothing was written; import again"
        )
    return len(frame), readable_profiles(frame, features)


def readable_profiles(
    frame: pl.DataFrame, features: Mapping[str, FeatureSettings]
) -> Iterator[tuple[Id, dict[str, object]]]:
    """Yield each user of a table with his features, as `imported_profiles` does."""
    columns = [_as_given(frame[name], feature) for name, feature in features.items()]
    table = frame.select("user_id").with_columns(columns)
    return map(_profile, table.iter_rows(named=True))


def _as_given(series: pl.Series, feature: FeatureSettings) -> pl.Series:
    if feature.kind != "timestamp":
        return series
    if feature.unit == "iso":
        return series.dt.strftime("%Y-%m-%dT%H:%M:%S%.3f+00:00")
    return _in_unit(series.dt.epoch("ms"), feature.unit)


def _in_unit(times_ms: pl.Series, unit: TimeUnit) -> pl.Series:
    """Return UTC milliseconds in another unit, whole numbers where that is exact."""
    per_ms = MS_PER_UNIT[unit]
    return times_ms / per_ms if per_ms > 1 else times_ms * round(1 / per_ms)


def _profile(row: dict[str, object]) -> tuple[Id, dict[str, object]]:
    user = row.pop("user_id")
    assert isinstance(user, int | str)
    return user, {name: value for name, value in row.items() if value is not None}
