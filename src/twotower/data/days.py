"""The imported days, read-only: events, users, items and history of the live import."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np

from twotower.data.feature_values import flat_values
from twotower.data.ids import IdKind
from twotower.data.import_manifest import ImportManifest, check_file, read_manifest
from twotower.data.schema import (
    DayEntry,
    DayEvents,
    EventIdArray,
    HistoryLists,
    IdArray,
    IntArray,
)
from twotower.errors import CorruptArtifact, DataError, MissingExtra, NotReady

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "DayEntry",
    "DayEvents",
    "HistoryLists",
    "ImportedData",
    "day_limits_ms",
    "event_digest",
    "exact_shuffle",
    "id_array",
    "mix64",
    "require_polars",
]


def mix64(values: EventIdArray) -> EventIdArray:
    """Return the splitmix64 finaliser of each value: a bijection that spreads every bit."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def event_digest(event_ids: EventIdArray) -> str:
    """Return an order-free digest of a multiset of event IDs, 16 hex digits.

    The sum modulo 2**64 of the mixed IDs: any order gives the same, a row swapped for a copy of
    another changes it (a xor of the IDs would cancel pairs). Digests of disjoint parts add up.
    It finds mistakes; it is not made against an adversary.
    """
    return f"{int(mix64(np.asarray(event_ids, np.uint64)).sum(dtype=np.uint64)):016x}"


def exact_shuffle(n: int, seed: int) -> IntArray:
    """Return a uniformly drawn permutation of `range(n)`, `int64[n]`: every row exactly once."""
    return np.random.default_rng(seed).permutation(n).astype(np.int64, copy=False)


def day_limits_ms(day: str, time_zone: str) -> tuple[int, int]:
    """Return when a local day starts and when the next one does, in UTC milliseconds.

    23 and 25 hours happen. Where midnight does not exist the day starts at the jump.
    """
    zone, first = ZoneInfo(time_zone), date.fromisoformat(day)
    starts = [first, first + timedelta(days=1)]
    start, end = (datetime(d.year, d.month, d.day, tzinfo=zone).timestamp() for d in starts)
    return int(start * 1000), int(end * 1000)


def require_polars(purpose: str) -> None:
    """Raise `MissingExtra` where polars is not installed."""
    if find_spec("polars") is None:
        raise MissingExtra("polars", "data", purpose)


class ImportedData:
    """Read-only view of one import; it stays on the version that was live when it was opened.

    An import that replaces the data removes the older version: reading from this object then
    raises `NotReady`, and opening again gives the new data. Every read compares the file with the
    checksum that was taken when it was imported, and raises `CorruptArtifact` where it differs.
    """

    def __init__(self, folder: Path, manifest: ImportManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.days: tuple[str, ...] = tuple(sorted(manifest.days))
        self.user_id_kind: IdKind = manifest.table_schema.user_id_kind
        self.item_id_kind: IdKind = manifest.table_schema.item_id_kind

    @classmethod
    def open(cls, data_path: Path) -> ImportedData:
        """Open the live import below a project's data folder.

        Raises:
            NotReady: nothing is imported there.
            CorruptArtifact: the pointer or the manifest cannot be understood.
        """
        require_polars("reading imported days")
        manifest = read_manifest(data_path / "imported")
        if manifest is None:
            raise NotReady(f"nothing is imported in {data_path}; run: twotower import")
        return cls(data_path / "imported" / manifest.digest, manifest)

    @property
    def digest(self) -> str:
        """Name of this import: a digest of all its data files."""
        return self.manifest.digest

    def day_entry(self, day: str) -> DayEntry:
        """Return the counts, digests and limits of a day.

        Raises:
            DataError: the day was not imported.
        """
        if day not in self.manifest.days:
            span = f"{self.days[0]} to {self.days[-1]}" if self.days else "no days"
            raise DataError(f"day '{day}' is not among the imported days; imported: {span}")
        return self.manifest.days[day]

    def example_offset(self, day: str) -> int:
        """Return the first example of the example log after a day: 0, where nothing streamed."""
        return 0

    def day_frame(self, day: str) -> pl.DataFrame:
        """Return a day's impressions as a polars frame with the columns `EVENT_COLUMNS`."""
        self.day_entry(day)
        return self._read(f"days/{day}.parquet")

    def day(self, day: str) -> DayEvents:
        """Return a day's impressions as numpy arrays, sorted by time and then event ID."""
        return _as_events(self.day_frame(day))

    def eliminated(self, day: str) -> DayEvents | None:
        """Return the candidates that a stage eliminated that day, None where there are none."""
        self.day_entry(day)
        frame = self._read_optional(f"eliminated/{day}.parquet")
        return None if frame is None else _as_events(frame)

    def users(self) -> pl.DataFrame | None:
        """Return the users' table: `user_id`, the features by name, the display columns."""
        return self._read_optional("users.parquet")

    def items(self) -> pl.DataFrame | None:
        """Return the items' table: `item_id`, the features by name, the display columns."""
        return self._read_optional("items.parquet")

    def history(self) -> HistoryLists | None:
        """Return the past items per user, or None where no history was imported."""
        frame = self._read_optional("history.parquet")
        if frame is None:
            return None
        positives, positive_offsets = _flat(frame["positives"])
        seen, seen_offsets = _flat(frame["seen"])
        timed = "last_time_ms" in frame.columns
        return HistoryLists(
            user_id=id_array(frame["user_id"]),
            positives=positives,
            positive_offsets=positive_offsets,
            seen=seen,
            seen_offsets=seen_offsets,
            last_time_ms=frame["last_time_ms"].fill_null(0).to_numpy() if timed else None,
            before=self.manifest.table_schema.history_before or "",
        )

    def _read_optional(self, name: str) -> pl.DataFrame | None:
        return self._read(name) if name in self.manifest.files else None

    def _read(self, name: str) -> pl.DataFrame:
        import polars as pl

        if not self.folder.is_dir():
            raise NotReady(
                f"{self.folder / name} is gone: a later import replaced it; open the data again"
            )
        path = check_file(self.folder, name, self.manifest.files[name])
        try:
            return pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise CorruptArtifact(
                f"expected the Parquet file that was imported as {path}, found one that cannot be "
                f"read: {error}; import again"
            ) from error


def _as_events(frame: pl.DataFrame) -> DayEvents:
    stage = frame["stage"].to_list() if "stage" in frame.columns else None
    return DayEvents(
        event_id=frame["event_id"].to_numpy(),
        user_id=id_array(frame["user_id"]),
        item_id=id_array(frame["item_id"]),
        event_time_ms=frame["event_time_ms"].to_numpy(),
        outcome=frame["outcome"].to_numpy().astype(np.bool_),
        stage=None if stage is None else np.array(stage, dtype=np.str_),
    )


def id_array(series: pl.Series) -> IdArray:
    """Return a column of IDs in the array form of `twotower.data.ids`."""
    if series.dtype.is_integer():
        return series.to_numpy().astype(np.int64, copy=False)
    width = int(series.str.len_bytes().max() or 1)  # type: ignore[arg-type]
    return np.array([value.encode() for value in series.to_list()], dtype=f"S{width}")


def _flat(lists: pl.Series) -> tuple[IdArray, IntArray]:
    lengths = lists.list.len().to_numpy().astype(np.int64)
    return id_array(flat_values(lists)), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
