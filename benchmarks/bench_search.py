"""Vector search: recall against speed of every installed engine, and what our layer costs.

    python benchmarks/bench_search.py --json bench-search.json
    python benchmarks/bench_search.py --items 1000000 --sets gaps --engines faiss_ivf hnswlib

Two sets of unit vectors of 64 dimensions, by seed: `gaps`, clusters of power-law sizes with empty
space between them, and `even`, one cloud with a decaying spectrum and none. Queries are mixtures
of items and noise. Each engine is built once; every effort is measured up to an ANN recall of
0.99. `search_overhead_us` is our p50 less that of the raw Faiss call on the same index at the same
effort, in turns; `filtered_cost_ratio` is the p50 with 1,000 seen items excluded over that without.
Faiss runs on one thread; hnswlib and ScaNN choose theirs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from twotower.errors import MissingExtra
from twotower.index.choosing import NATIVE
from twotower.index.exact import ExactIndex
from twotower.index.faiss import Ivf, load_faiss
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import SearchResult
from twotower.index.tuning import Point, measure_point

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

DIMENSIONS: Final = 64
K: Final = 100
NUM_QUERIES: Final = 500
NUM_SEEN: Final = 1_000
STOP_AT: Final = 0.99
LOCAL: Final = tuple(name for name in NATIVE if name not in ("faiss_flat", "milvus"))
SHARES: Final = (0.5, 0.1, 0.01)


def main() -> None:
    """Measure every set, size and engine; print tables and write one JSON file."""
    arguments = parsed()
    load_faiss().omp_set_num_threads(1)
    curves: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for num_items in arguments.items:
        for name in arguments.sets:
            vectors, queries = SETS[name](num_items)
            found, more = measure_set(name, vectors, queries, arguments.engines)
            curves += found
            figures |= more if not figures else {}
            show(name, num_items, found)
    report = {
        **figures,
        "curves": curves,
        "k": K,
        "queries": NUM_QUERIES,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
    }
    show_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", nargs="*", type=int, default=[100_000])
    parser.add_argument("--sets", nargs="*", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--engines", nargs="*", choices=sorted(LOCAL), default=list(LOCAL))
    return parser.parse_args()


def gaps(num_items: int) -> tuple[FloatArray, FloatArray]:
    """Clusters of power-law sizes in groups, with space between them."""
    random = np.random.default_rng(0)
    num_clusters = max(20, num_items // 50)
    groups = random.standard_normal((max(4, num_clusters // 20), DIMENSIONS))
    centres = groups[random.integers(0, len(groups), num_clusters)]
    centres = centres + 0.6 * random.standard_normal((num_clusters, DIMENSIONS))
    weights = 1 / np.arange(1, num_clusters + 1) ** 0.7
    members = random.choice(num_clusters, num_items, p=weights / weights.sum())
    vectors = centres[members] + 0.45 * random.standard_normal((num_items, DIMENSIONS))
    return unit(vectors), mixed(unit(vectors), random)


def even(num_items: int) -> tuple[FloatArray, FloatArray]:
    """One cloud whose spectrum decays, as trained vectors have it."""
    random = np.random.default_rng(1)
    scale = (1 + np.arange(DIMENSIONS)) ** -0.4
    vectors = unit(random.standard_normal((num_items, DIMENSIONS)) * scale)
    return vectors, mixed(vectors, random)


SETS: Final = {"even": even, "gaps": gaps}


def mixed(vectors: FloatArray, random: np.random.Generator) -> FloatArray:
    """Queries: two items and noise, as users like more than one thing."""
    pairs = random.integers(0, len(vectors), (NUM_QUERIES, 2))
    noise = random.standard_normal((NUM_QUERIES, DIMENSIONS)) / DIMENSIONS**0.5
    return unit(vectors[pairs[:, 0]] + 0.6 * vectors[pairs[:, 1]] + 0.5 * noise)


def unit(vectors: npt.NDArray[Any]) -> FloatArray:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def measure_set(
    name: str, vectors: FloatArray, queries: FloatArray, engines: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Curves of the engines on a set, and the costs of our layer on its Faiss IVF index."""
    ids = np.arange(len(vectors), dtype=np.int64)
    exact_index = ExactIndex.build(ids, vectors)
    exact = exact_index.search(queries, K)
    about = {"set": name, "items": len(vectors)}
    exact_point = measure_point(exact_index, queries, exact, 0)
    curves = [{**about, "engine": "exact", "build_s": 0.0, **exact_point._asdict()}]
    figures: dict[str, Any] = {}
    for engine in engines:
        try:
            found, index = engine_curve(engine, ids, vectors, queries, exact)
        except MissingExtra as error:
            curves.append({**about, "engine": engine, "left_out": str(error)})
            continue
        curves += [{**about, **row} for row in found]
        if engine == "faiss_ivf":
            figures = {**layer_costs(index, queries), **filter_costs(index, vectors, queries)}
            figures["measured_on"] = {**about, "effort": index.effort}
    return curves, figures


