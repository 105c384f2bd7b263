"""What publishing costs those who ask meanwhile: failed, mixed, backwards, p99, stalls.

    python benchmarks/bench_publishing.py --json bench-publishing.json
    python benchmarks/bench_publishing.py --quick

One real server of one worker, asked at a quarter of its capacity by a process of its own, first in
peace, then while 20 generations with 4 deltas each go live one after the other and every other one
is rolled back: 100 publishes and 10 roll-backs (`--quick`: 20 and 2). Generations and deltas lie
ready, so what is measured is loading, checking, warming and swapping, not training. Item IDs and
scores of an answer tell which generation and which delta made it, so every answer is checked
afterwards, also those that name the wrong one.

- `failed`, `mixed`, `backwards`: answers that are no 200, that are not what their generation and
  delta say, that are older than one before them on their connection.
- `p99_over_quiet`: p99 of the second part over that of the first.
- `stalls_over_20_ms`: times longer than that in which requests waited and none was answered.
- `live_after_s`: from the activation of a generation until every answer comes from it, the median.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench_overload import K, Load
from bench_search import commit
from serving_project import USERS, RunningServer, running_server, write_project
from test_serving_day import publish_delta, wait_delta
from tiny_checkpoint import tiny_checkpoint
from twotower.data.ids import Id
from twotower.index.settings import IndexSettings
from twotower.publishing.delta import Delta, delta_folder
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever

CONNECTIONS: Final = 4
SHARE_OF_CAPACITY: Final = 0.25
STALL_S: Final = 0.020
DELTAS: Final = 4
"""Of each generation."""
Expected = Mapping[tuple[str, int], Mapping[Id, list[tuple[Id, float]]]]


class Seen(NamedTuple):
    """One answer."""

    sent_s: float
    latency_s: float
    connection: int
    user: Id
    is_whole: bool
    body: bytes


class Watch(Load):
    """A load that keeps every answer."""

    def __init__(self, address: tuple[str, int], number: int, users: Sequence[Id]) -> None:
        super().__init__(address, number, users)
        self.seen: list[Seen] = []

    def answered(
        self, connection: socket.socket, latency_s: float, is_whole: bool, body: bytes
    ) -> None:
        """Keep it."""
        super().answered(connection, latency_s, is_whole, body)
        sent_s = time.perf_counter() - latency_s
        user = self.asked[connection]
        self.seen.append(Seen(sent_s, latency_s, connection.fileno(), user, is_whole, body))


def watch(address: tuple[str, int], rate: float, ends: Connection) -> None:
    """Ask at a rate until told to stop, then hand the answers over; a process of its own."""
    watched = Watch(address, CONNECTIONS, USERS)
    ends.send(True)
    while not ends.poll():
        watched.run(0.25, rate)
    ends.send([tuple(one) for one in watched.seen])
    watched.close()


class Watching:
    """The process that asks."""

    def __init__(self, server: RunningServer, rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, other = context.Pipe()
        self._process = context.Process(target=watch, args=(server.address, rate, other))
        self._process.start()
        self._ends.recv()

    def end(self) -> list[Seen]:
        """Stop asking; return all answers."""
        self._ends.send(True)
        seen = [Seen(*one) for one in self._ends.recv()]
        self._process.join()
        return seen


class Staged:
    """Generations and deltas that lie ready, and what each of them answers."""

    def __init__(self, folder: Path, num_items: int, num_full: int) -> None:
        self.data_path = folder / "twotower-data"
        self.store = ModelStore(self.data_path)
        self._aside = folder / "staged"
        self._aside.mkdir()
        (self._aside / "generations").symlink_to(self.store.root)
        self.names: list[str] = []
        self.expected: dict[tuple[str, int], Mapping[Id, list[tuple[Id, float]]]] = {}
        for number in range(1, num_full + 1):
            self._stage(number, num_items)

    def _stage(self, number: int, num_items: int) -> None:
        checkpoint = tiny_checkpoint(seed=number, num_items=num_items)
        checkpoint.items.ids = checkpoint.items.ids + number * 10_000_000
        name = publish(checkpoint, self.store, index=IndexSettings(engine="exact")).name
        self.names.append(name)
        aside = ModelStore(self._aside)
        deltas: list[Delta] = []
        for delta in range(DELTAS + 1):
            if delta:
                deltas.append(publish_delta(aside, name, delta))
            retriever = Retriever.open(self.data_path, name, verify=False).with_deltas(deltas)
            self.expected[name, delta] = {user: answer_of(retriever, user) for user in USERS}
        delta_folder(self.data_path, name).mkdir(parents=True)

    def publish_delta(self, name: str, number: int) -> None:
        """Move a delta to where servers look."""
        file = f"d-{number:06d}"
        target = delta_folder(self.data_path, name) / file
        (delta_folder(self._aside, name) / file).rename(target)


def answer_of(retriever: Retriever, user: Id) -> list[tuple[Id, float]]:
    """What a user gets: item IDs and scores as float32."""
    found = retriever.retrieve(user, K).candidates
    return [(one.item_id, float(np.float32(one.score))) for one in found]


def publish_all(staged: Staged, server: RunningServer) -> list[float]:
    """Make everything live in turn; return the seconds until each generation was served."""
    taken = []
    for place, name in enumerate(staged.names):
        began_s = time.perf_counter()
        sequence = staged.store.activate(name, force=True).sequence
        server.wait_ready(sequence)
        taken.append(time.perf_counter() - began_s)
        for number in range(1, DELTAS + 1):
            staged.publish_delta(name, number)
            wait_delta(server, number)
        if place % 2:
            server.wait_ready(staged.store.roll_back().sequence)
            wait_delta(server, DELTAS)
    return taken


def checked(seen: Sequence[Seen], expected: Expected) -> dict[str, int]:
    """Count what no answer may be."""
    found = {"answers": len(seen), "failed": 0, "mixed": 0, "backwards": 0}
    last: dict[int, tuple[int, int]] = {}
    for one in sorted(seen, key=lambda one: one.sent_s + one.latency_s):
        if not one.is_whole:
            found["failed"] += 1
            continue
        answer = json.loads(one.body)
        delta = answer["delta"] or 0
        got = [(c["item_id"], float(np.float32(c["score"]))) for c in answer["candidates"]]
        found["mixed"] += got != expected[answer["generation"], delta][one.user]
        made_by = (answer["sequence"], delta)
        found["backwards"] += made_by < last.get(one.connection, made_by)
        last[one.connection] = made_by
    return found


def waits(seen: Sequence[Seen], suffix: str = "") -> dict[str, float]:
    """Return how long answers took."""
    shares = {"p50": 50, "p99": 99, "p999": 99.9, "longest": 100}
    found = np.percentile([one.latency_s for one in seen], list(shares.values())) * 1000
    return {f"{name}_ms{suffix}": float(one) for name, one in zip(shares, found, strict=True)}


def stalls(seen: Sequence[Seen]) -> int:
    """Return how often requests waited for longer than `STALL_S` without any being answered."""
    by_answer = sorted(seen, key=lambda one: one.sent_s + one.latency_s)
    number, last_s = 0, -np.inf
    for one in by_answer:
        answered_s = one.sent_s + one.latency_s
        number += answered_s - max(last_s, one.sent_s) > STALL_S
        last_s = answered_s
    return number


def measure(folder: Path, num_items: int, num_full: int, quiet_s: float) -> dict[str, Any]:
    """Return all figures."""
    staged = Staged(folder, num_items, num_full)
    staged.store.activate(staged.names[0], force=True)
    with running_server(write_project(folder)) as server:
        closed = Load(server.address, CONNECTIONS, USERS)
        closed.run(3.0, None)
        closed.close()
        rate = SHARE_OF_CAPACITY * len(closed.latencies_s) / 3.0
        watching = Watching(server, rate)
        time.sleep(quiet_s)
        quiet = watching.end()
        watching = Watching(server, rate)
        taken = publish_all(staged, server)
        busy = watching.end()
    calm, found = waits(quiet, "_quiet"), waits(busy)
    return {
        "publishes": num_full * (1 + DELTAS),
        "roll_backs": num_full // 2,
        **checked(busy, staged.expected),
        "p99_over_quiet": found["p99_ms"] / calm["p99_ms_quiet"],
        "stalls_over_20_ms": stalls(busy),
        "stalls_over_20_ms_quiet": stalls(quiet),
        "live_after_s": median(taken),
        **found,
        **calm,
        "requests_per_s": rate,
        "items": num_items,
        "load_average": os.getloadavg()[0],
        "commit": commit(),
    }


def main() -> None:
    """Measure, show one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="20 publishes and 2 roll-backs")
    parser.add_argument("--items", type=int, default=100_000)
    arguments = parser.parse_args()
    num_full, quiet_s = (4, 5.0) if arguments.quick else (20, 30.0)
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), arguments.items, num_full, quiet_s)
    table = Table("figure", "value", title="publishing under load")
    for name, value in report.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
