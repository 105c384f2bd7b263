"""Rows in, receipts out: one bad row costs nobody else, and nothing is dropped silently."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector_project import as_lines
from twotower.data.event_log import EventLogSettings
from twotower.data.event_log.contract import make_event, make_events
from twotower.data.event_log.dead_letters import DeadLetters
from twotower.data.event_log.intake import Intake
from twotower.data.event_log.rows import decode_rows
from twotower.data.events import Event, IdKinds

INTS = IdKinds("int", "int")
STRINGS = IdKinds("str", "str")
LIMIT = 1000


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path, EventLogSettings(rejected_rows=5), INTS) as opened:
        yield opened


def row(number: int = 1, **changed: Any) -> bytes:
    fields = msgspec.to_builtins(make_event(number))
    fields |= changed
    return json.dumps({name: value for name, value in fields.items() if value != "absent"}).encode()


BAD_ROWS = {
    "no object": b"17",
    "torn": b'{"kind": "impression", "event_',
    "invalid UTF-8": row().replace(b"event-1", b"event-\xff"),
    "half a surrogate pair": row().replace(b"event-1", b"event-\\ud800"),
    "nested": b'{"event_id": ' + b"[" * 400 + b"]" * 400 + b"}",
    "nested without end": b"[" * 900,
    "no user": row(user_id="absent"),
    "null item": row(item_id=None),
    "user of 65 bits": row(user_id=2**63),
    "boolean user": row(user_id=True),
    "fraction as user": row(user_id=1.5),
    "word as user": row(user_id="u-7"),
    "too many digits": row(user_id="9" * 19),
    "empty event ID": row(event_id=""),
    "long event ID": row(event_id="x" * 257),
    "unknown kind": row(kind="view"),
    "unknown field": row(extra=1),
    "NaN": row().replace(b'"value": 1.1', b'"value": NaN'),
    "1e400": row().replace(b'"value": 1.1', b'"value": 1e400'),
    "beyond a float32": row(value=1e39),
    "seconds for milliseconds": row(event_time_ms=1_700_000_000),
    "microseconds": row(event_time_ms=1_700_000_000_000_000),
    "outcome without its name": row(1, outcome=None),
    "outcome of an impression": row(3, outcome="click"),
    "candidate without a stage": row(2, stage=None),
    "stage of an outcome": row(1, stage="ranking"),
    "too long": b'{"event_id": "' + b"x" * LIMIT + b'"}',
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_and_its_neighbours_are_not(name: str) -> None:
    bad, before, after = BAD_ROWS[name], make_event(7), make_event(8)
    lines = as_lines([before]) + bad + b"\n" + as_lines([after])
    rows = decode_rows(lines, INTS, LIMIT)
    assert (rows.events, list(rows.places)) == ([before, after], [0, 2])
    refusal = rows.refused[0]
    assert len(rows.refused) == 1
    assert (refusal.row, refusal.code) == (1, "too_large" if name == "too long" else "invalid")
    assert refusal.reason
    is_json = name not in {"torn", "NaN", "invalid UTF-8", "half a surrogate pair"}
    if is_json and not name.startswith("nested"):
        array = b" [" + b",".join([lines.split(b"\n")[0], bad, lines.split(b"\n")[2]]) + b"]"
        found = decode_rows(array, INTS, LIMIT)
        assert (found.events, list(found.places)) == (rows.events, [0, 2])
        assert found.refused[0].row == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[",
        b"[17",
        b'[{"a": NaN}]',
        b"[" * 5000,
        b"[] trailing",
        b"[,]",
    ],
)
def test_an_array_that_cannot_be_split_has_no_rows(body: bytes) -> None:
    with pytest.raises(ValueError, match="expected a JSON array"):
        decode_rows(body, INTS, LIMIT)


def test_lines_and_arrays_give_the_same() -> None:
    events = make_events(0, 9)
    array = msgspec.json.encode(events)
    lines = as_lines(events)
    for body in (array, b"\n " + array, lines, lines.rstrip(b"\n"), lines.replace(b"\n", b"\r\n")):
        rows = decode_rows(body, INTS, LIMIT)
        assert (rows.events, list(rows.places), rows.refused) == (events, list(range(9)), [])
    rows = decode_rows(b"\n" + lines.replace(b"\n", b"\n\n", 1), INTS, LIMIT)
    assert list(rows.places) == [1, *range(3, 11)]
    for empty in (b"", b"\n", b"[]"):
        rows = decode_rows(empty, INTS, LIMIT)
        assert (rows.events, list(rows.places), rows.refused) == ([], [], [])


def test_ids_become_the_projects_kind() -> None:
    body = row(user_id="-12", item_id=34)
    assert decode_rows(body, INTS, LIMIT).events[0].user_id == -12
    as_text = decode_rows(body, STRINGS, LIMIT).events[0]
    assert (as_text.user_id, as_text.item_id) == ("-12", "34")
    rows = decode_rows(row(user_id="a\0b"), STRINGS, LIMIT)
    assert "without NUL" in rows.refused[0].reason
    first_decides = decode_rows(row(1) + b"\n" + row(2, user_id="x"), None, LIMIT)
    assert [refusal.row for refusal in first_decides.refused] == [1]


def test_a_receipt_names_every_row_that_is_not_new(intake: Intake) -> None:
    assert intake.take(as_lines(make_events(0, 3)), 5).accepted == 3
    body = b"\n".join([row(1), row(3), b"17", row(2, value=9.0), row(3), row(4)])
    receipt = intake.take(body, 6)
    assert (receipt.accepted, receipt.duplicates, receipt.end_offset) == (4, [0, 4], 5)
    assert [(r.row, r.code) for r in receipt.rejected] == [(2, "invalid"), (3, "conflict")]
    assert intake.log.read_events(0, 9) == [*make_events(0, 5)]


def test_refused_rows_are_kept_with_their_reason_and_counted(
    tmp_path: Path, intake: Intake
) -> None:
    intake.take(row(1), 5)
    intake.take(b"17\n" + row(1, value=9.0) + b"\n\xff\n" + row(1), 6)
    with DeadLetters(tmp_path, EventLogSettings()) as letters:
        newest = letters.newest(10)
        assert [letter.code for letter in newest] == ["conflict", "invalid", "invalid"]
        assert [letter.received_ms for letter in newest] == [6, 6, 6]
        assert msgspec.json.decode(newest[0].row, type=Event) == make_event(1, value=9.0)
        assert [letter.row for letter in newest[1:]] == ["\ufffd", "17"]
        assert all(letter.reason for letter in newest)
        assert letters.counts() == {"conflict": 1, "duplicate": 1, "invalid": 2}


def test_dead_letters_are_bounded_and_the_counts_are_not(tmp_path: Path, intake: Intake) -> None:
    for number in itertools.chain(range(4), range(4, 8)):
        intake.take(f"{number}\n{'x' * 9000}".encode(), number)
    with DeadLetters(tmp_path, EventLogSettings()) as letters:
        newest = letters.newest(100)
        assert [letter.number for letter in newest] == [16, 15, 14, 13, 12]
        assert letters.counts() == {"invalid": 16}
        assert max(len(letter.row) for letter in newest) == 4096


def test_a_whole_body_in_parts_is_the_same_body() -> None:
    rows = decode_rows(b"17\n" + as_lines(make_events(0, 7)), INTS, LIMIT)
    parts = list(rows.parts(3))
    assert [len(part.events) for part in parts] == [3, 3, 1]
    assert [event for part in parts for event in part.events] == rows.events
    assert [place for part in parts for place in part.places] == list(rows.places)
    assert [len(part.refused) for part in parts] == [1, 0, 0]
    nothing = decode_rows(b"17", INTS, LIMIT)
    assert [part.refused for part in nothing.parts(3)] == [nothing.refused]
