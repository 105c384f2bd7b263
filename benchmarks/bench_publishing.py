"""What publishing costs those who ask meanwhile: failed, mixed, backwards, p99, stalls.

    python benchmarks/bench_publishing.py --json bench-publishing.json
    python benchmarks/bench_publishing.py --quick

One real server, of one worker unless told otherwise, with the settings that it comes with, asked at
`--share` of its capacity by a process of its own, first in peace, then while 20 generations with 4
deltas each go live one after the other and every other one is rolled back: 100 publishes and 10
roll-backs (`--quick`: 20 and 2), without a pause between them. Generations and deltas lie ready: to
publish is to activate here, so what is measured is loading, checking, warming and swapping, neither
training nor building. The server has the first core to itself, with all its processes; who asks has
the last one, and who activates, which is to verify a generation once more, has what is left of
that. Nobody asks the server whether it is ready: the answers tell. Item IDs and scores of an answer
tell which generation and which delta made it, so every answer is checked afterwards, also those
that name the wrong one.

- `failed`, `mixed`, `backwards`: answers that are no 200, that are not what their generation and
  delta say, that are older than one before them on their connection.
- `p99_over_quiet`: p99 of the second part over that of the first.
- `stalls_over_20_ms`: times longer than that in which requests waited and none was answered; those
  of the first part, `_quiet`, are the machine's.
- `unsent`: requests that were due while all connections waited: nobody asked them.
- `live_after_s`, `delta_live_after_s`, `rolled_back_after_s`: until every answer comes from what
  was made live, the median; of a roll-back with its deltas.
- `verify_s`, `load_s`, `warm_s`, `apply_s`: the parts of that, the mean.
- `first_over_p50`: how long the first answer of each generation took over the p50 of the quiet
  part, the median; `first_at_start_over_p50`: of the first request after the server was ready.
- `flip_spread_s`: from the first answer of an activation until every connection has one, the
  longest.
- `memory_after_over_before`: of the worker, mapped files included.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
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
from serving_project import USERS, RunningServer, eventually, running_server, write_project
from test_serving_day import publish_delta
from tiny_checkpoint import tiny_checkpoint
from twotower.data.ids import Id
from twotower.index.settings import IndexSettings
from twotower.publishing.delta import Delta, delta_folder
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

CONNECTIONS: Final = 4
"""Of each worker."""
CAPACITY_S: Final = 3.0
SHARE_OF_CAPACITY: Final = 0.7
STALL_S: Final = 0.020
DELTAS: Final = 4
"""Of each generation."""
FIRST: Final = 0
LAST: Final = -1
_CORES: Final = sorted(os.sched_getaffinity(0))
_NUMBERS: Final = {
    name: re.compile(rb'"%s":(\d+)' % name.encode()) for name in ("sequence", "delta")
}
MadeBy = Any
"""Shared by the processes: of each connection, what its last answer was made by."""
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
    """A load that keeps every answer, and tells what the last one on each connection came from."""

    def __init__(self, address: tuple[str, int], users: Sequence[Id], newest: MadeBy) -> None:
        super().__init__(address, len(newest), users)
        self.seen: list[Seen] = []
        self._newest = newest
        self._places = {connection: place for place, connection in enumerate(self._idle)}

    def answered(
        self, connection: socket.socket, latency_s: float, is_whole: bool, body: bytes
    ) -> None:
        """Keep it."""
        super().answered(connection, latency_s, is_whole, body)
        sent_s = time.perf_counter() - latency_s
        user = self.asked[connection]
        self.seen.append(Seen(sent_s, latency_s, connection.fileno(), user, is_whole, body))
        self._newest[self._places[connection]] = made_by(body)


def made_by(body: bytes) -> int:
    """Return activation and delta of an answer as one number that grows; cheap."""
    found = [_NUMBERS[name].search(body) for name in ("sequence", "delta")]
    sequence, delta = (int(one.group(1)) if one else 0 for one in found)
    return sequence * 1000 + delta


def watch(address: tuple[str, int], rate: float, newest: MadeBy, ends: Connection) -> None:
    """Ask at a rate until told to stop, then hand the answers over; a process of its own."""
    pin(os.getpid(), LAST)
    gc.disable()  # its pauses would be taken for the server's
    watched = Watch(address, USERS, newest)
    ends.send(True)
    while not ends.poll():
        watched.run(0.25, rate)
    ends.send(([tuple(one) for one in watched.seen], watched.num_unsent))
    watched.close()


def pin(pid: int, place: int) -> None:
    """Keep a process, and what it starts, on one core, where there are two."""
    if len(_CORES) > 1:
        os.sched_setaffinity(pid, {_CORES[place]})


class Watching:
    """The process that asks."""

    def __init__(self, server: RunningServer, rate: float, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, other = context.Pipe()
        self._newest = context.Array("q", CONNECTIONS * workers, lock=False)
        given = (server.address, rate, self._newest, other)
        self._process = context.Process(target=watch, args=given)
        self._process.start()
        self._ends.recv()

    def wait(self, sequence: int, delta: int = 0) -> None:
        """Until the last answer on every connection comes from this activation and delta."""
        wanted = sequence * 1000 + delta
        eventually(lambda: min(self._newest) >= wanted)

    def end(self) -> tuple[list[Seen], int]:
        """Stop asking; return all answers, and how many requests were not sent."""
        self._ends.send(True)
        seen, num_unsent = self._ends.recv()
        self._process.join()
        return [Seen(*one) for one in seen], num_unsent


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


class Taken(NamedTuple):
    """Seconds until every answer came from what was made live."""

    full: list[float]
    delta: list[float]
    roll_back: list[float]


def publish_all(staged: Staged, watching: Watching) -> Taken:
    """Make everything live in turn."""
    taken = Taken([], [], [])
    for place, name in enumerate(staged.names):
        sequence = staged.store.activate(name, force=True).sequence
        began_s = time.perf_counter()
        watching.wait(sequence)
        taken.full.append(time.perf_counter() - began_s)
        for number in range(1, DELTAS + 1):
            began_s = time.perf_counter()
            staged.publish_delta(name, number)
            watching.wait(sequence, number)
            taken.delta.append(time.perf_counter() - began_s)
        if place % 2:
            back = staged.store.roll_back()
            began_s = time.perf_counter()
            watching.wait(back.sequence, DELTAS)
            taken.roll_back.append(time.perf_counter() - began_s)
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


def capacity_of(server: RunningServer, workers: int) -> float:
    """Return the answers a second of connections that ask again as soon as they are answered."""
    closed = Load(server.address, CONNECTIONS * workers, USERS)
    closed.run(CAPACITY_S, None)
    closed.close()
    return len(closed.latencies_s) / CAPACITY_S


def waits(seen: Sequence[Seen], suffix: str = "") -> dict[str, float]:
    """Return how long answers took."""
    shares = {"p50": 50, "p99": 99, "p999": 99.9, "longest": 100}
    found = np.percentile([one.latency_s for one in seen], list(shares.values())) * 1000
    return {f"{name}_ms{suffix}": float(one) for name, one in zip(shares, found, strict=True)}


def first_answers(seen: Sequence[Seen]) -> float:
    """Return how long the first answer of an activation took, the median."""
    first: dict[int, Seen] = {}
    for one in sorted(seen, key=lambda one: one.sent_s):
        first.setdefault(made_by(one.body) // 1000, one)
    return median(one.latency_s for one in first.values())


def phases(server: RunningServer) -> dict[str, float]:
    """Return the mean seconds of each phase of taking over, those of the start included."""
    name = "twotower_publish_duration_seconds"
    found: dict[str, float] = {}
    for kind, phase in (("full", "verify"), ("full", "load"), ("full", "warm"), ("delta", "apply")):
        total_s = server.metric(f"{name}_sum", kind=kind, phase=phase)
        number = server.metric(f"{name}_count", kind=kind, phase=phase)
        found[f"{phase}_s"] = total_s / max(number, 1)
    return found


def flip_spread(seen: Sequence[Seen]) -> float:
    """Return the longest time from an activation's first answer to every connection's first."""
    first: dict[int, dict[int, float]] = {}
    for one in sorted(seen, key=lambda one: one.sent_s):
        times_s = first.setdefault(made_by(one.body) // 1000, {})
        times_s.setdefault(one.connection, one.sent_s + one.latency_s)
    # that of the first was there before
    return max(max(times.values()) - min(times.values()) for times in list(first.values())[1:])


def first_at_start(server: RunningServer) -> float:
    """Return how long the first request took over the median of the next 200."""
    one = Load(server.address, 1, USERS)
    while len(one.latencies_s) <= 200:
        one.run(0.01, None)
    one.close()
    return one.latencies_s[0] / median(one.latencies_s[1:])


def stalls(seen: Sequence[Seen]) -> int:
    """Return how often requests waited for longer than `STALL_S` without any being answered."""
    by_answer = sorted(seen, key=lambda one: one.sent_s + one.latency_s)
    number, last_s = 0, -np.inf
    for one in by_answer:
        answered_s = one.sent_s + one.latency_s
        number += answered_s - max(last_s, one.sent_s) > STALL_S
        last_s = answered_s
    return number


def resident_bytes(server: RunningServer) -> int:
    """Return the memory of the workers, mapped files included, of each."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in server.worker_pids()]
    lines = [line for status in statuses for line in status.splitlines() if "VmRSS:" in line]
    return sum(int(line.split()[1]) * 1024 for line in lines)


