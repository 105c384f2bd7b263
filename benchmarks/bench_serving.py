"""What a request costs the server beyond its search, and beside FastAPI as one usually writes it.

    python benchmarks/bench_serving.py --json bench-serving.json
    python benchmarks/bench_serving.py --quick

200,000 items in clusters of power-law sizes, 64 dimensions, k 100, Faiss IVF at the effort that
publishing measured to reach an ANN recall of 0.95; each user has eight seen items, which are left
out. A real `twotower serve` with one worker, an API key and its metrics on one core; wrk on
another; beside it `serving_peer.py`, the same retriever behind FastAPI, pydantic and
prometheus_client on the same core, in turns. Overload neither refuses nor makes answers cheaper, so
that both do the same work. The bare calls run in this process on the server's core, in turns too.

- `cpu_vs_tower_plus_search`: CPU of a request in the server over that of the bare tower call and
  the bare search with the same exclusions.
- `overhead_vs_search`: CPU of a request that is not the search, over the search.
- `vs_idiomatic_fastapi`: requests/s over the peer's, 16 connections each.
- `vs_qdrant_local`: CPU of a search in qdrant-client's local mode (`serving_qdrant.py`, in an
  environment of its own, which pip makes) over that of our engine `exact`, on one core, in turns;
  ours leaves out what a user has seen, local mode finds as many more. It looks at every vector, so
  both have an ANN recall of 1; `search_us` is ours at `ann_recall`. Null with its reason where
  qdrant-client cannot be installed.
- `requests_per_s` with 16 connections; `p50_ms` and `p99_ms` with one.
- `two_workers_over_one`: requests/s; needs two cores for the workers and two for the load.
- `ready_s`: from the start of the process until `/readyz` is green: checksums, load, warm-up.
- `second_worker_memory_share`: what a second worker adds, over the server with one (proportional
  set size of all processes).

CPU is what the kernel counts for the worker, in hundredths of a second: runs of some seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench_search import commit, gaps
from serving_load import Load, Server, drive, memory_bytes, running
from serving_vectors import NO_FIGURES, figures, qdrant
from tiny_checkpoint import external_ids, replace_table, tiny_checkpoint
from twotower.index.exact import ExactIndex
from twotower.index.faiss import load_faiss
from twotower.index.interface import TunableIndex
from twotower.index.settings import IndexSettings
from twotower.index.tuning import ann_recall
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.key_changes import create_key
from twotower.serving.retriever import Retriever

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

K: Final = 100
DIMENSIONS: Final = 64
NUM_USERS: Final = 2_000
CONNECTIONS: Final = 16
PROJECT: Final = """
config_version = 1
[events]
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
[serving]
drain_delay_s = 0
overload_degrades = false
max_wait_s = 60
"""


class Scale(NamedTuple):
    """How much is measured."""

    items: int
    rounds: int
    seconds: float


FULL: Final = Scale(200_000, 5, 6.0)
QUICK: Final = Scale(20_000, 1, 1.0)


class Setting(NamedTuple):
    """A project, who may ask, and where things run."""

    folder: Path
    key: str
    scale: Scale
    server_cores: tuple[int, ...]
    load_cores: tuple[int, ...]

    @property
    def data_path(self) -> Path:
        """Of the project."""
        return self.folder / "twotower-data"


def main() -> None:
    """Measure, show one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="Shows that it runs; means nothing.")
    parser.add_argument("--items", type=int, help="Instead of 200,000.")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(__file__).parent / "build",
        help="the peers' virtual environments",
    )
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # several threads of BLAS on one core only spin
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"}
        )
    scale = QUICK if arguments.quick else FULL
    if arguments.items:
        scale = scale._replace(items=arguments.items)
    with tempfile.TemporaryDirectory() as name:
        setting = make_project(Path(name), scale)
        report = measure(setting, arguments.environments)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def make_project(folder: Path, scale: Scale) -> Setting:
    """A live generation of clustered items, and a key."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("expected two cores, one for the server and one for the load, found one")
    (folder / "twotower.toml").write_text(PROJECT)
    checkpoint = tiny_checkpoint(
        num_users=NUM_USERS,
        num_items=scale.items,
        sizes={"vector_dim": DIMENSIONS, "id_dim": DIMENSIONS, "hidden": (128,)},
    )
    rows, _ = gaps(len(checkpoint.model.tables["item_id"].weight))
    replace_table(checkpoint, "item_id", rows)
    store = ModelStore(folder / "twotower-data")
    published = publish(checkpoint, store, index=IndexSettings(engine="faiss_ivf"))
    store.activate(published.name, force=True)
    key = create_key(folder / "twotower-data", "bench", ["retrieve"]).secret
    half = max(1, len(cores) // 2)
    return Setting(folder, key, scale, tuple(cores[:half]), tuple(cores[half:]))


def measure(setting: Setting, environments: Path) -> dict[str, Any]:
    """Run everything in turns and return the figures; each is the median of its rounds."""
    memory = second_worker_memory(setting)
    bare = Bare(setting)
    core = setting.server_cores[:1]
    ours: list[Load] = []
    single: list[Load] = []
    peers: list[Load] = []
    tower_us: list[float] = []
    search_us: list[float] = []
    with (
        running(serve_command(setting, 1), core) as server,
        running(peer_command(setting), core) as peer,
    ):
        for asked in (server, peer):
            load(setting, asked, CONNECTIONS, 1.0)
        for _ in range(setting.scale.rounds):
            ours.append(load(setting, server, CONNECTIONS))
            tower_us.append(bare.tower_us())
            peers.append(load(setting, peer, CONNECTIONS))
            search_us.append(bare.search_us())
            single.append(load(setting, server, 1))
        ready_s = server.ready_s
    beside = beside_qdrant(setting, bare, environments)
    tower, search = statistics.median(tower_us), statistics.median(search_us)
    cpu = median(ours, "cpu_us")
    return {
        "cpu_vs_tower_plus_search": cpu / (tower + search),
        "overhead_vs_search": (cpu - search) / search,
        "vs_idiomatic_fastapi": median(ours, "requests_per_s") / median(peers, "requests_per_s"),
        **beside,
        **memory,
        **two_workers(setting),
        "requests_per_s": median(ours, "requests_per_s"),
        "p50_ms": median(single, "p50_ms"),
        "p99_ms": median(single, "p99_ms"),
        "ann_recall": bare.ann_recall,
        "ready_s": ready_s,
        "cpu_us": cpu,
        "tower_us": tower,
        "search_us": search,
        "fastapi_requests_per_s": median(peers, "requests_per_s"),
        "fastapi_cpu_us": median(peers, "cpu_us"),
        "items": setting.scale.items,
        "k": K,
        "rounds": setting.scale.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "commit": commit(),
    }


def median(loads: Sequence[Load], name: str) -> float:
    """The median of one figure."""
    return float(statistics.median(getattr(found, name) for found in loads))


def load(setting: Setting, server: Server, connections: int, seconds: float | None = None) -> Load:
    """Ask for as long as a round takes."""
    return drive(
        server,
        users(),
        k=K,
        key=setting.key,
        connections=connections,
        seconds=setting.scale.seconds if seconds is None else seconds,
        cores=setting.load_cores,
        folder=setting.folder,
    )


def users() -> list[int]:
    """IDs of known users, in an order that is no order."""
    every = np.array(external_ids("int", "user", NUM_USERS))
    asked: list[int] = np.random.default_rng(0).permutation(every)[:1000].tolist()
    return asked


def serve_command(setting: Setting, workers: int) -> list[str]:
    """`twotower serve` of this checkout."""
    code = "from twotower.cli.app import main; main()"
    config = str(setting.folder / "twotower.toml")
    options = ["-c", config, "--port", "0", "--workers", str(workers), "--json"]
    return [sys.executable, "-c", code, "-q", "serve", *options]


def peer_command(setting: Setting) -> list[str]:
    """The peer, over the same data folder."""
    script = Path(__file__).with_name("serving_peer.py")
    digest = hashlib.sha256(setting.key.encode()).hexdigest()
    return [sys.executable, str(script), str(setting.data_path), digest]


class Bare:
    """The tower and the search alone, for the same users, in this process."""

    def __init__(self, setting: Setting) -> None:
        load_faiss().omp_set_num_threads(1)
        self._retriever = retriever = Retriever.open(setting.data_path)
        self._core = setting.server_cores[0]
        self._seconds = setting.scale.seconds / 4
        encoder = retriever.encoder
        positions = encoder.users.positions_of(encoder.users.stored_form(users())).tolist()
        self._asked = [
            (position, encoder.profile(position, {})[0], encoder.recent.list_at(position))
            for position in positions
        ]
        self._vectors = [encoder.user_vector(*asked) for asked in self._asked]
        self._hidden = [[encoder.seen.list_at(position)] for position in positions]
        self.queries = np.concatenate(self._vectors[:200])
        self.num_hidden = np.array([len(hidden[0]) for hidden in self._hidden[:200]])
        some = np.concatenate(self._vectors[:500])
        index = retriever.index
        assert isinstance(index, TunableIndex)
        self.ann_recall = ann_recall(index.search(some, K), index.search_exactly(some, K))
        vectors, positions = self.corpus()
        self._exact = ExactIndex.build(positions, vectors)
        self.exact = self._exact.search(self.queries, K)

    def tower_us(self) -> float:
        """CPU of one call of the user tower."""
        vector, asked = self._retriever.encoder.user_vector, self._asked
        return self._cpu_us(lambda row: vector(*asked[row]))

    def search_us(self) -> float:
        """CPU of one search."""
        search, vectors, hidden = self._retriever.index.search, self._vectors, self._hidden
        return self._cpu_us(lambda row: search(vectors[row], K, exclude=hidden[row]))

    def exact_us(self) -> float:
        """CPU of one search of the engine `exact`, which looks at every vector."""
        search, vectors, hidden = self._exact.search, self._vectors, self._hidden
        rows = len(self.num_hidden)
        return self._cpu_us(lambda row: search(vectors[row % rows], K, exclude=hidden[row % rows]))

    def corpus(self) -> tuple[FloatArray, IntArray]:
        """The vectors that are searched, and the position of each."""
        base = self._retriever.base
        return base.array("item_vectors.npy"), base.array("corpus.npy")

    def _cpu_us(self, call: Callable[[int], object]) -> float:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})
        try:
            num_calls, began, end = 0, time.process_time(), time.perf_counter() + self._seconds
            while time.perf_counter() < end:
                call(num_calls % len(self._asked))
                num_calls += 1
            return (time.process_time() - began) / num_calls * 1e6
        finally:
            os.sched_setaffinity(0, before)


def beside_qdrant(setting: Setting, bare: Bare, environments: Path) -> dict[str, Any]:
    """The search beside that of qdrant-client, at an ANN recall of 1."""
    vectors, positions = bare.corpus()
    rows = np.full(int(positions.max()) + 1, -1)
    rows[positions] = np.arange(len(positions))
    exact = bare.exact._replace(ids=rows[bare.exact.ids])
    try:
        with qdrant(
            environments, setting.folder, setting.server_cores[0], k=K,
            seconds=setting.scale.seconds / 2,
            vectors=vectors, queries=bare.queries, num_hidden=bare.num_hidden,
        ) as peer:  # fmt: skip
            return figures(peer, bare.exact_us, setting.scale.rounds, exact, K)
    except RuntimeError as error:
        return {**NO_FIGURES, "qdrant_reason": str(error)}


def second_worker_memory(setting: Setting) -> dict[str, Any]:
    """What a second worker adds; measured while no other process maps the same files."""
    bytes_by_workers = {}
    for workers in (1, 2):
        with running(serve_command(setting, workers), setting.server_cores[:2]) as server:
            load(setting, server, CONNECTIONS, 1.0)
            bytes_by_workers[workers] = memory_bytes(server)
    added = bytes_by_workers[2] - bytes_by_workers[1]
    return {
        "second_worker_memory_share": added / bytes_by_workers[1],
        "second_worker_mb": added / 2**20,
        "one_worker_mb": bytes_by_workers[1] / 2**20,
    }


def two_workers(setting: Setting) -> dict[str, Any]:
    """What a second worker brings."""
    if len(setting.server_cores) < 2:
        reason = f"{len(setting.server_cores) + len(setting.load_cores)} cores; it needs 4"
        return {"two_workers_over_one": None, "two_workers_reason": reason}
    medians = []
    for workers in (1, 2):
        with running(serve_command(setting, workers), setting.server_cores[:workers]) as server:
            load(setting, server, CONNECTIONS, 1.0)
            loads = [load(setting, server, 2 * CONNECTIONS) for _ in range(setting.scale.rounds)]
        medians.append(median(loads, "requests_per_s"))
    return {"two_workers_over_one": medians[1] / medians[0]}


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("figure", "value", title="retrieval over HTTP", title_justify="left")
    for name, value in report.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
