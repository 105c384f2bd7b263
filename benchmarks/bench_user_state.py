"""What following the event log costs a worker that answers: latencies with and without it.

    python benchmarks/bench_user_state.py --json bench-user-state.json

Two real servers of one worker each, one that follows the log and one that is told not to, which is
what a worker could reach at best if another process followed for it. Events are appended all the
time. One client asks the two in turn, slice by slice, while the other one is stopped, so that both
meet the same neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_checkpoint import CUT_MS, tiny_checkpoint
from twotower.data.event_log import open_event_log
from twotower.data.events import Event
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore

NUM_USERS: Final = 20_000
NUM_ITEMS: Final = 20_000
GROUP: Final = 500
SLICE_S: Final = 3.0
ROUNDS: Final = 8
PROJECT: Final = """
config_version = 1
[events]
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
"""


def main() -> None:
    """Measure, show one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rates", type=int, nargs="*", default=[1_000, 10_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder)
        with serving(folder, 0) as without, serving(folder, 5_000_000) as following:
            servers = {"follows": following, "does not": without}
            figures = {rate: compare(folder, servers, rate) for rate in arguments.rates}
    table = Table("events/s", "worker", "requests", "p50 ms", "p99 ms", "p99.9 ms", "largest ms")
    for rate, found in figures.items():
        for name, row in found.items():
            cells = [f"{row[part]:.2f}" for part in ("p50", "p99", "p999", "largest")]
            table.add_row(str(rate), name, str(row["requests"]), *cells)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def make_project(folder: Path) -> None:
    """A live generation of random parameters."""
    (folder / "twotower.toml").write_text(PROJECT)
    store = ModelStore(folder / "twotower-data")
    checkpoint = tiny_checkpoint(num_users=NUM_USERS, num_items=NUM_ITEMS)
    store.activate(publish(checkpoint, store, index=IndexSettings()).name, force=True)


class Server(NamedTuple):
    """A server of one worker."""

    address: tuple[str, int]
    pid: int
    """Of the worker."""


@contextlib.contextmanager
def serving(folder: Path, user_state_events: int) -> Iterator[Server]:
    """A server in processes of its own, ready."""
    code = "from twotower.cli.app import main; main()"
    changed = ["--set", f"serving.user_state_events={user_state_events}"]
    options = ["-c", str(folder / "twotower.toml"), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-q", *changed, "serve", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        text += process.stdout.readline()
    host, _, port = json.loads(text)["url"].removeprefix("http://").rpartition(":")
    try:
        yield wait_ready((host, int(port)))
    finally:
        process.kill()
        process.wait()


def wait_ready(address: tuple[str, int]) -> Server:
    """Wait until a generation is loaded."""
    while True:
        with contextlib.closing(http.client.HTTPConnection(*address)) as connection:
            connection.request("GET", "/readyz")
            reply = connection.getresponse()
            found = json.loads(reply.read())
        if reply.status == 200:
            return Server(address, found["workers"][0]["pid"])
        time.sleep(0.1)


def compare(folder: Path, servers: dict[str, Server], rate: int) -> dict[str, dict[str, float]]:
    """Latencies of each server while events come, in slices that alternate."""
    taken: dict[str, list[float]] = {name: [] for name in servers}
    with appending(folder / "twotower-data", rate):
        for _ in range(ROUNDS):
            for name, server in servers.items():
                others = [other.pid for other in servers.values() if other is not server]
                with stopped(others):
                    ask_for(server.address, 1.0)  # what came while it was stopped is followed
                    taken[name] += ask_for(server.address, SLICE_S)
    return {name: summary(latencies) for name, latencies in taken.items()}


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes that take nothing from anybody inside the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def summary(latencies: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9]) * 1000
    largest = max(latencies) * 1000
    return {
        "requests": len(latencies),
        "p50": float(p50),
        "p99": float(p99),
        "p999": float(p999),
        "largest": float(largest),
    }


def ask_for(address: tuple[str, int], seconds: float) -> list[float]:
    """Ask one after the other; return the seconds that each took."""
    connection = http.client.HTTPConnection(*address)
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    rng = np.random.default_rng(0)
    while time.perf_counter() < end:
        user = int(700 - rng.integers(NUM_USERS))
        body = json.dumps({"user_id": user, "k": 100})
        began = time.perf_counter()
        connection.request("POST", "/v1/retrieve", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        latencies.append(time.perf_counter() - began)
        assert reply.status == 200, content
    connection.close()
    return latencies


@contextlib.contextmanager
def appending(data_path: Path, rate: int) -> Iterator[None]:
    """Another process appends groups of events inside the block."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=append, args=(data_path, rate), daemon=True)
    process.start()
    time.sleep(1.5)  # it imports
    try:
        yield
    finally:
        process.kill()
        process.join()


def append(data_path: Path, rate: int) -> None:
    """Append until killed."""
    os.nice(5)
    rng = np.random.default_rng(0)
    with open_event_log(data_path) as log:
        for group in range(10**9):
            due_s = time.perf_counter() + GROUP / rate
            users, items = (700 - rng.integers(size, size=GROUP) for size in (NUM_USERS, NUM_ITEMS))
            log.append(
                [
                    Event(
                        kind="impression",
                        event_id=f"{os.getpid()}-{group}-{row}",
                        user_id=int(user),
                        item_id=int(item),
                        event_time_ms=CUT_MS + group,
                        request_id=f"r{group}",
                    )
                    for row, (user, item) in enumerate(zip(users, items, strict=True))
                ],
                CUT_MS + group,
            )
            time.sleep(max(0.0, due_s - time.perf_counter()))


if __name__ == "__main__":
    main()