def measure(
    folder: Path, num_items: int, num_full: int, quiet_s: float, share: float, workers: int
) -> dict[str, Any]:
    """Return all figures."""
    staged = Staged(folder, num_items, num_full + 1)
    first = staged.names.pop(0)
    staged.store.activate(first, force=True)
    for number in range(1, DELTAS + 1):  # answers cost as much as those of the others
        staged.publish_delta(first, number)
    pin(0, FIRST)
    project = write_project(folder, poll_s=ServingSettings().poll_s)
    with running_server(project, workers=workers) as server:
        pin(0, LAST)
        first_over_p50 = first_at_start(server)
        capacity = capacity_of(server, workers)
        rate = share * capacity
        watching = Watching(server, rate, workers)
        time.sleep(quiet_s)
        quiet, _ = watching.end()
        before_bytes = resident_bytes(server)
        watching = Watching(server, rate, workers)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # who asks goes first
        began_s = time.perf_counter()
        taken = publish_all(staged, watching)
        busy_s = time.perf_counter() - began_s
        busy, num_unsent = watching.end()
        after_bytes = resident_bytes(server)
        took = phases(server)
    calm, found = waits(quiet, "_quiet"), waits(busy)
    return {
        "publishes": num_full * (1 + DELTAS),
        "roll_backs": num_full // 2,
        "seconds": busy_s,
        **checked(busy, staged.expected),
        "unsent": num_unsent,
        "p99_over_quiet": found["p99_ms"] / calm["p99_ms_quiet"],
        "stalls_over_20_ms": stalls(busy),
        "stalls_over_20_ms_quiet": stalls(quiet),
        "live_after_s": median(taken.full),
        "delta_live_after_s": median(taken.delta),
        "rolled_back_after_s": median(taken.roll_back),
        **took,
        "first_over_p50": 1000 * first_answers(busy) / calm["p50_ms_quiet"],
        "first_at_start_over_p50": first_over_p50,
        "flip_spread_s": flip_spread(busy),
        "memory_after_over_before": after_bytes / before_bytes,
        **found,
        **calm,
        "requests_per_s": rate,
        "share_of_capacity": share,
        "workers": workers,
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
    parser.add_argument("--workers", type=int, default=1, help="on the one core of the server")
    parser.add_argument("--share", type=float, default=SHARE_OF_CAPACITY, help="of the capacity")
    arguments = parser.parse_args()
    num_full, quiet_s = (4, 5.0) if arguments.quick else (20, 30.0)
    with tempfile.TemporaryDirectory() as name:
        report = measure(
            Path(name), arguments.items, num_full, quiet_s, arguments.share, arguments.workers
        )
    table = Table("figure", "value", title="publishing under load")
    for name, value in report.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
