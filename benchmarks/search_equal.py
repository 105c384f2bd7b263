"""Engines at equal recall: queries a second of processor time, in turns, one thread.

    OMP_NUM_THREADS=1 python benchmarks/search_equal.py --gowalla DIR --work DIR
    OMP_NUM_THREADS=1 python benchmarks/search_equal.py --sets gaps --items 100000

For every engine that is installed and every recall the least effort that reaches it, tried one by
one and not in doublings as a publish does; then batches of 500 queries and single ones, in turns,
the best of seven. hnswlib keeps as many candidates in view as it returns, so its efforts begin at
100.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from search_costs import processor_s
from search_sets import SETS, SearchSet, gowalla, make_set
from twotower.errors import MissingExtra
from twotower.index.choosing import NATIVE
from twotower.index.exact import ExactIndex
from twotower.index.faiss import load_faiss
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import SearchResult
from twotower.index.tuning import ann_recall

K: Final = 100
TURNS: Final = 7
SINGLES: Final = 100


class Point(NamedTuple):
    """An engine at the least effort that reaches a recall."""

    engine: str
    target: float
    built: FrozenIndex
    effort: int
    ann_recall: float


def main() -> None:
    """Find the efforts, measure them in turns, print a table."""
    arguments = parsed()
    load_faiss().omp_set_num_threads(1)
    trained = gowalla(arguments.gowalla, arguments.work) if arguments.gowalla else None
    found = make_set(arguments.sets, arguments.items, 500, trained)
    exact = ExactIndex.build(np.arange(len(found.vectors)), found.vectors).search(found.queries, K)
    points = [
        point
        for engine in arguments.engines
        for point in points_of(engine, found, exact, arguments.recalls)
    ]
    show(found, points, measured(points, found))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", choices=SETS, default="gowalla")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--engines", nargs="*", default=["faiss_ivf", "faiss_ivf_flat", "hnswlib"])
    parser.add_argument("--recalls", nargs="*", type=float, default=[0.95, 0.98, 0.99])
    parser.add_argument("--gowalla", type=Path, help="folder of train.txt.gz and test.txt.gz")
    parser.add_argument("--work", type=Path, help="where trained vectors are kept")
    return parser.parse_args()


def points_of(
    engine: str, found: SearchSet, exact: SearchResult, recalls: list[float]
) -> list[Point]:
    """Build an engine and find its efforts; nothing where it is not installed or stays below."""
    try:
        index = FrozenIndex.build(NATIVE[engine], np.arange(len(found.vectors)), found.vectors)
    except MissingExtra:
        return []
    if engine == "hnswlib":
        index.native.set_num_threads(1)  # type: ignore[union-attr]
    points = []
    for target in recalls:
        for effort in efforts(engine, index):
            index.effort = effort
            recall = ann_recall(index.search(found.queries, K), exact)
            if recall >= target:
                points.append(Point(engine, target, index, effort, recall))
                break
    return points


def efforts(engine: str, index: FrozenIndex) -> list[int]:
    """Steps of a twentieth up to the greatest effort."""
    first, last = (100 if "hnsw" in engine else 4), index.efforts()[-1]
    steps = np.geomspace(first, max(first, last), max(2, round(np.log(last / first) / 0.05)))
    return [int(step) for step in np.unique(steps.round())]


def measured(points: list[Point], found: SearchSet) -> dict[Point, tuple[float, float]]:
    """Processor seconds of a batch and of a single query, the best of several turns."""
    best = dict.fromkeys(points, (np.inf, np.inf))
    for _ in range(TURNS):
        for point in points:
            point.built.effort = point.effort
            batch = processor_s(partial(point.built.search, found.queries, K))
            singles = [
                processor_s(partial(point.built.search, query[None], K))
                for query in found.queries[:SINGLES]
            ]
            before = best[point]
            best[point] = min(before[0], batch), min(before[1], float(np.median(singles)))
    return best


def show(found: SearchSet, points: list[Point], costs: dict[Point, Any]) -> None:
    """Print one row a point."""
    title = f"{found.name}, {len(found.vectors):,} items"
    table = Table("recall wanted", "engine", "effort", "recall", "queries/s", "p50 us", title=title)
    for point in sorted(points, key=lambda each: each.target):
        batch_s, single_s = costs[point]
        rate = f"{len(found.queries) / batch_s:,.0f}"
        row = (str(point.target), point.engine, str(point.effort), f"{point.ann_recall:.4f}", rate)
        table.add_row(*row, f"{single_s * 1e6:,.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
