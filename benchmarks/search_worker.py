"""A serving process alone: opens a saved index, searches, and prints what that took as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from twotower.index import open_index
from twotower.index.faiss import load_faiss


def main() -> None:
    """Open `FOLDER/index`, search for each of `FOLDER/queries.npy`."""
    folder = Path(sys.argv[1])
    load_faiss().omp_set_num_threads(1)
    queries = np.load(folder / "queries.npy")
    before = private_mb()
    began = time.perf_counter()
    index = open_index(folder / "index", mmap=True)
    opened = time.perf_counter()
    index.search(queries[:1], 100)
    first = time.perf_counter()
    times = []
    for row in range(min(300, len(queries))):
        start = time.perf_counter()
        index.search(queries[row : row + 1], 100)
        times.append(time.perf_counter() - start)
    told = {
        "open_ms": (opened - began) * 1e3,
        "first_query_ms": (first - opened) * 1e3,
        "worker_p50_us": float(np.median(times)) * 1e6,
        "worker_private_mb": private_mb() - before,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def private_mb() -> float:
    """Memory of this process that it shares with none and that no file backs."""
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
