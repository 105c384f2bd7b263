"""The embedded event log: one SQLite file in WAL mode with `synchronous=FULL`.

A commit returns after the fsync of the write-ahead log, so what was acknowledged survives a power
cut; what was not is either there or not, and sending it again is right either way. A row of the
table is a block of events, not an event: see `twotower.data.event_log.blocks`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import xxhash

from twotower.data.event_log.blocks import (
    Block,
    NameCodes,
    columns_of,
    encode_block,
    events_of,
)
from twotower.data.event_log.database import open_database, reported, transaction
from twotower.data.event_log.interface import Appended, Bounds, EventLog, Fate
from twotower.data.event_log.judging import Batch, judge
from twotower.data.event_log.known_events import KnownEvents
from twotower.data.events import Event, EventColumns, IdKinds, kinds_of
from twotower.data.ids import IdKind
from twotower.data.schema import EventIdArray
from twotower.errors import CorruptArtifact, DataError, LineageError
from twotower.failpoints import failpoint

__all__ = ["SqliteEventLog"]

_FORMAT_VERSION: Final = 1
_BLOCK_ROWS: Final = 4096
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    first_offset INTEGER PRIMARY KEY,
    rows INTEGER NOT NULL,
    digest BLOB NOT NULL,
    keys BLOB NOT NULL,
    payloads BLOB NOT NULL,
    columns BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS names (
    side TEXT NOT NULL, code INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (side, code)
);
CREATE TABLE IF NOT EXISTS id_kinds (side TEXT PRIMARY KEY, kind TEXT NOT NULL);
"""
_BOUNDS: Final = """
SELECT (SELECT min(first_offset) FROM blocks),
       (SELECT first_offset + rows FROM blocks ORDER BY first_offset DESC LIMIT 1)
"""
_READ: Final = """
SELECT first_offset, rows, digest, keys, columns FROM blocks
WHERE first_offset >= (SELECT max(first_offset) FROM blocks WHERE first_offset <= ?)
ORDER BY first_offset
"""


