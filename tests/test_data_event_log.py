"""The embedded log: the contract, and what is true of SQLite alone."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from serving_project import eventually
from twotower.data.event_log import EventLog, Fate, open_event_log
from twotower.data.event_log.contract import EventLogContract, make_event, make_events
from twotower.data.event_log.known_events import KnownEvents
from twotower.data.event_log.sqlite import SqliteEventLog
from twotower.data.events import IdKinds
from twotower.errors import CorruptArtifact, DataError, NotReady
from twotower.failpoints import VARIABLE
from warm_process import KILLED, run

MAX_STEPS = 12


class TestSqliteEventLog(EventLogContract):
    def open(self, folder: Path) -> EventLog:
        return open_event_log(folder)


class _Caller(threading.Thread):
    """Appends one event, received at its number."""

    def __init__(self, log: EventLog, number: int) -> None:
        super().__init__()
        self._log = log
        self._number = number
        self.fates: tuple[Fate, ...] = ()

    def run(self) -> None:
        self.fates = self._log.append([make_event(self._number)], self._number).fates


def open_sqlite(folder: Path, lock_timeout_s: float = 5.0) -> SqliteEventLog:
    return SqliteEventLog(folder / "events" / "log.sqlite", lock_timeout_s)


def test_every_commit_is_synced(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as log:
        assert log._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert log._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_callers_that_wait_share_one_commit(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as log:
        log.append([make_event(0)], 5)
        commits: list[str] = []
        log._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else 0)
        calls = [_Caller(log, number) for number in range(1, 9)]
        with log._write_lock:
            for call in calls:
                call.start()
            eventually(lambda: len(log._queue) == 8)
        for call in calls:
            call.join()
        assert len(commits) == 1
        assert [call.fates for call in calls] == [(Fate.STORED,)] * 8
        received = log.read(0, 9)
        assert sorted(received.received_ms.tolist()) == sorted([5, *range(1, 9)])
        assert {
            (event.event_id, int(ms))
            for event, ms in zip(log.read_events(1, 8), received.received_ms[1:], strict=True)
        } == {(f"event-{number}", number) for number in range(1, 9)}


def test_an_error_answers_every_caller_and_the_log_goes_on(tmp_path: Path) -> None:
    with open_sqlite(tmp_path, lock_timeout_s=0.05) as log:
        log.append(make_events(0, 3), 5)
        other = sqlite3.connect(log.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotReady, match="send again"):
            log.append(make_events(0, 5), 5)
        other.execute("ROLLBACK")
        other.close()
        fates = log.append(make_events(0, 5), 5).fates
        assert fates == (*[Fate.DUPLICATE] * 3, *[Fate.STORED] * 2)


def test_a_full_disk_acknowledges_nothing_and_heals(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as log:
        log.append(make_events(0, 3), 5)
        pages = log._writer.execute("PRAGMA page_count").fetchone()[0]
        log._writer.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(NotReady, match="full"):
            log.append(make_events(3, 3000), 5)
        assert log.end() == 3
        log._writer.execute("PRAGMA max_page_count = 1000000")
        assert log.append(make_events(0, 3000), 5).end == 3000


def test_other_id_kinds_than_the_projects_are_refused(tmp_path: Path) -> None:
    open_event_log(tmp_path, id_kinds=IdKinds("str", "int")).close()
    with pytest.raises(DataError, match="expected a log with int user IDs"):
        open_event_log(tmp_path, id_kinds=IdKinds("int", "int"))
    with open_event_log(tmp_path) as log:
        assert log.id_kinds == IdKinds("str", "int")


@pytest.mark.parametrize("column", ["keys", "columns", "rows"])
def test_altered_events_are_found(tmp_path: Path, column: str) -> None:
    with open_sqlite(tmp_path) as log:
        log.append(make_events(0, 10), 5)
        log.append(make_events(10, 20), 5)
        stored = log._writer.execute(f"SELECT {column} FROM blocks").fetchone()[0]
        altered = stored - 1 if column == "rows" else bytes([stored[0] ^ 1]) + stored[1:]
        log._writer.execute(f"UPDATE blocks SET {column} = ? WHERE first_offset = 0", (altered,))
        with pytest.raises(CorruptArtifact, match="offset 0 "):
            log.read(0, 5)
        assert log.read_events(10, 5) == make_events(10, 15)


def test_what_is_no_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "events" / "log.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(CorruptArtifact, match="unchanged"):
        open_event_log(tmp_path)
    assert path.read_bytes() == b"not a database" * 100


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with open_sqlite(tmp_path) as log:
        log._writer.execute("PRAGMA user_version = 99")
    with pytest.raises(CorruptArtifact, match="found 99"):
        open_event_log(tmp_path)


def append_in_turns(folder: Path) -> None:
    """Five appends; each number that was acknowledged is written to a file of its own."""
    with open_event_log(folder) as log:
        for number in range(5):
            log.append(make_events(10 * number, 10 * number + 15), 5)
            (folder / f"acknowledged-{number}").touch()
        log.forget(before=30)
        (folder / "forgot").touch()


def test_killed_at_every_step_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    for count in range(1, 100):
        folder = tmp_path / str(count)
        folder.mkdir()
        code = run(append_in_turns, folder, variables={VARIABLE: f"*:{count}"})
        check_killed(folder)
        if code == 0:
            break
        assert code == KILLED
    assert count > MAX_STEPS


def check_killed(folder: Path) -> None:
    acknowledged = len(list(folder.glob("acknowledged-*")))
    with open_event_log(folder) as log:
        begin, end = log.bounds()
        assert begin <= 30
        if begin:
            assert acknowledged == 5
        stored = log.read_events(begin, 1000)
        assert stored == make_events(begin, end)
        assert end >= (10 * acknowledged + 5 if acknowledged else 0)
        whole = log.append(make_events(begin, 70), 6)
        assert (whole.end, log.end()) == (70, 70)
        assert log.read_events(begin, 1000) == make_events(begin, 70)


def test_known_events_are_found_in_runs_and_in_the_newest() -> None:
    generator = np.random.default_rng(0)
    keys = generator.permutation(300_000).astype(np.uint64)
    payloads = keys * np.uint64(3)
    known = KnownEvents(keys[:150_000], payloads[:150_000])
    for start in range(150_000, 240_000, 1000):
        known.add(keys[start : start + 1000], payloads[start : start + 1000])
    assert len(known) == 240_000
    assert len(known._runs) == 2
    is_known, found = known.find(keys)
    assert is_known.tolist() == [True] * 240_000 + [False] * 60_000
    assert (found[:240_000] == payloads[:240_000]).all()


def test_keys_that_share_a_slot_are_all_known() -> None:
    keys = np.arange(1, 60, dtype=np.uint64) << np.uint64(32)
    known = KnownEvents(keys[:0], keys[:0])
    for part in (slice(0, 30), slice(30, 50)):
        known.add(keys[part], keys[part] + np.uint64(7))
    is_known, found = known.find(keys[::-1])
    assert is_known.tolist() == [False] * 9 + [True] * 50
    assert (found[9:] == keys[:50][::-1] + np.uint64(7)).all()


def test_texts_of_any_letters_come_back_in_one_block(tmp_path: Path) -> None:
    ids = ["a", "\u00fc\u00fc", "", "\U0001f600x", "plain"]
    events = [
        make_event(number, event_id=f"{text}{number}", request_id=text or None)
        for number, text in enumerate(ids)
    ]
    with open_sqlite(tmp_path) as log:
        log.append(events, 5)
        assert log.read_events(0, 10) == events


def test_appending_goes_on_through_many_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.data.event_log.known_events._RUN_ROWS", 16)
    with open_sqlite(tmp_path) as log:
        for start in range(0, 500, 25):
            assert set(log.append(make_events(start, start + 25), 5).fates) == {Fate.STORED}
        assert set(log.append(make_events(0, 500), 5).fates) == {Fate.DUPLICATE}
        assert log.append([make_event(7, value=-1.0)], 5).fates == (Fate.CONFLICT,)
