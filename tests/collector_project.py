"""Real collectors on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from serving_project import RunningServer
from twotower.data.events import Event

__all__ = ["as_lines", "free_port", "kill", "running_collector", "start_collector"]


def as_lines(events: list[Event]) -> bytes:
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_collector(config: Path, port: int = 0) -> RunningServer:
    """Start `twotower collect` in a process of its own; returns when it listens."""
    code = "from twotower.cli.app import main; main()"
    options = ["-c", str(config), "--port", str(port), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-q", "collect", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "random"},
    )
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        assert line, "the collector ended before it collected"
        text += line
    return RunningServer(process, json.loads(text)["url"])


@contextlib.contextmanager
def running_collector(config: Path) -> Iterator[RunningServer]:
    """A collector on a free port; killed at the end if it still runs."""
    collector = start_collector(config)
    try:
        yield collector
    finally:
        kill(collector)


def kill(collector: RunningServer) -> None:
    """SIGKILL, and wait for the end."""
    collector.process.kill()
    collector.process.wait()
    if collector.process.stdout is not None:
        collector.process.stdout.close()
