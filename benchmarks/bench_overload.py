"""What a worker still answers when more is asked than it can: goodput, waits, and recovery.

    python benchmarks/bench_overload.py --json bench-overload.json

One real server of one worker. Its capacity is what 8 connections get that ask again as soon as they
are answered. Then requests come at 2 and at 5 times that rate, whatever becomes of them, over many
connections; last, one connection asks until an answer is whole again.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving_project import RunningServer, ask, running_server, write_project
from tiny_checkpoint import tiny_checkpoint
from twotower.data.ids import Id
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore

FACTORS: Final = (2, 5)
CLOSED_CONNECTIONS: Final = 8
OPEN_CONNECTIONS: Final = 500
K: Final = 100
MAX_WAIT_S: Final = 0.1


class Load:
    """Connections of one thread, and what became of the requests on them."""

    def __init__(
        self, address: tuple[str, int], number: int, users: Sequence[Id] = (1_000_001,)
    ) -> None:
        """Connect; ask for these users in turn."""
        self.latencies_s: list[float] = []
        """Of those that were answered."""
        self.num_degraded = self.num_refused = self.num_unsent = 0
        self._users = cycle(users)
        self._requests = {user: request(user) for user in users}
        self.asked: dict[socket.socket, Id] = {}
        """For whom a connection asked last."""
        self._selector = selectors.DefaultSelector()
        self._idle: deque[socket.socket] = deque()
        self._received: dict[socket.socket, bytes] = {}
        self._sent_s: dict[socket.socket, float] = {}
        for _ in range(number):
            connection = socket.create_connection(address, timeout=30)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, connection)
            self._idle.append(connection)

    def run(self, seconds: float, rate: float | None) -> None:
        """Ask at a rate, or on every idle connection at once; then take the last answers."""
        began_s = time.perf_counter()
        num_due = 0
        while (passed_s := time.perf_counter() - began_s) < seconds:
            if rate is None:
                while self._idle:
                    self._send()
            else:
                while num_due < passed_s * rate:
                    num_due += 1
                    self._send()
            self._take(0.0005 if rate else 0.1)
        while self._sent_s and time.perf_counter() - began_s < seconds + 10:
            self._take(0.1)

    def close(self) -> None:
        """End all connections."""
        for connection in self._idle:
            connection.close()
        self._selector.close()

    def _send(self) -> None:
        if not self._idle:
            self.num_unsent += 1
            return
        connection = self._idle.popleft()
        self._received[connection] = b""
        self._sent_s[connection] = time.perf_counter()
        user = self.asked[connection] = next(self._users)
        connection.send(self._requests[user])

    def _take(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            connection = key.data
            received = self._received[connection] + connection.recv(1 << 16)
            self._received[connection] = received
            head, separator, body = received.partition(b"\r\n\r\n")
            place = head.lower().find(b"content-length: ")
            if not separator or len(body) < int(head[place + 16 :].split(b"\r\n")[0]):
                continue
            latency_s = time.perf_counter() - self._sent_s.pop(connection)
            self._idle.append(connection)
            self.answered(connection, latency_s, received.startswith(b"HTTP/1.1 200"), body)

    def answered(
        self, connection: socket.socket, latency_s: float, is_whole: bool, body: bytes
    ) -> None:
        """Take note of one answer."""
        if is_whole:
            self.latencies_s.append(latency_s)
            self.num_degraded += b'"overload:' in body
        else:
            self.num_refused += 1


def request(user: Id) -> bytes:
    """The bytes of one request."""
    body = json.dumps({"user_id": user, "k": K}).encode()
    head = "POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def figures(load: Load, seconds: float) -> dict[str, float]:
    """One row of the table."""
    p50, p99 = np.percentile(load.latencies_s, [50, 99]) * 1000
    answered = len(load.latencies_s)
    return {
        "answered_per_s": answered / seconds,
        "refused_per_s": load.num_refused / seconds,
        "unsent_per_s": load.num_unsent / seconds,
        "degraded_share": load.num_degraded / answered,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }


def recovery_s(server: RunningServer) -> float:
    """The seconds until an answer is whole again."""
    connection, began_s = server.connect(), time.perf_counter()
    while True:
        reply = ask(connection, "POST", "/v1/retrieve", {"user_id": 1_000_001, "k": K})
        passed_s = time.perf_counter() - began_s
        if reply.status == 200 and "overload" not in str(reply.json()["degraded"]):
            connection.close()
            return passed_s
        time.sleep(0.05)


def measure(server: RunningServer, seconds: float) -> dict[str, dict[str, float]]:
    """The capacity, then each factor of it."""
    closed = Load(server.address, CLOSED_CONNECTIONS)
    closed.run(1.0, None)
    closed.latencies_s.clear()
    closed.run(seconds, None)
    closed.close()
    found = {"capacity": figures(closed, seconds)}
    capacity = found["capacity"]["answered_per_s"]
    for factor in FACTORS:
        load = Load(server.address, OPEN_CONNECTIONS)
        load.run(seconds, factor * capacity)
        load.close()
        row = figures(load, seconds)
        row["goodput_share"] = row["answered_per_s"] / capacity
        row["recovery_s"] = recovery_s(server)
        found[f"{factor} x"] = row
    return found


def main() -> None:
    """Measure, show one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store = ModelStore(Path(name) / "twotower-data")
        checkpoint = tiny_checkpoint(num_items=arguments.items)
        settings = IndexSettings(engine="exact")
        store.activate(publish(checkpoint, store, index=settings).name, force=True)
        with running_server(write_project(Path(name), max_wait_s=MAX_WAIT_S)) as server:
            found = measure(server, arguments.seconds)
    columns = list(found[f"{FACTORS[-1]} x"])
    title = f"{arguments.items:,} items, exact, k {K}, load {os.getloadavg()[0]:.1f}"
    table = Table("load", *columns, title=title)
    for load, row in found.items():
        table.add_row(load, *(f"{row[name]:.2f}" if name in row else "" for name in columns))
    Console(width=160).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
