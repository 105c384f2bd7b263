"""The first days of an import as an import of their own, for whoever lets the rest happen again."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from twotower.data.days import ImportedData
from twotower.data.import_manifest import import_digest
from twotower.durable import replace_file
from twotower.errors import DataError

__all__ = ["copy_days_before"]


def copy_days_before(data: ImportedData, data_path: Path, first: str) -> ImportedData:
    """Make the days of `data` before `first` the import below another data folder.

    The tables of users and items and the history go along whole: they carry no times.

    Args:
        data: the import that is copied.
        data_path: a data folder without an import.
        first: first day that is left out.

    Raises:
        DataError: no day is before it.
    """
    manifest = data.manifest
    days = {day: entry for day, entry in manifest.days.items() if day < first}
    if not days:
        raise DataError(f"expected imported days before {first}, found none; nothing was copied")
    files = {name: entry for name, entry in manifest.files.items() if _is_before(name, first)}
    digest = import_digest(manifest.table_schema, days, files)
    folder = data_path / "imported" / digest
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data.folder / name, folder / name)
    copied = msgspec.structs.replace(manifest, digest=digest, days=days, files=files)
    replace_file(folder / "import.json", msgspec.json.encode(copied))
    replace_file(folder.parent / "CURRENT", digest.encode())
    return ImportedData.open(data_path)


def _is_before(name: str, first: str) -> bool:
    """Return whether a file is of no day, or of one before `first`."""
    path = Path(name)
    return len(path.parts) == 1 or path.stem < first
