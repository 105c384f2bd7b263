"""Why the increments over a generation stopped, in a file of their folder, for `twotower status`.

Nothing is decided by it: a process that begins over that generation tries again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from twotower.durable import read_regular, replace_file
from twotower.publishing.manifest import check_name, read_versioned

__all__ = [
    "INCREMENTS",
    "IncrementStop",
    "clear_stop",
    "increments_folder",
    "note_stop",
    "read_stop",
]

INCREMENTS: Final = "increments"
_FORMAT_VERSION: Final = 1
_NAME: Final = "stopped.json"
_MAX_BYTES: Final = 1 << 20


class IncrementStop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file `stopped.json`."""

    format_version: int = _FORMAT_VERSION
    generation: str
    offset: int
    """Of the first joined example that was not learned: everything before it is stored."""
    at_ms: int
    reason: str
    """What was expected and found, what still holds, and what to do."""


def increments_folder(data_path: Path, generation: str) -> Path:
    """Return where the increments over a generation are kept; it need not exist."""
    return data_path / INCREMENTS / check_name(generation)


def note_stop(data_path: Path, stop: IncrementStop) -> None:
    """Store why the increments stopped; the caller holds their lock."""
    path = increments_folder(data_path, stop.generation) / _NAME
    replace_file(path, msgspec.json.format(msgspec.json.encode(stop), indent=2) + b"\n")


def clear_stop(data_path: Path, generation: str) -> None:
    """Forget it: they go on; the caller holds their lock."""
    (increments_folder(data_path, generation) / _NAME).unlink(missing_ok=True)


def read_stop(data_path: Path, generation: str) -> IncrementStop | None:
    """Return why the increments over a generation stopped, None where they did not.

    Raises:
        CorruptArtifact: the file is damaged or of a newer format.
    """
    path = increments_folder(data_path, generation) / _NAME
    if not os.path.lexists(path):
        return None
    content = read_regular(path, _MAX_BYTES)
    return read_versioned(content, IncrementStop, _FORMAT_VERSION, str(path))
