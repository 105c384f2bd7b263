"""Log records as JSON lines: events and named values, whatever the values hold."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from rich.logging import RichHandler

from twotower.cli import output
from twotower.cli.log_lines import JsonLines


def line(template: str, *arguments: object, **attributes: object) -> Any:
    """What a record becomes."""
    record = logging.LogRecord("twotower", logging.INFO, "", 0, template, arguments, None)
    vars(record).update(attributes)
    text = JsonLines().format(record)
    assert "\n" not in text
    return json.loads(text)


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        ("keys_read active=%d", (3,), {"event": "keys_read", "active": 3}),
        ("died name=%s exit=%s", ("a b", None), {"event": "died", "name": "a b", "exit": None}),
        (
            "not_read problem=%r share=%.4f",
            ('it\'s "x=1\ny"', 0.12345),
            {"event": "not_read", "problem": 'it\'s "x=1\ny"', "share": 0.12345},
        ),
        ("%s name=%s", ("started", "x"), {"event": "started", "name": "x"}),
        (
            "%s task=%r total=%s %s",
            ("done", "t", 5, "rows/s=3"),
            {"event": "done rows/s=3", "task": "t", "total": 5},
        ),
        ("hard negatives source='mined' rows=0", (), {
            "event": "hard negatives", "source": "mined", "rows": "0",
        }),
        ("100 %% of %d", (7,), {"event": "100 % of 7"}),
        ("no values", (), {"event": "no values"}),
        ("index.lost", (), {"event": "index.lost"}),
    ],
)  # fmt: skip
def test_values_keep_their_names_and_kinds(
    template: str, arguments: tuple[object, ...], expected: dict[str, object]
) -> None:
    found = line(template, *arguments)
    assert found.pop("ts").endswith("Z")
    assert found.pop("level") == "info"
    assert found == expected


def test_what_a_record_carries_besides_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert line("index.lost", searches=3, why="gone")["searches"] == 3
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed request_id=%s", ("r",), None)
    try:
        raise ValueError("no\nline")
    except ValueError:
        record.exc_info = sys.exc_info()
    found = json.loads(JsonLines("serve").format(record))
    assert (found["process"], found["request_id"]) == ("serve", "r")
    assert "ValueError: no\nline" in found["exception"]


def test_text_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    output.configure(0)
    (handler,) = logging.getLogger("twotower").handlers
    assert isinstance(handler.formatter, JsonLines)
    monkeypatch.setattr(output.error_console, "_force_terminal", True)
    output.configure(0)
    (handler,) = logging.getLogger("twotower").handlers
    assert isinstance(handler, RichHandler)