class _Call:
    """One append that waits for its turn."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.answer: Appended | None = None
        self.error: BaseException | None = None


class _Stored(NamedTuple):
    """A block as it was found, checked."""

    first_offset: int
    rows: int
    keys: bytes
    block: Block


class SqliteEventLog(EventLog):
    """Threads may share one object; processes open one each."""

    def __init__(self, path: Path, lock_timeout_s: float, id_kinds: IdKinds | None = None) -> None:
        """Open the log at `path`, making it where it is missing.

        Raises:
            DataError: it holds IDs of another kind than `id_kinds`.
            CorruptArtifact: the file is no event log, or of a newer format.
            NotReady: it cannot be opened.
        """
        self.path = path
        self._writer = open_database(path, _SCHEMA, _FORMAT_VERSION, lock_timeout_s)
        self._reader = open_database(path, _SCHEMA, _FORMAT_VERSION, lock_timeout_s)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Call] = []
        self._seen = Bounds(0, 0)
        self._known: KnownEvents | None = None
        self._kinds: IdKinds | None = None
        if id_kinds is not None:
            with reported(path):
                self._settle_kinds(id_kinds)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._reader.close()

    @property
    def id_kinds(self) -> IdKinds | None:
        """What the log's IDs are; None before the first event."""
        if self._kinds is None:
            with self._read_lock, reported(self.path):
                self._kinds = _kinds(self._reader)
        return self._kinds

    def append(self, events: Sequence[Event], received_ms: int) -> Appended:
        """Store what is new; one transaction for all calls that wait."""
        if not events:
            return Appended(self.end(), ())
        self._check_kinds(events)
        call = _Call(Batch.of(events, received_ms))
        with self._queue_lock:
            self._queue.append(call)
        with self._write_lock:  # whoever comes first writes for all that have queued up
            if call.answer is None and call.error is None:
                self._write_queued()
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _check_kinds(self, events: Sequence[Event]) -> None:
        kinds = self.id_kinds
        if kinds is None:
            kinds = self._settle_kinds(kinds_of(events[0]))
        user, item = _type(kinds.user), _type(kinds.item)
        for event in events:
            if type(event.user_id) is not user or type(event.item_id) is not item:
                raise DataError(
                    f"expected {kinds.user} user IDs and {kinds.item} item IDs, found "
                    f"{event.user_id!r} and {event.item_id!r} in the event {event.event_id!r}; "
                    "nothing of this call was stored"
                )

    def _settle_kinds(self, wanted: IdKinds) -> IdKinds:
        """Make `wanted` the log's kinds, unless it has others."""
        with self._write_lock, reported(self.path), transaction(self._writer):
            sides = zip(("user", "item"), wanted, strict=True)
            self._writer.executemany("INSERT OR IGNORE INTO id_kinds VALUES (?, ?)", sides)
            found = _kinds(self._writer)
        if found != wanted:
            raise DataError(
                f"expected a log with {wanted.user} user IDs and {wanted.item} item IDs, found "
                f"{found} in {self.path}; nothing was stored; IDs of one project are of one kind"
            )
        self._kinds = wanted
        return wanted

    def _write_queued(self) -> None:
        with self._queue_lock:
            calls, self._queue = self._queue, []
        try:
            with reported(self.path):
                self._write(calls)
        except BaseException as error:
            for call in calls:
                call.error = error
            if not isinstance(error, Exception):
                raise

    def _write(self, calls: Sequence[_Call]) -> None:
        """Store the new events of all calls in one transaction, then answer the calls."""
        with transaction(self._writer) as database:
            failpoint("events.append.begun")
            known = self._catch_up()
            names, begin, end = _names(database), self._seen.begin, self._seen.end
            judged = judge([call.batch for call in calls], known, names)
            received_ms = np.repeat(
                [call.batch.received_ms for call in calls],
                [fates.count(Fate.STORED) for fates in judged.fates],
            ).astype(np.int64)
            _insert_names(database, names, judged.names)
            kinds = self._kinds
            assert kinds is not None, "an append settles the kinds first"
            for start in range(0, len(judged.events), _BLOCK_ROWS):
                part = slice(start, start + _BLOCK_ROWS)
                columns = encode_block(judged.events[part], received_ms[part], judged.names, kinds)
                _insert_block(
                    database, end + start, judged.keys[part], judged.payloads[part], columns
                )
            failpoint("events.append.written")
        failpoint("events.append.committed")
        end += len(judged.events)
        known.add(judged.keys, judged.payloads)
        self._seen = Bounds(begin, end)
        for call, fates in zip(calls, judged.fates, strict=True):
            call.answer = Appended(end, tuple(fates))

    def _catch_up(self) -> KnownEvents:
        """Return all stored events, those of other processes included. Inside a transaction."""
        bounds = _bounds(self._writer)
        if self._known is None or bounds != self._seen:
            is_longer = self._known is not None and bounds.begin == self._seen.begin
            after = self._seen.end if is_longer else 0
            keys, digests = _stored_keys(self._writer, after)
            if is_longer and self._known is not None:
                self._known.add(keys, digests)
            else:
                self._known = KnownEvents(keys, digests)
            self._seen = bounds
        return self._known

    def read(self, start: int, limit: int, *, with_requests: bool = True) -> EventColumns:
        """Return the columns of whole blocks, cut to what was asked for."""
        stored, names = self._read_blocks(start, limit)
        first = stored[0].first_offset if stored else start
        blocks, keys = [found.block for found in stored], [found.keys for found in stored]
        kinds = self.id_kinds or IdKinds("int", "int")
        columns = columns_of(first, blocks, keys, names, kinds, with_requests=with_requests)
        return columns.take(slice(start - first, start - first + limit))

    def read_events(self, start: int, limit: int) -> list[Event]:
        """Return the same events as they were sent."""
        stored, names = self._read_blocks(start, limit)
        events = [event for found in stored for event in events_of(found.block, names)]
        skipped = start - stored[0].first_offset if stored else 0
        return events[skipped : skipped + limit]

    def _read_blocks(self, start: int, limit: int) -> tuple[list[_Stored], NameCodes]:
        with self._read_lock, reported(self.path), transaction(self._reader, "DEFERRED"):
            bounds = _bounds(self._reader)
            if not bounds.begin <= start <= bounds.end:
                raise LineageError(
                    f"expected an offset from {bounds.begin} to {bounds.end}, found {start}: "
                    f"{'it was forgotten' if start < bounds.begin else 'it is beyond the end'}; "
                    "the log is unchanged; begin again at an offset that it holds"
                )
            stored: list[_Stored] = []
            if start < bounds.end:
                for row in self._reader.execute(_READ, (start,)):
                    stored.append(self._checked(*row))
                    if stored[-1].first_offset + stored[-1].rows >= start + limit:
                        break
            return stored, _names(self._reader)

    def _checked(
        self, first_offset: int, rows: int, digest: bytes, keys: bytes, columns: bytes
    ) -> _Stored:
        if _digest(first_offset, keys, columns) != digest or len(keys) != 8 * rows:
            raise CorruptArtifact(
                f"the events from offset {first_offset} to {first_offset + rows} in {self.path} "
                "were altered after they were stored; the others can be read; restore the file "
                "from a backup, or go on behind them"
            )
        return _Stored(first_offset, rows, keys, msgspec.msgpack.decode(columns, type=Block))

    def bounds(self) -> Bounds:
        """Return the oldest offset and the one after the last."""
        with self._read_lock, reported(self.path):
            return _bounds(self._reader)

    def forget(self, before: int) -> int:
        """Remove whole blocks below `before`; the newest block stays, because it holds the end."""
        with self._write_lock, reported(self.path), transaction(self._writer) as database:
            database.execute(
                "DELETE FROM blocks WHERE first_offset + rows <= ? AND first_offset + rows < ?",
                (before, _bounds(database).end),
            )
            failpoint("events.forget.written")
            return _bounds(database).begin


