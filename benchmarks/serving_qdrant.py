"""qdrant-client in local mode over the same item vectors: one search after the other, timed.

Runs under the Python of an environment of its own, which has qdrant-client and numpy. Its local
mode is numpy inside the process and looks at every vector, so its ANN recall is 1; seen items are
found, too, and dropped afterwards: its filters cost it a pass over all points in Python.

    python serving_qdrant.py FOLDER K SECONDS

`FOLDER` holds `vectors.npy`, `float32[n, D]`, `queries.npy`, `float32[q, D]`, and `num_hidden.npy`,
`int64[q]`: how many items more than `K` a query asks for. Each line on stdin is a round, answered
by a line of JSON with `cpu_us`, the CPU time of a search; the first also has `rows`, what was found
for every query.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Load, say so, and measure a round for each line."""
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    warnings.simplefilter("ignore")  # that local mode is for few points is what is measured
    folder, k, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    limits = (k + np.load(folder / "num_hidden.npy")).tolist()
    client = QdrantClient(":memory:")
    of_items = VectorParams(size=vectors.shape[1], distance=Distance.DOT)
    client.create_collection("items", vectors_config=of_items)
    client.upload_collection("items", vectors=vectors, ids=range(len(vectors)))

    def search(row: int) -> list[Any]:
        found = client.query_points("items", query=queries[row], limit=limits[row])
        points: list[Any] = found.points
        return points

    say({"points": len(vectors)})
    for number, _ in enumerate(sys.stdin):
        rows = [[p.id for p in search(row)] for row in range(len(queries))] if not number else None
        say({"cpu_us": cpu_us(search, len(queries), seconds), "rows": rows})


def cpu_us(search: Any, num_queries: int, seconds: float) -> float:
    """CPU of one search."""
    num_calls, began, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        search(num_calls % num_queries)
        num_calls += 1
    return (time.process_time() - began) / num_calls * 1e6


def say(answer: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
