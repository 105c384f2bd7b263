"""The imported folder: whole versions named by their content, and one pointer to the live one.

```
<data_dir>/imported/CURRENT              name of the live version, replaced by one atomic rename
<data_dir>/imported/<digest>/import.json
                            /days/2022-04-25.parquet  users.parquet  items.parquet  history.parquet
                            /eliminated/2022-04-25.parquet
```

A version is written aside, every file is fsynced, and only then the pointer moves, so that a
reader finds the earlier import or the new one, never a part of one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import polars as pl

from twotower.data.import_manifest import (
    ImportedFile,
    ImportManifest,
    check_file,
    import_digest,
    read_manifest,
)
from twotower.data.import_report import ImportReport
from twotower.data.schema import IMPORT_FORMAT_VERSION, DayEntry, ImportedSchema
from twotower.durable import digest_file, fsync_file, fsync_folder, replace_file
from twotower.errors import CorruptArtifact, DataError

__all__ = ["write_import"]


def write_import(
    imported: Path,
    tables: Mapping[str, pl.DataFrame],
    schema: ImportedSchema,
    days: dict[str, DayEntry],
    report: ImportReport,
) -> ImportReport:
    """Write `tables` as a version, make it live and remove the earlier one.

    Args:
        imported: the folder of all versions.
        tables: file name below the version's folder to its content.
        schema: kinds of IDs and the time zone.
        days: what to know of each day.
        report: the import's report so far.

    Returns:
        The report with its digest and whether anything changed. Where the live version holds the
        same data already nothing is written.

    Raises:
        DataError: another import is running, or the disk is full. The live import stays.
    """
    try:
        imported.mkdir(parents=True, exist_ok=True)
        with _only_writer(imported), _staging(imported) as staging:
            return _write(imported, staging, tables, schema, days, report)
    except OSError as error:
        raise DataError(
            f"the import could not be written: {error}; the earlier import is still live"
        ) from error


def _write(
    imported: Path,
    staging: Path,
    tables: Mapping[str, pl.DataFrame],
    schema: ImportedSchema,
    days: dict[str, DayEntry],
    report: ImportReport,
) -> ImportReport:
    files = _write_tables(staging, tables)
    digest = import_digest(schema, days, files)
    if _is_live(imported, digest):
        return msgspec.structs.replace(report, digest=digest, changed=False)
    report = msgspec.structs.replace(report, digest=digest, changed=True)
    manifest = ImportManifest(
        format_version=IMPORT_FORMAT_VERSION,
        digest=digest,
        table_schema=schema,
        days=days,
        files=files,
        report=msgspec.Raw(msgspec.json.encode(report)),
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    replace_file(staging / "import.json", encoded)
    for folder in {(staging / name).parent for name in tables} | {staging}:
        fsync_folder(folder)
    _make_live(imported, staging, digest)
    _remove_others(imported, digest)
    return report


@contextmanager
def _only_writer(imported: Path) -> Iterator[None]:
    with (imported / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another import into {imported} is running; the live import is unchanged; "
                "wait for it and import again"
            ) from None
        yield


@contextmanager
def _staging(imported: Path) -> Iterator[Path]:
    """Give an empty folder that is removed unless it was renamed."""
    staging = imported / f".staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_tables(staging: Path, tables: Mapping[str, pl.DataFrame]) -> dict[str, ImportedFile]:
    """Write every table; return what the manifest says of its file."""
    files = {}
    for name in sorted(tables):
        path = staging / name
        path.parent.mkdir(exist_ok=True)
        _write_table(tables[name], path)
        fsync_file(path)
        files[name] = ImportedFile(*digest_file(path))
    return files


def _write_table(table: pl.DataFrame, path: Path) -> None:
    try:
        table.write_parquet(path, compression="zstd", statistics=True)
    except pl.exceptions.PolarsError as error:  # also what a full disk looks like from there
        raise OSError(errno.EIO, f"polars could not write: {error}", str(path)) from error


def _is_live(imported: Path, digest: str) -> bool:
    """Return whether the live version is `digest` and all its files are there, unaltered."""
    try:
        live = read_manifest(imported)
        if live is None or live.digest != digest:
            return False
        for name, expected in live.files.items():
            check_file(imported / digest, name, expected)
    except CorruptArtifact:
        return False  # the new version replaces what is damaged
    return True


def _make_live(imported: Path, staging: Path, digest: str) -> None:
    """Move the version to its name and the pointer to the version."""
    target = imported / digest
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    fsync_folder(imported)
    replace_file(imported / "CURRENT", digest.encode())


def _remove_others(imported: Path, live: str) -> None:
    for path in imported.iterdir():
        if path.is_dir() and path.name != live:
            shutil.rmtree(path, ignore_errors=True)
