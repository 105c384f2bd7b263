"""`twotower join`: what it says, and that trying changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from label_join_reference import random_log
from serving_project import write_project
from stored_events import store, without_repeats
from test_cli_events import Twotower
from twotower.data.example_log import ExampleLog


@pytest.fixture
def twotower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Twotower:
    return Twotower(write_project(tmp_path), monkeypatch, capsys)


def test_joining_once(twotower: Twotower, tmp_path: Path) -> None:
    nothing = {"joined_events": 0, "emitted_examples": 0, "undecided_events": 0}
    assert twotower.json("join") == nothing
    log = without_repeats(random_log(5, 200))
    data_path = tmp_path / "twotower-data"
    store(data_path, log)
    tried = twotower.json("join", "--dry-run")
    assert not (data_path / "examples" / "manifest.json").exists()
    found = twotower.json("join")
    del found["watermark_ms"], tried["watermark_ms"]  # the log is idle: it moves with the clock
    assert found == tried
    assert found["joined_events"] == found["event_offset"] == len(log)
    assert found["emitted_examples"] == ExampleLog.open(data_path).end
    again = twotower.json("join")
    assert (again["joined_events"], again["end"]) == (0, found["end"])
    assert "0 events joined" in twotower.text("join")
    assert "late_positive" in twotower.text("join")
