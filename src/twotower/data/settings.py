"""Settings of the data: which files hold events, users, items and history, and how to read them.

The keys of the TOML file are the field names here. `files` are paths or globs relative to the
folder of the TOML file; CSV (`.csv`, `.tsv`), gzip CSV (`.csv.gz`) and Parquet are read.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "EntitySource",
    "EventSource",
    "FeatureKind",
    "FeatureSettings",
    "HistorySource",
    "OutcomeColumn",
    "TimeColumn",
    "TimeUnit",
]

FeatureKind = Literal["categorical", "numeric", "multi", "timestamp"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
Files = str | tuple[str, ...]
Name = Annotated[str, msgspec.Meta(min_length=1)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]

_APPLIES_TO: dict[str, tuple[FeatureKind, ...]] = {
    "separator": ("multi",),
    "max_values": ("multi",),
    "transform": ("numeric",),
    "buckets": ("numeric",),
    "min_count": ("categorical", "multi"),
    "unit": ("timestamp",),
}


class TimeColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A column of times."""

    column: Name
    """Its name in the files."""
    unit: TimeUnit
    """s, ms, us, ns: numbers since 1970 in UTC. iso: ISO 8601 text, or a column of timestamps.

    Times without an offset are local times of the project's `time_zone`.
    """


class OutcomeColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The column that says whether an impression became a positive.

    Without `values` and `threshold` it holds 0 and 1, or false and true.
    """

    column: Name
    """Its name in the files."""
    threshold: float | None = None
    """Numbers at or above it are positives."""
    values: tuple[str | int | bool, ...] | None = None
    """These values are positives, all others are not."""

    def __post_init__(self) -> None:
        """Refuse two rules at once."""
        if self.threshold is not None and self.values is not None:
            raise ValueError("expected one of 'threshold' and 'values', found both")


class EventSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log: one row an impression."""

    files: Files = ()
    """A path, a glob, or a list of them; empty where tables are handed over in Python."""
    user_id: Name
    """The column with the user's ID, integers or text."""
    item_id: Name
    """The column with the item's ID, integers or text."""
    time: TimeColumn
    """Event time: when the item was shown."""
    outcome: OutcomeColumn | None = None
    """Absent: the log holds positives only."""
    event_id: Name | None = None
    """Absent: a hash of the whole row is the event's ID, so an exact copy of a row counts once."""
    stage: Name | None = None
    """A column that names the stage that eliminated a candidate before it was shown; empty where
    it was shown. Eliminated rows are no impressions: they are kept aside, for hard negatives."""
    shown_stages: tuple[str, ...] = ()
    """Values of the stage column that mean, as an empty one does, that the item was shown."""
    day: Name | None = None
    """A column of days, 20220425 or 2022-04-25; absent: the local day in `time_zone`."""


class FeatureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One feature of a user or an item."""

    kind: FeatureKind
    """categorical: one value of a list; multi: several; numeric; timestamp: enters as its age."""
    column: Name | None = None
    """Column in the files; absent: the feature's own name."""
    separator: Name = ","
    """multi: between the values of a text column."""
    max_values: PositiveInt = 8
    """multi: values of one entity that are used; the first ones are."""
    transform: Literal["none", "log", "quantile"] = "none"
    """numeric: log for heavy tails; quantile for buckets of equal counts with an embedding each."""
    buckets: Annotated[int, msgspec.Meta(ge=2)] = 16
    """numeric with quantile: number of buckets."""
    min_count: PositiveInt = 1
    """categorical, multi: rarer values share the embedding of missing values."""
    unit: TimeUnit = "iso"
    """timestamp: see `TimeColumn`."""

    def __post_init__(self) -> None:
        """Refuse settings that would change nothing."""
        for name, kinds in _APPLIES_TO.items():
            default = type(self).__struct_defaults__[self.__struct_fields__.index(name) - 1]
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(
                    f"'{name}' is for {' and '.join(kinds)} features, found kind '{self.kind}'"
                )
        if self.transform != "quantile" and self.buckets != 16:
            raise ValueError("'buckets' needs transform = \"quantile\"")


class EntitySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of users or of items, one row each."""

    files: Files = ()
    """A path, a glob, or a list of them."""
    id: Name
    """The ID column."""
    features: dict[str, FeatureSettings] = {}
    """What the tower sees, by name."""
    display: tuple[str, ...] = ()
    """Columns shown beside a result (a title); the tower sees them only if they are features."""


class HistorySource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Past items per user, in time order but without times of their own."""

    files: Files = ()
    """A path, a glob, or a list of them."""
    user_id: Name
    """The column with the user's ID."""
    positives: Name
    """Column with the items of past positives, oldest first."""
    seen: tuple[str, ...] = ()
    """Columns with items the user was shown; the seen list is all of them and the positives."""
    separator: Name = " "
    """Between the items of a list that is text."""
    last_time: TimeColumn | None = None
    """When the user's history ends."""
    before: Day
    """First day that the history does not cover: 2022-04-25."""
