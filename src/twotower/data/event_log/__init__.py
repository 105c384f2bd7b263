"""The event log: where every event waits, in order and durably, until it was learned from."""

from __future__ import annotations

from pathlib import Path

from twotower.data.event_log.interface import Appended, Bounds, EventLog, Fate
from twotower.data.event_log.settings import EventLogSettings
from twotower.data.events import IdKinds

__all__ = [
    "Appended",
    "Bounds",
    "EventLog",
    "EventLogSettings",
    "Fate",
    "has_event_log",
    "open_event_log",
]


def open_event_log(
    data_path: Path,
    settings: EventLogSettings | None = None,
    id_kinds: IdKinds | None = None,
) -> EventLog:
    """Open the log of a project, making it where it is missing.

    Args:
        data_path: the project's data folder.
        settings: how events are kept.
        id_kinds: what the project's IDs are; None where only the first event can tell.

    Raises:
        DataError: the log holds IDs of another kind.
        CorruptArtifact: the file is no event log, or of a newer format.
        NotReady: it cannot be opened.
    """
    from twotower.data.event_log.sqlite import SqliteEventLog

    settings = settings or EventLogSettings()
    return SqliteEventLog(_path(data_path), settings.lock_timeout_s, id_kinds)


def has_event_log(data_path: Path) -> bool:
    """Return whether a log was made already; whoever only reads does not make one."""
    return _path(data_path).exists()


def _path(data_path: Path) -> Path:
    return data_path / "events" / "log.sqlite"
