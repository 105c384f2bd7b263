"""Real servers on free ports, over generations whose answers show which one made them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tiny_checkpoint import external_ids, tiny_checkpoint
from twotower.data.ids import Id
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

__all__ = [
    "NUM_CORPUS",
    "UNKNOWN_USER",
    "USERS",
    "Reply",
    "RunningServer",
    "ask",
    "damage",
    "eventually",
    "publish_marked",
    "reference",
    "reply_on",
    "running_server",
    "write_project",
]

NUM_CORPUS = 57
USERS = external_ids("int", "user", 12)
UNKNOWN_USER = 1_000_001
DEADLINE_S = 30.0
T = TypeVar("T")

_PROJECT = """
config_version = 1
[events]
files = "events.csv"
user_id = "user"
item_id = "item"
time = {{ column = "time", unit = "s" }}
[serving]
poll_s = {poll_s}
drain_delay_s = {drain_delay_s}
max_wait_s = {max_wait_s}
{more}
"""


def write_project(
    folder: Path,
    *,
    poll_s: float = 0.02,
    drain_delay_s: float = 0.0,
    max_wait_s: float = 20.0,
    more: str = "",
) -> Path:
    """A project's TOML file; its data is in `twotower-data` beside it.

    Requests may wait long, so that a busy machine is not taken for overload.
    """
    path = folder / "twotower.toml"
    given = {"poll_s": poll_s, "drain_delay_s": drain_delay_s, "max_wait_s": max_wait_s}
    path.write_text(_PROJECT.format(**given, more=more))
    return path


def publish_marked(store: ModelStore, number: int) -> str:
    """Publish a generation of its own parameters whose item IDs are near `number` millions."""
    checkpoint = tiny_checkpoint(seed=number)
    checkpoint.items.ids = checkpoint.items.ids + number * 1_000_000
    return publish(checkpoint, store, index=IndexSettings()).name


def reference(data_path: Path, name: str, k: int) -> dict[Id, list[tuple[Id, float]]]:
    """What each user gets from a generation: item IDs and scores as float32."""
    retriever = Retriever.open(data_path, name)
    answers = {user: retriever.retrieve(user, k).candidates for user in USERS}
    return {
        user: [(candidate.item_id, float(np.float32(candidate.score))) for candidate in candidates]
        for user, candidates in answers.items()
    }


def damage(data_path: Path, name: str, member: str = "index/vectors.npy") -> Callable[[], None]:
    """Flip one bit of a published file; returns what flips it back."""
    path = data_path / "generations" / name / member
    path.chmod(0o644)

    def flip() -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    flip()
    return flip


def eventually(condition: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Return the first true answer of `condition`; fail when there is none in time."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request; a body that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {} if content is None else {"Content-Type": "application/json"}
    connection.request(method, path, content, {**given, **(headers or {})})
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, found, response.read())


def reply_on(connection: socket.socket) -> Reply:
    """The next answer on a connection, read to its end."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, found, response.read())


class RunningServer:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=DEADLINE_S)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """One request over a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return ask(connection, method, path, body, given)

    def readiness(self) -> Any:
        return self.ask("GET", "/readyz").json()

    def wait_ready(self, sequence: int = 0) -> None:
        """Until every worker serves that activation or a later one."""

        def is_ready() -> bool:
            found = self.readiness()
            served = [worker["sequence"] or 0 for worker in found["workers"]]
            return found["status"] == "ready" and min(served) >= sequence

        eventually(is_ready)

    def worker_pids(self) -> set[int]:
        return {worker["pid"] for worker in self.readiness()["workers"]}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        total = 0.0
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(
                f'{label}="{wanted}"' in sample for label, wanted in labels.items()
            ):
                total += float(value)
        return total

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def running_server(
    config: Path,
    *,
    workers: int = 1,
    wait: bool = True,
    log: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[RunningServer]:
    """Start `twotower serve` on a free port; killed at the end if it still runs.

    Its log goes to the end of the file `log`, if one is given, down to debug lines.
    """
    code = "from twotower.cli.app import main; main()"
    given = ["-c", str(config), "--port", "0", "--workers", str(workers), "--json", *options]
    stderr = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-q" if log is None else "-v", "serve", *given],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "random"},
    )
    if stderr is not None:
        os.close(stderr)
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the server ended before it served"
            text += line
        server = RunningServer(process, json.loads(text)["url"])
        if wait:
            server.wait_ready()
        yield server
    finally:
        process.kill()  # the workers end with it
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
