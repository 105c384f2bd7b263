"""Source tables: CSV, gzip CSV, Parquet, or tables of Python, as polars frames with their origin.

CSV columns stay text, so that `007` stays `007` and every later step decides on the whole column.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from twotower.data.import_report import SAMPLE_ROWS, FileReport, RejectedRow, Rejection
from twotower.errors import ConfigError, DataError, suggestion

__all__ = ["SourceTable", "Sources", "as_frame"]

_CSV: Final = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_PARQUET: Final = (".parquet", ".pq")


class SourceTable(NamedTuple):
    """One file or table, with the columns the configuration names checked to be there."""

    name: str
    frame: pl.DataFrame
    first_line: int | None
    """Line of the first row where the source has lines."""
    named: tuple[str, ...]
    """The columns that the configuration names."""

    def report(self) -> FileReport:
        """Return the file's line of the report."""
        return FileReport(name=self.name, rows=len(self.frame))

    def rejections(self, reasons: pl.Series) -> list[Rejection]:
        """Return the rejected rows by reason; `reasons` is null where a row is good."""
        found = []
        for reason in reasons.drop_nulls().unique(maintain_order=True).to_list():
            rows = (reasons == reason).fill_null(value=False).arg_true()
            sample = [self._row(int(row)) for row in rows.head(SAMPLE_ROWS)]
            found.append(Rejection(reason=reason, rows=len(rows), sample=tuple(sample)))
        return found

    def _row(self, index: int) -> RejectedRow:
        row = self.frame.row(index, named=True)
        values = {name: None if row[name] is None else str(row[name]) for name in self.named}
        line = None if self.first_line is None else self.first_line + index
        return RejectedRow(file=self.name, line=line, values=values)


class Sources(NamedTuple):
    """The files of one part of the configuration (`events`, `users`, ...), or a table instead."""

    part: str
    root: Path
    files: str | tuple[str, ...]
    columns: Mapping[str, str]
    """Setting, as `user_id`, to the column that it names."""
    table: object = None
    """A table of Python that takes the place of the files."""

    def read(self) -> Iterator[SourceTable]:
        """Yield every source in the order of the list and, within a glob, of the names.

        Raises:
            ConfigError: there are no files and no table.
            DataError: no file matches, a file is unreadable, or a column is missing.
        """
        named = tuple(dict.fromkeys(self.columns.values()))
        if self.table is not None:
            name = f"{self.part} (table)"
            yield SourceTable(name, self._checked(name, as_frame(self.table)), None, named)
            return
        for path in self._paths():
            name = self._name(path)
            first_line = None if path.name.lower().endswith(_PARQUET) else 2
            yield SourceTable(name, self._checked(name, _read(path, name)), first_line, named)

    def _paths(self) -> list[Path]:
        patterns = (self.files,) if isinstance(self.files, str) else self.files
        if not patterns:
            raise ConfigError(
                f"$.{self.part}.files is missing: name the files in the configuration, or hand "
                "the table over in Python with import_tables"
            )
        found: dict[Path, None] = {}
        for pattern in patterns:
            matches = sorted(glob.glob(str(self.root / pattern), recursive=True))
            if not matches:
                raise DataError(
                    f"$.{self.part}.files: no file matches '{pattern}' in {self.root}; "
                    "nothing was written"
                )
            found.update(dict.fromkeys(Path(match) for match in matches))
        return list(found)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _checked(self, name: str, frame: pl.DataFrame) -> pl.DataFrame:
        for setting, column in self.columns.items():
            if column not in frame.columns:
                raise DataError(
                    f"{name}: no column '{column}', which $.{self.part}.{setting} names; columns: "
                    f"{', '.join(frame.columns)}{suggestion(column, frame.columns) or ';'} "
                    "nothing was written"
                )
        return frame


def as_frame(table: object) -> pl.DataFrame:
    """Return a polars, pandas or Arrow table as a polars frame.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if isinstance(table, pl.DataFrame):
        return table
    if type(table).__module__.split(".")[0] == "pandas":
        return pl.from_pandas(table)
    if hasattr(table, "__arrow_c_stream__"):
        return pl.DataFrame(table)
    raise DataError(
        f"expected a polars, pandas or Arrow table, found {type(table).__name__}; "
        "nothing was written"
    )


def _read(path: Path, name: str) -> pl.DataFrame:
    lowered = path.name.lower()
    if not lowered.endswith(_CSV + _PARQUET):
        raise DataError(
            f"{name}: expected a file ending in {', '.join(_CSV + _PARQUET)}; nothing was written"
        )
    try:
        if lowered.endswith(_PARQUET):
            return pl.read_parquet(path, glob=False)
        separator = "\t" if ".tsv" in lowered else ","
        return pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(f"{name}: cannot be read: {first}; nothing was written") from error
