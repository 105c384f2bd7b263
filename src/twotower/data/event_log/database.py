"""SQLite as this package uses it: WAL, an fsync for every commit, errors in the house's words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from twotower.durable import exclusive, fsync_folder
from twotower.errors import CorruptArtifact, NotReady

__all__ = ["open_database", "reported", "transaction"]

_APPLICATION: Final = 0x7477_7472  # "twtr", in the header of the file


def open_database(
    path: Path, schema: str, format_version: int, lock_timeout_s: float
) -> sqlite3.Connection:
    """Open `path`, making it and its folder durably where they are missing.

    The connection commits by itself outside `transaction`. Threads may use it one at a time.

    Raises:
        CorruptArtifact: the file is no such database, or of a newer format.
        NotReady: it cannot be opened.
    """
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_name(f".{path.name}.lock"), f"making {path}", lock_timeout_s):
            is_new = not path.exists()
            database = sqlite3.connect(
                path, timeout=lock_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(database, path, schema, format_version)
            except BaseException:
                database.close()
                raise
            if is_new:
                fsync_folder(path.parent)
                fsync_folder(path.parent.parent)
            return database


def _prepare(database: sqlite3.Connection, path: Path, schema: str, format_version: int) -> None:
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if found > format_version:
        raise CorruptArtifact(
            f"expected format {format_version} or older in {path}, found {found}; it was not "
            "opened and is unchanged; upgrade twotower"
        )
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if found == 0:
        database.executescript(
            f"BEGIN IMMEDIATE; {schema} PRAGMA application_id = {_APPLICATION};"
            f"PRAGMA user_version = {format_version}; COMMIT;"
        )


@contextmanager
def transaction(
    database: sqlite3.Connection, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    """Do all of a block or nothing: committed and on the disk at its end, undone by an error."""
    database.execute(f"BEGIN {kind}")
    try:
        yield database
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn errors of the database and of the disk into ours."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise NotReady(
            f"{path} cannot be used: {error}; nothing was acknowledged, what was acknowledged "
            "before is there; free the disk or wait for the other writer, then send again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise CorruptArtifact(
            f"expected a database at {path}, found: {error}; it is unchanged; restore it from a "
            "backup"
        ) from error
