"""The supervisor's small JSON files, each replaced whole, each with its format's version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from twotower.durable import fsync_folder, read_regular, replace_file
from twotower.errors import CorruptArtifact

__all__ = ["LOCK", "read_json", "runtime_folder", "write_json"]

LOCK: Final = ".up.lock"
_MAX_BYTES: Final = 1 << 22
T = TypeVar("T")


class _Versioned(msgspec.Struct):
    format_version: int


def runtime_folder(data_path: Path) -> Path:
    """Return the folder of the supervisor's files; it need not exist."""
    return data_path / "runtime"


def write_json(path: Path, value: object) -> None:
    """Make `value` the content of `path`, whole and durable, making its folder where missing."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(path.parent.parent)
    replace_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T], newest: int) -> T | None:
    """Return what `path` holds, None where it is not there.

    Raises:
        CorruptArtifact: it is damaged, or its format is above `newest`.
    """
    if not os.path.lexists(path):
        return None
    content = read_regular(path, _MAX_BYTES)
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if not 1 <= version <= newest:
            raise CorruptArtifact(
                f"{path} has format version {version}, this twotower reads 1 to {newest}; it was "
                "not read; upgrade twotower"
            )
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptArtifact(
            f"{path} is damaged: {error}; nothing else depends on it: remove it"
        ) from error
