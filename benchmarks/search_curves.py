"""One engine on one set: how it is built, what it weighs, and recall against speed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from search_sets import SearchSet
from twotower.errors import MissingExtra
from twotower.index.choosing import NATIVE
from twotower.index.exact import ExactIndex
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import SearchResult, VectorIndex
from twotower.index.tuning import ann_recall

__all__ = ["LOCAL", "Curve", "exact_curve", "seconds", "try_curve"]

FloatArray = npt.NDArray[np.float32]

LOCAL: Final = tuple(name for name in NATIVE if name not in ("faiss_flat", "milvus"))
TARGET: Final = 0.95
STOP_AT: Final = 0.99
TIMED_S: Final = 1.0


class Curve(NamedTuple):
    """The rows of one engine, and its index set to the first effort that reaches 0.95."""

    rows: list[dict[str, Any]]
    engine: VectorIndex


def left_out(name: str, found: SearchSet, why: str) -> dict[str, Any]:
    """A row that says why an engine was not measured."""
    return {"set": found.name, "items": len(found.vectors), "engine": name, "left_out": why}


def exact_curve(found: SearchSet, k: int) -> tuple[Curve, SearchResult]:
    """The scan of everything, and the true answers."""
    index = ExactIndex.build(np.arange(len(found.vectors)), found.vectors)
    exact = index.search(found.queries, k)
    about = {"set": found.name, "items": len(found.vectors), "engine": "exact", "effort": 0}
    row = {**about, "build_s": 0.0, **cost(index, found.queries, exact)}
    return Curve([{**row, **worker(index, found)}], index), exact


def curve_of(engine: str, found: SearchSet, exact: SearchResult) -> Curve:
    """Build once and measure every effort up to a recall of 0.99, or the last.

    Raises:
        MissingExtra: its package is not installed.
    """
    before, began = resident_mb(), time.perf_counter()
    index = FrozenIndex.build(NATIVE[engine], np.arange(len(found.vectors)), found.vectors)
    about = {
        "set": found.name,
        "items": len(found.vectors),
        "engine": engine,
        "build_s": time.perf_counter() - began,
        "build_mb": resident_mb() - before,
    }
    if engine == "hnswlib":
        index.native.set_num_threads(1)  # type: ignore[union-attr]
    rows: list[dict[str, Any]] = []
    chosen = None
    for effort in index.efforts():
        index.effort = effort
        rows.append({**about, "effort": effort, **cost(index, found.queries, exact)})
        if chosen is None and rows[-1]["ann_recall"] >= TARGET:
            chosen = effort
        if rows[-1]["ann_recall"] >= STOP_AT:
            break
    index.effort = chosen or index.effort
    about_worker = worker(index, found)
    return Curve([{**row, **about_worker} for row in rows], index)


def cost(index: VectorIndex, queries: FloatArray, exact: SearchResult) -> dict[str, float]:
    """Recall and speed of an index as it is set; one thread, but for `queries_per_s_2_threads`."""
    k = exact.ids.shape[1]
    one, two = batch_s(index, [queries], k), batch_s(index, np.array_split(queries, 2), k)
    p50, p99 = np.percentile(singles_s(index, queries, k), [50, 99]).tolist()
    return {
        "ann_recall": ann_recall(index.search(queries, k), exact),
        "p50_us": p50 * 1e6,
        "p99_us": p99 * 1e6,
        "queries_per_s": len(queries) / one,
        "queries_per_s_2_threads": len(queries) / two,
    }


def batch_s(index: VectorIndex, parts: Sequence[FloatArray], k: int) -> float:
    """Seconds for all queries, the best of three, a thread a part."""
    return min(seconds(lambda: together(index, parts, k)) for _ in range(3))


def together(index: VectorIndex, parts: Sequence[FloatArray], k: int) -> None:
    """Search for every part, each in a thread."""
    threads = [threading.Thread(target=index.search, args=(part, k)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def singles_s(index: VectorIndex, queries: FloatArray, k: int) -> list[float]:
    """Seconds of single queries, one after the other, for a second, five at least."""
    times: list[float] = []
    while sum(times) < TIMED_S or len(times) < 5:
        row = len(times) % len(queries)
        times.append(seconds(partial(index.search, queries[row : row + 1], k)))
    return times


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def worker(index: VectorIndex, found: SearchSet) -> dict[str, float]:
    """What one more serving process costs: a new one opens the saved index and searches."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        np.save(Path(folder) / "queries.npy", found.queries)
        size = sum(path.stat().st_size for path in Path(folder, "index").rglob("*.*"))
        command = [sys.executable, str(Path(__file__).with_name("search_worker.py")), folder]
        ran = subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
        told: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return {"bytes_an_item": size / len(found.vectors), **told}


def resident_mb() -> float:
    """Highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_curve(engine: str, found: SearchSet, exact: SearchResult) -> Curve | dict[str, Any]:
    """Return the curve, or a row that says why there is none."""
    try:
        return curve_of(engine, found, exact)
    except MissingExtra as error:
        return left_out(engine, found, str(error))
