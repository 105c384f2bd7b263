"""Clients that go away in the middle of it, and clients that stay and say nothing.

`make test-gone` goes away a million times; here it is some thousand.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_project import (
    USERS,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from twotower.publishing.store import ModelStore

NUM_GONE = int(os.environ.get("TWOTOWER_GONE", "3000"))
NUM_IDLE = 10_000
SPARE_FILES = 500
RESET = struct.pack("ii", 1, 0)
SETTINGS = f"""
max_connections = {NUM_IDLE + 100}
header_timeout_s = 600.0
keep_alive_s = 600
"""

pytestmark = pytest.mark.slow


def request(path: str, body: object, *, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content


RETRIEVE = request("/v1/retrieve", {"user_id": USERS[0], "k": 50})
BATCH = request("/v1/retrieve:batch", {"requests": [{"user_id": user} for user in USERS] * 4})
EXPLAIN = request("/v1/explain", {"user_id": USERS[1], "item_id": 1_000_650})
HALF = request("/v1/retrieve", {"user_id": USERS[0]}, length=5000)
SENT = (*(RETRIEVE, RETRIEVE, HALF, RETRIEVE + RETRIEVE) * 8, EXPLAIN, HALF, BATCH)
"""An odd number of them, so that each ends in both ways."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("gone")
    store = ModelStore(folder / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server's too
    try:
        with running_server(write_project(folder, more=SETTINGS)) as running:
            yield running
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Worker:
    """What one worker holds."""

    def __init__(self, server: RunningServer) -> None:
        (pid,) = server.worker_pids()
        self._folder = Path(f"/proc/{pid}")

    def num_files(self) -> int:
        return len(os.listdir(self._folder / "fd"))

    def num_threads(self) -> int:
        return len(os.listdir(self._folder / "task"))

    def resident_bytes(self) -> int:
        return int((self._folder / "statm").read_text().split()[1]) * resource.getpagesize()


def go_away(server: RunningServer, times: int) -> None:
    """Send something and be gone, with a reset every second time."""
    for number in range(times):
        with contextlib.suppress(OSError), socket.create_connection(server.address, 20) as opened:
            if number % 2:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            opened.sendall(SENT[number % len(SENT)])


def is_quiet(server: RunningServer) -> bool:
    """Nothing is in flight but the question itself."""
    return server.metric("twotower_inflight_requests") == 1


def answer(server: RunningServer) -> bytes:
    return server.ask("POST", "/v1/retrieve", {"user_id": USERS[2]}, X_Request_Id="same").body


def test_who_goes_away_leaves_nothing_behind(server: RunningServer) -> None:
    worker, before = Worker(server), answer(server)
    go_away(server, max(600, NUM_GONE // 5))
    eventually(lambda: is_quiet(server))
    files, threads, resident = worker.num_files(), worker.num_threads(), worker.resident_bytes()
    go_away(server, NUM_GONE)
    eventually(lambda: is_quiet(server), 600)
    eventually(lambda: worker.num_files() <= files)
    assert worker.num_threads() == threads
    assert worker.resident_bytes() < resident + (8 << 20)
    assert answer(server) == before
    assert server.metric("twotower_http_requests_total", code="500") == 0


def test_ten_thousand_idle_connections_cost_nothing_but_their_sockets(
    server: RunningServer,
) -> None:
    """Half of them began a head. Others are answered meanwhile, and all is given back."""
    worker, before = Worker(server), answer(server)
    eventually(lambda: is_quiet(server))
    files = worker.num_files()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES
    num_idle = min(NUM_IDLE, most)
    with contextlib.ExitStack() as opened:
        for number in range(num_idle):
            connection = opened.enter_context(socket.create_connection(server.address, 20))
            if number % 2:
                connection.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\n")
        eventually(lambda: worker.num_files() >= files + num_idle)
        for _ in range(20):
            assert answer(server) == before
        assert server.readiness()["status"] == "ready"
    eventually(lambda: worker.num_files() <= files + 5)
    assert answer(server) == before
