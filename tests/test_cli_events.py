"""`twotower ingest` and `twotower events`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector_project import as_lines
from serving_project import write_project
from twotower.cli.app import main
from twotower.data.event_log import open_event_log
from twotower.data.event_log.contract import make_event, make_events
from twotower.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_project(tmp_path)


class Twotower:
    def __init__(
        self, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._config = config
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def text(self, *words: str) -> str:
        """What a command writes to stdout."""
        self._monkeypatch.setattr(sys, "argv", ["twotower", *words, "-c", str(self._config)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = self._capsys.readouterr()
        assert ended.value.code == 0, written.err
        return written.out

    def refusal(self, *words: str) -> tuple[object, str]:
        """The exit code of a command that fails, and what it says, in one line."""
        self._monkeypatch.setattr(sys, "argv", ["twotower", *words, "-c", str(self._config)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, " ".join(self._capsys.readouterr().err.split())

    def json(self, *words: str) -> Any:
        return json.loads(self.text(*words, "--json"))


@pytest.fixture
def twotower(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Twotower:
    return Twotower(config, monkeypatch, capsys)


def test_a_file_is_ingested_once(twotower: Twotower, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(as_lines(make_events(0, 12_000)) + b"17\n")
    first = {"accepted": 12_000, "duplicates": 0, "rejected": 1, "end_offset": 12_000}
    assert twotower.json("ingest", str(file)) == first
    array = tmp_path / "events.json"
    array.write_bytes(msgspec.json.encode(make_events(11_990, 12_010)))
    again = {"accepted": 20, "duplicates": 10, "rejected": 0, "end_offset": 12_010}
    assert twotower.json("ingest", str(array)) == again
    text = twotower.text("ingest", str(file))
    assert "12,000 events stored (12,000 of them were there), 1 rejected" in text
    assert "twotower events rejected" in text


def test_a_table_is_read_by_the_projects_mapping(twotower: Twotower, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("user,item,time\n1,10,1700000000\n,11,1700000001\n2,12,1700000002\n")
    found = twotower.json("ingest", str(file))
    assert found == {"accepted": 4, "duplicates": 0, "rejected": 1, "end_offset": 4}
    again = twotower.json("ingest", str(file))
    assert (again["duplicates"], again["end_offset"]) == (4, 4)
    shown = [row["event"] for row in twotower.json("events", "show")]
    assert [(event["kind"], event["user_id"]) for event in shown] == [
        *(("impression", 1), ("outcome", 1)),
        *(("impression", 2), ("outcome", 2)),
    ]


def test_events_are_shown(twotower: Twotower, tmp_path: Path) -> None:
    assert twotower.json("events", "show") == []
    file = tmp_path / "events.ndjson"
    file.write_bytes(as_lines(make_events(0, 30)))
    twotower.text("ingest", str(file))
    newest = twotower.json("events", "show", "--limit", "3")
    assert [row["offset"] for row in newest] == [27, 28, 29]
    assert msgspec.convert(newest[1]["event"], type(make_event(0))) == make_event(28)
    chosen = twotower.json("events", "show", "--from", "4", "--limit", "2")
    assert [row["event"]["event_id"] for row in chosen] == ["event-4", "event-5"]
    text = twotower.text("events", "show", "--limit", "3")
    assert "impression" in text
    assert "click" in text
    assert "ranking" in text


def test_every_fate_is_counted_and_every_refusal_shown(twotower: Twotower, tmp_path: Path) -> None:
    empty = twotower.json("events", "stats")
    assert (empty["end_offset"], empty["newest_received_ms"]) == (0, None)
    assert empty["fates"] == {"stored": 0}
    file = tmp_path / "events.ndjson"
    bad = b"[bold]no event[/]\n"
    again = as_lines([make_event(1), make_event(2, value=9.0)])
    file.write_bytes(as_lines(make_events(0, 5)) + again + bad)
    twotower.text("ingest", str(file))
    found = twotower.json("events", "stats")
    assert found["fates"] == {"stored": 5, "conflict": 1, "duplicate": 1, "invalid": 1}
    assert (found["user_id_kind"], found["item_id_kind"]) == ("int", "int")
    assert "conflict" in twotower.text("events", "stats")
    rows = twotower.json("events", "rejected")
    assert [row["code"] for row in rows] == ["conflict", "invalid"]
    assert "[bold]no event[/]" in twotower.text("events", "rejected")
    assert len(twotower.json("events", "rejected", "--limit", "1")) == 1


def test_what_cannot_be_ingested_stores_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "events.json"
    file.write_bytes(b"[1,")
    cases: list[tuple[Path, type[Exception]]] = [
        (file, DataError),
        (tmp_path / "none", ConfigError),
    ]
    for path, expected in cases:
        monkeypatch.setattr(sys, "argv", ["twotower", "ingest", str(path), "-c", str(config)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == expected.exit_code  # type: ignore[attr-defined]
    with open_event_log(config.parent / "twotower-data") as log:
        assert log.end() == 0
