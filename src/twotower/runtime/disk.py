"""How much of the disk a project takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

__all__ = ["DiskState", "disk_state"]


class DiskState(msgspec.Struct, frozen=True, kw_only=True):
    """The disk of the data folder."""

    free_bytes: int
    used_bytes: dict[str, int]
    """By folder of the data folder."""


def disk_state(data_path: Path) -> DiskState:
    """Look at every file once; a data folder that is not there takes nothing."""
    folder = next(path for path in (data_path, *data_path.parents) if path.is_dir())
    parts = [path for path in sorted(data_path.glob("*")) if path.is_dir()]
    return DiskState(
        free_bytes=shutil.disk_usage(folder).free,
        used_bytes={path.name: _size_bytes(path) for path in parts},
    )


def _size_bytes(folder: Path) -> int:
    """Return the bytes of all files below; what disappears meanwhile counts as nothing."""
    paths = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(map(_file_bytes, paths))


def _file_bytes(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
