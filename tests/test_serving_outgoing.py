"""What the server logs: which route and how long, never what a user sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from twotower.serving.app import FrontDoor, make_app
from twotower.serving.exchange import Call, Handler, Limits, Reply
from twotower.serving.guard import Guard
from twotower.serving.handlers import Mounted
from twotower.serving.metrics import Metrics
from twotower.serving.overload import Overload
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory

SECRET = "user-4711"
BODY = b'{"user_id": "user-4711", "features": {"city": "Secretville"}}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def answer(tmp_path: Path) -> Callable[[Handler], int]:
    """Asks a front door whose `/v1/retrieve` is a handler of the test's; returns the status."""
    memory = SharedMemory(1)
    metrics = Metrics(CounterBlock(memory.counters(0)))

    def ask(handler: Handler) -> int:
        handlers = {"retrieve": Mounted(handler, Limits(1000, 1.0))}
        guard = Guard(tmp_path, requires_key=False)
        overload = Overload(ServingSettings(), metrics)
        door = FrontDoor(handlers, make_app(memory), metrics, guard, overload)
        statuses: list[int] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": BODY}

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        headers = [(b"content-type", b"application/json"), (b"traceparent", TRACE.encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/retrieve",
            "raw_path": b"/v1/retrieve",
            "headers": headers,
        }
        asyncio.run(door(scope, receive, send))
        return statuses[0]

    return ask


def fail(call: Call) -> Reply:
    raise KeyError(call.body.decode())


def succeed(call: Call) -> Reply:
    return Reply(200, b"{}", headers=((b"x-generation", b"g-000007"),))


def test_a_failure_names_its_place_and_not_what_was_asked(
    answer: Callable[[Handler], int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "twotower"):
        assert answer(fail) == 500
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    text = record.getMessage()
    assert "request_failed" in text
    assert "error=KeyError" in text
    assert "fail:" in text
    assert SECRET not in caplog.text
    assert "Secretville" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "twotower"):
        answer(fail)
    assert SECRET in caplog.text  # who debugs sees it


def test_the_access_log_is_for_debugging(
    answer: Callable[[Handler], int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "twotower"):
        assert answer(succeed) == 200
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, "twotower"):
        answer(succeed)
    text = caplog.text
    for part in ("route=/v1/retrieve code=200", f"trace_id={TRACE[3:35]}", "generation=g-000007"):
        assert part in text
    assert SECRET not in text