def _bounds(database: sqlite3.Connection) -> Bounds:
    begin, end = database.execute(_BOUNDS).fetchone()
    return Bounds(begin or 0, end or 0)


def _stored_keys(database: sqlite3.Connection, after: int) -> tuple[EventIdArray, EventIdArray]:
    """Return keys and payloads of the blocks from offset `after` on, `uint64[n]` each."""
    rows = database.execute(
        "SELECT keys, payloads FROM blocks WHERE first_offset >= ? ORDER BY first_offset", (after,)
    ).fetchall()
    keys, digests = (b"".join([row[side] for row in rows]) for side in (0, 1))
    return np.frombuffer(keys, "<u8"), np.frombuffer(digests, "<u8")


def _names(database: sqlite3.Connection) -> NameCodes:
    rows = database.execute("SELECT side, name FROM names ORDER BY side, code").fetchall()
    return NameCodes(*(tuple(n for s, n in rows if s == side) for side in ("outcome", "stage")))


def _insert_names(database: sqlite3.Connection, known: NameCodes, wanted: NameCodes) -> None:
    for side, old, new in zip(("outcome", "stage"), known, wanted, strict=True):
        added = [(side, code, new[code]) for code in range(len(old), len(new))]
        database.executemany("INSERT INTO names VALUES (?, ?, ?)", added)


def _insert_block(
    database: sqlite3.Connection,
    first_offset: int,
    keys: EventIdArray,
    digests: EventIdArray,
    columns: bytes,
) -> None:
    key_bytes = keys.astype("<u8").tobytes()
    digest = _digest(first_offset, key_bytes, columns)
    database.execute(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
        (first_offset, len(keys), digest, key_bytes, digests.astype("<u8").tobytes(), columns),
    )


def _digest(first_offset: int, keys: bytes, columns: bytes) -> bytes:
    checksum = xxhash.xxh3_128(first_offset.to_bytes(8, "little"))
    checksum.update(keys)
    checksum.update(columns)
    return checksum.digest()


def _kinds(database: sqlite3.Connection) -> IdKinds | None:
    found = dict(database.execute("SELECT side, kind FROM id_kinds").fetchall())
    return IdKinds(found["user"], found["item"]) if found else None


def _type(kind: IdKind) -> type[int] | type[str]:
    return int if kind == "int" else str
