"""Results on stdout, everything else on stderr; progress on a terminal and in a log."""

from __future__ import annotations

import io
import json
import logging

import msgspec
import pytest
from rich.console import Console

from twotower.cli import output


class Figures(msgspec.Struct):
    name: str
    share: float


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_json_is_valid_and_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    long_name = "a [bold]b[/bold] :smile: " * 40
    output.emit_json({"figures": [Figures(name=long_name, share=0.5)]})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"figures": [{"name": long_name, "share": 0.5}]}
    assert captured.err == ""


def test_log_progress_writes_a_line_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    output.configure(0)
    logging.getLogger("twotower").propagate = True
    clock = FakeClock()
    progress = output.LogProgress(interval_s=5.0, clock=clock)
    progress.begin("full update of 2022-05-01", total=100)
    for _ in range(10):
        clock.now_s += 1.0
        progress.advance(10, loss=0.25)
    progress.end()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["begin", "running", "running", "done"]
    assert "done=50 total=100 examples/s=10 loss=0.2500" in lines[1]


def test_terminal_progress_shows_the_figures() -> None:
    written = io.StringIO()
    clock = FakeClock()
    terminal = Console(file=written, force_terminal=True, width=120)
    from rich import progress as columns

    with columns.Progress(
        columns.TextColumn("{task.description} {task.completed} {task.fields[figures]}"),
        console=terminal,
    ) as bars:
        progress = output.TerminalProgress(bars, clock)
        progress.advance()  # before begin: not counted
        progress.begin("train", total=100)
        clock.now_s = 2.0
        progress.advance(40, loss=0.5)
        progress.end()
    assert "train 40 examples/s=20 loss=0.5000" in written.getvalue()


def test_quiet_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    output.configure(-1)
    with output.show_progress() as progress:
        progress.begin("train", total=1)
        progress.advance(1, loss=1.0)
        progress.end()
    assert capsys.readouterr() == ("", "")