def engine_curve(
    engine: str, ids: IntArray, vectors: FloatArray, queries: FloatArray, exact: SearchResult
) -> tuple[list[dict[str, Any]], FrozenIndex]:
    """Build once and measure every effort up to a recall of 0.99, or the last."""
    before, began = peak_mb(), time.perf_counter()
    index = FrozenIndex.build(NATIVE[engine], ids, vectors)
    built = {"build_s": time.perf_counter() - began, "peak_rss_growth_mb": peak_mb() - before}
    rows, chosen = [], index.effort
    for effort in index.efforts():
        index.effort = effort
        point: Point = measure_point(index, queries, exact, effort)
        rows.append({"engine": engine, **built, **point._asdict()})
        if point.ann_recall >= 0.95 and rows[-2:-1] and rows[-2]["ann_recall"] < 0.95:
            chosen = effort
        if point.ann_recall >= STOP_AT:
            break
    index.effort = min(chosen, index.effort)
    return rows, index


def peak_mb() -> float:
    """Highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def layer_costs(index: FrozenIndex, queries: FloatArray) -> dict[str, Any]:
    """Our call beside the raw Faiss call: same index, same effort, as many candidates."""
    native, depth = index.native, int(Ivf.candidates * K)
    parameters = load_faiss().SearchParametersIVF(nprobe=index.effort)

    def raw(some: FloatArray) -> Any:
        return native.search(some, depth, params=parameters)  # type: ignore[union-attr]

    def ours(some: FloatArray) -> Any:
        return index.search(some, K)

    raw_us, our_us = in_turns(raw, ours, queries)
    return {
        "search_overhead_us": our_us - raw_us,
        "raw_p50_us": raw_us,
        "our_p50_us": our_us,
        "batch_throughput_share": seconds(raw, queries) / seconds(ours, queries),
    }


def in_turns(first: Any, second: Any, queries: FloatArray) -> tuple[float, float]:
    """Median microseconds of one query for each of two functions, called in turns.

    Each is given another query, so that neither finds its vectors in a cache that the other filled.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for row in range(len(queries)):
        for call, taken, place in zip((first, second), times, (row, row - 50), strict=True):
            query = queries[place][None]
            began = time.perf_counter()
            call(query)
            taken.append(time.perf_counter() - began)
    return float(np.median(times[0]) * 1e6), float(np.median(times[1]) * 1e6)


def seconds(call: Any, queries: FloatArray) -> float:
    """Median of three calls with all queries."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        call(queries)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def filter_costs(index: FrozenIndex, vectors: FloatArray, queries: FloatArray) -> dict[str, Any]:
    """What exclusions and attribute filters cost, whether they leak or fall short, their recall."""
    random = np.random.default_rng(2)
    near = index.search(queries, 3 * NUM_SEEN).ids
    seen = [
        np.concatenate([random.choice(row, NUM_SEEN // 2), random.integers(0, len(index), 500)])
        for row in near
    ]
    turn = itertools.cycle(seen)

    def plain(query: FloatArray) -> Any:
        return index.search(query, K)

    def less(query: FloatArray) -> Any:
        return index.search(query, K, exclude=[next(turn)])

    plain_us, less_us = in_turns(plain, less, queries)
    answers = index.search(queries, K, exclude=seen)
    leaked = sum(np.isin(found, out).any() for found, out in zip(answers.ids, seen, strict=True))
    return {
        "filtered_cost_ratio": less_us / plain_us,
        "filtered_leaked": int(leaked),
        "filtered_short": int((answers.ids < 0).any(axis=1).sum()),
        "attribute_filters": [attribute_filter(index, vectors, queries, share) for share in SHARES],
    }


def attribute_filter(
    index: FrozenIndex, vectors: FloatArray, queries: FloatArray, share: float
) -> dict[str, Any]:
    """One shared mask that lets a share of the items through."""
    mask = np.random.default_rng(3).random(len(index)) < share
    few = queries[:200]
    allowed = np.flatnonzero(mask)
    exact = ExactIndex.build(allowed, vectors[allowed]).search(few, K)
    times = []
    hits = []
    short = 0
    for row in range(len(few)):
        began = time.perf_counter()
        found = index.search(few[row : row + 1], K, allowed=mask).ids[0]
        times.append(time.perf_counter() - began)
        hits.append(np.isin(exact.ids[row], found).mean())
        short += int((found < 0).any())
    p50_us = float(np.median(times) * 1e6)
    return {"share": share, "ann_recall": float(np.mean(hits)), "p50_us": p50_us, "short": short}


def show(name: str, num_items: int, curves: list[dict[str, Any]]) -> None:
    """Print the curves of one set."""
    table = Table("engine", title=f"{name}, {num_items:,} items", title_justify="left")
    for heading in ("build s", "effort", "ANN recall@100", "p50 us", "p99 us", "queries/s"):
        table.add_column(heading, justify="right")
    for row in curves:
        if "left_out" in row:
            table.add_row(row["engine"], "left out", "", "", "", "", "")
            continue
        table.add_row(
            row["engine"],
            f"{row['build_s']:.1f}",
            f"{row['effort']}",
            f"{row['ann_recall']:.4f}",
            f"{row['p50_us']:,.0f}",
            f"{row['p99_us']:,.0f}",
            f"{row['queries_per_s']:,.0f}",
        )
    Console(width=110).print(table)


def show_figures(figures: dict[str, Any]) -> None:
    """Print what our layer costs."""
    table = Table("figure", "value", title="over the raw call", title_justify="left")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console(width=110).print(table)


def commit() -> str:
    """The commit that was measured."""
    words = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    found: Any = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return str(found.stdout).strip()


if __name__ == "__main__":
    main()
