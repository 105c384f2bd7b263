"""The peer that searches vectors: qdrant-client beside our exact search, in turns, in one run."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training_environments import environment_python
from twotower.index.interface import SearchResult
from twotower.index.tuning import ann_recall

__all__ = ["NO_FIGURES", "Qdrant", "figures", "qdrant"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

NO_FIGURES: Final[dict[str, Any]] = {
    "vs_qdrant_local": None, "qdrant_us": None, "exact_search_us": None, "qdrant_ann_recall": None,
}  # fmt: skip


class Qdrant:
    """A process that holds the vectors and answers a round with the CPU time of a search."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.rows: list[list[int]] = []
        """What the first round found for each query, best first."""
        self._read()

    def round_us(self) -> float:
        """Run a round."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self._read()
        self.rows = found["rows"] or self.rows
        return float(found["cpu_us"])

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("it ended before it answered")
        return json.loads(line)


@contextlib.contextmanager
def qdrant(
    environments: Path, folder: Path, core: int, *, k: int, seconds: float,
    vectors: FloatArray, queries: FloatArray, num_hidden: IntArray,
) -> Iterator[Qdrant]:  # fmt: skip
    """Start it on one core; killed at the end.

    Raises:
        RuntimeError: it cannot be installed, or does not run.
    """
    python = environment_python("qdrant", environments)
    arrays: dict[str, npt.NDArray[Any]] = {
        "vectors": vectors,
        "queries": queries,
        "num_hidden": num_hidden,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    script = Path(__file__).with_name("serving_qdrant.py")
    command = ["taskset", "--cpu-list", str(core), str(python), str(script)]
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(folder), str(k), str(seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables,
    )  # fmt: skip
    try:
        yield Qdrant(process)
    finally:
        process.kill()
        process.communicate()


def figures(
    peer: Qdrant, exact_us: Callable[[], float], rounds: int, exact: SearchResult, k: int
) -> dict[str, Any]:
    """Measure both in turns: ours looks at every vector as well, so ANN recall is 1 for both."""
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(peer.round_us())
        ours.append(exact_us())
    found = np.array([rows[:k] for rows in peer.rows], np.int64)
    theirs_us, ours_us = statistics.median(theirs), statistics.median(ours)
    return {
        "vs_qdrant_local": theirs_us / ours_us,
        "qdrant_us": theirs_us,
        "exact_search_us": ours_us,
        "qdrant_ann_recall": ann_recall(SearchResult(found, exact.scores), exact),
    }
