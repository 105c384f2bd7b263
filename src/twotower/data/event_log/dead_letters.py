"""Rows that were refused, kept with the reason, and how many rows met which fate.

A database of its own beside the log, the same for every engine. Bounded: the newest stay. The
counts are never forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from twotower.data.event_log.database import open_database, reported, transaction
from twotower.data.event_log.settings import EventLogSettings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DeadLetter", "DeadLetters", "has_dead_letters"]

_FORMAT_VERSION: Final = 1
_KEPT_BYTES: Final = 4096
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rejected (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    received_ms INTEGER NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    raw BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS counts (code TEXT PRIMARY KEY, rows INTEGER NOT NULL);
"""
_COUNT: Final = """
INSERT INTO counts VALUES (?, ?) ON CONFLICT (code) DO UPDATE SET rows = rows + excluded.rows
"""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was refused."""

    number: int
    """Counts the rejected rows from 1; those that are gone too."""
    received_ms: int
    """When it arrived, in UTC milliseconds since 1970."""
    code: str
    """Why, in one word: invalid, conflict, too_many_names, too_large."""
    reason: str
    """Why, in a sentence."""
    row: str
    """As it was sent, its first 4,096 bytes; what is no UTF-8 is shown as U+FFFD."""


class DeadLetters:
    """The dead-letter table of a project. Safe for threads and for several processes."""

    def __init__(self, data_path: Path, settings: EventLogSettings) -> None:
        """Open `<data_path>/events/rejected.sqlite`, making it where it is missing.

        Raises:
            CorruptArtifact: the file is something else, or of a newer format.
            NotReady: it cannot be opened.
        """
        self._path = _path(data_path)
        self._keep_rows = settings.rejected_rows
        self._database = open_database(
            self._path, _SCHEMA, _FORMAT_VERSION, settings.lock_timeout_s
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(
        self,
        rejected: Sequence[tuple[str, str, bytes]],
        counts: Mapping[str, int],
        received_ms: int,
    ) -> None:
        """Keep rows that were refused and count all fates; durable when this returns.

        Args:
            rejected: code, reason and the row as it was sent.
            counts: rows by fate, those of `rejected` included.
            received_ms: when they arrived.

        Raises:
            NotReady: the disk is full or fails; nothing of this call was kept.
        """
        rows = [(received_ms, code, reason, raw[:_KEPT_BYTES]) for code, reason, raw in rejected]
        with self._lock, reported(self._path), transaction(self._database) as database:
            database.executemany(
                "INSERT INTO rejected (received_ms, code, reason, raw) VALUES (?, ?, ?, ?)", rows
            )
            database.executemany(_COUNT, counts.items())
            database.execute(
                "DELETE FROM rejected WHERE number <= (SELECT max(number) FROM rejected) - ?",
                (self._keep_rows,),
            )

    def newest(self, limit: int) -> list[DeadLetter]:
        """Return the newest rejected rows, the newest first."""
        with self._lock, reported(self._path):
            rows = self._database.execute(
                "SELECT number, received_ms, code, reason, raw FROM rejected "
                "ORDER BY number DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            DeadLetter(
                number=number,
                received_ms=received_ms,
                code=code,
                reason=reason,
                row=raw.decode(errors="replace"),
            )
            for number, received_ms, code, reason, raw in rows
        ]

    def counts(self) -> dict[str, int]:
        """Return how many rows met each fate but that of being stored, since the beginning."""
        with self._lock, reported(self._path):
            rows = self._database.execute("SELECT code, rows FROM counts ORDER BY code").fetchall()
        return dict(rows)


def has_dead_letters(data_path: Path) -> bool:
    """Return whether a row was ever refused; whoever only reads does not make the table."""
    return _path(data_path).exists()


def _path(data_path: Path) -> Path:
    return data_path / "events" / "rejected.sqlite"
