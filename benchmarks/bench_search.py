"""Vector search: recall against speed of every installed engine, and what our layer costs.

    python benchmarks/bench_search.py --json bench-search.json --plot bench-search.png
    python benchmarks/bench_search.py --gowalla DIR --work DIR    # trained vectors, and grown ones
    python benchmarks/bench_search.py --quick                     # 100,000 items, fewer queries

Sets of unit vectors of 64 dimensions: see `search_sets.py`. Each engine is built once; every
effort is measured up to an ANN recall of 0.99: p50 and p99 of single queries, queries a second of a
batch by one thread and by two. A new process then opens what was saved, mapped. The figures of our
layer are of `faiss_ivf` on the first set and size: `search_overhead_us` is our p50 less that of the
raw Faiss call on the same index at the same effort, in turns, and `refined_overhead_us` less that
of Faiss's own rescoring of the same candidates; `filtered_cost_ratio` is the p50 with
1,000 seen items excluded over that without; `exact_batch_share_of_bound` is how long the bare
products of 512 queries take over how long their exact search takes; all in processor time. One
thread, where OMP_NUM_THREADS says so. Milvus is left out: what milvus-lite takes says nothing
about a cluster.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table

from search_costs import exact_costs, filter_costs, layer_costs
from search_curves import LOCAL, Curve, exact_curve, try_curve
from search_plot import plot_curves
from search_sets import SETS, SearchSet, gaps, gowalla, make_set
from twotower.index.faiss import load_faiss
from twotower.index.frozen import FrozenIndex

__all__ = ["commit", "gaps"]

K: Final = 100
NUM_QUERIES: Final = 500
QUICK_QUERIES: Final = 200
COLUMNS: Final = (
    ("effort", "effort", "{}"),
    ("ANN recall@100", "ann_recall", "{:.4f}"),
    ("p50 us", "p50_us", "{:,.0f}"),
    ("p99 us", "p99_us", "{:,.0f}"),
    ("queries/s", "queries_per_s", "{:,.0f}"),
    ("2 threads", "queries_per_s_2_threads", "{:,.0f}"),
    ("build s", "build_s", "{:.1f}"),
    ("bytes an item", "bytes_an_item", "{:,.0f}"),
    ("open ms", "open_ms", "{:.1f}"),
    ("first query ms", "first_query_ms", "{:.1f}"),
    ("private MB", "worker_private_mb", "{:.1f}"),
)


def main() -> None:
    """Measure every set, size and engine; print tables and write one JSON file."""
    arguments = parsed()
    load_faiss().omp_set_num_threads(1)
    num_queries = QUICK_QUERIES if arguments.quick else NUM_QUERIES
    trained = gowalla(arguments.gowalla, arguments.work) if arguments.gowalla else None
    curves: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, num_items in wanted(arguments):
        found = make_set(name, num_items, num_queries, trained)
        rows, more = measure_set(found, arguments.engines)
        curves += rows
        figures = figures or more
        show(found, rows)
        write(arguments, curves, figures, num_queries)
        del found
        gc.collect()
    show_figures(figures)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="a PNG file")
    parser.add_argument("--items", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--sets", nargs="*", choices=SETS)
    parser.add_argument("--engines", nargs="*", choices=sorted(LOCAL), default=list(LOCAL))
    parser.add_argument("--gowalla", type=Path, help="folder of train.txt.gz and test.txt.gz")
    parser.add_argument("--work", type=Path, help="where trained vectors are kept")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.gowalla and not arguments.work:
        parser.error("--gowalla needs --work")
    if not arguments.gowalla and {"gowalla", "grown"} & set(arguments.sets or ()):
        parser.error("gowalla and grown need --gowalla and --work")
    return arguments


def wanted(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Return sets and sizes; the trained set has one size, the grown one starts above it."""
    sizes = arguments.items[:1] if arguments.quick else arguments.items
    names = arguments.sets or (SETS if arguments.gowalla else ("gaps", "even"))
    pairs = [(name, size) for size in sizes for name in names if name != "gowalla"]
    return pairs + ([("gowalla", 0)] if "gowalla" in names else [])


def measure_set(
    found: SearchSet, engines: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Curves of the engines on a set, and the costs of our layer on its Faiss IVF index."""
    scan, exact = exact_curve(found, K)
    rows, figures = list(scan.rows), exact_costs(scan.engine, found.vectors, found.queries)
    for engine in engines:
        curve = try_curve(engine, found, exact)
        if not isinstance(curve, Curve):
            rows.append(curve)
            continue
        rows += curve.rows
        if engine == "faiss_ivf":
            index = cast(FrozenIndex, curve.engine)
            figures |= layer_costs(index, found.vectors, found.queries)
            figures |= filter_costs(index, found.vectors, found.queries)
            about = {"set": found.name, "items": len(found.vectors), "effort": index.effort}
            figures["measured_on"] = about
    return rows, figures


def write(
    arguments: argparse.Namespace,
    curves: list[dict[str, Any]],
    figures: dict[str, Any],
    num_queries: int,
) -> None:
    """Write what was measured so far, so that a stopped run is not lost."""
    report = {
        **figures,
        "curves": curves,
        "k": K,
        "queries": num_queries,
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot_curves(arguments.plot, curves)


def show(found: SearchSet, rows: list[dict[str, Any]]) -> None:
    """Print the curves of one set."""
    title = f"{found.name}, {len(found.vectors):,} items"
    table = Table(title=title, title_justify="left")
    table.add_column("engine", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right")
    for row in rows:
        if "left_out" in row:
            table.add_row(row["engine"], "left out: " + row["left_out"])
        else:
            table.add_row(row["engine"], *(form.format(row[key]) for _, key, form in COLUMNS))
    Console(width=160).print(table)


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
