"""What the supervisor says of itself: `runtime/status.json`, replaced whole at every change.

It is true only while the supervisor runs, which its lock tells: the kernel releases that however
the supervisor ends, so a file that a killed one left is never taken for the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from twotower.runtime.files import read_json, runtime_folder, write_json

__all__ = [
    "NightState",
    "ProcessState",
    "ProcessStatus",
    "RuntimeStatus",
    "read_status",
    "write_status",
]

ProcessState = Literal["waiting", "running", "stopped"]
_FORMAT_VERSION: Final = 1
_NAME: Final = "status.json"


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process that is kept alive."""

    name: str
    command: list[str]
    state: ProcessState = "waiting"
    pid: int | None = None
    started_at_ms: int | None = None
    """Of the last start, None before the first."""
    restarts: int = 0
    last_exit: str | None = None
    """Exit code or signal of the last one that ended."""
    last_exit_at_ms: int | None = None
    next_start_at_ms: int | None = None

    def changed(self, **fields: Any) -> ProcessStatus:
        """Return a copy with other values."""
        return msgspec.structs.replace(self, **fields)


class NightState(msgspec.Struct, frozen=True, kw_only=True):
    """How the nights stand; what became of the last ones is in `nights.json`."""

    next_due_at_ms: int
    waits_for: str | None = None
    """A day that is due and whose examples are not complete yet."""
    running: str | None = None
    """The step that runs: full, prune, …"""
    day: str | None = None
    """The day whose night runs."""
    pid: int | None = None


class RuntimeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    format_version: int = _FORMAT_VERSION
    pid: int
    state: Literal["running", "stopping", "stopped"]
    started_at_ms: int
    written_at_ms: int
    processes: list[ProcessStatus]
    night: NightState | None = None
    """None where no nights are run."""


def write_status(data_path: Path, status: RuntimeStatus) -> None:
    """Replace the file; the caller holds the supervisor's lock."""
    write_json(runtime_folder(data_path) / _NAME, status)


def read_status(data_path: Path) -> RuntimeStatus | None:
    """Return what the last supervisor wrote, None where none ever ran.

    Raises:
        CorruptArtifact: the file is damaged or of a newer format.
    """
    return read_json(runtime_folder(data_path) / _NAME, RuntimeStatus, _FORMAT_VERSION)
