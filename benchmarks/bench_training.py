"""Training: examples a second of the two-tower step, beside its bound and its peers.

    python benchmarks/bench_training.py --json bench-training.json
    python benchmarks/bench_training.py --quick --without tfrs rechub
    python benchmarks/bench_training.py --device cuda

1M users, 200k items, ID dimension 64, 4 categorical features of dimension 16 a side, towers
128-128-64, batch 4,096, listwise with logQ, accidental hits masked. Every system is a process of
its own on the same examples; they take turns, a few steps each, round after round, and every ratio
is the median over the rounds of two neighbours in time: what the machine does beside them meets all
of them alike. The bound is the arithmetic of both towers and of all logits at the speed of a square
sgemm in the same rounds.

With `--device cuda` this package, the sgemm and the plain torch peer run there, in float32 without
TF32, and TorchRec where it is installed; the peers that are made for the CPU are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import training_workload as workload
from bench_stream import commit
from training_environments import PEER_PACKAGES, environment_python

FOLDER: Final = Path(__file__).parent
STEPS: Final = {"ours": 8, "ours_10m": 8, "sgemm": 8, "torch_sparse_adagrad": 3, "rechub": 1}
"""A turn of each system; 4 where nothing is said."""
CUDA_STEPS: Final = {"ours": 60, "ours_10m": 60, "sgemm": 8, "torch_sparse_adagrad": 30}
ON_CUDA: Final = ("sgemm", "ours", "torch_sparse_adagrad", "torchrec", "ours_10m")
ENVIRONMENT_OF: Final = {"tfrs": "tfrs", "tfrs_masked": "tfrs", "rechub": "rechub"}
SYSTEMS: Final = (
    "sgemm", "ours", "torch_sparse_adagrad", "tfrs_masked", "tfrs", "rechub", "torchrec",
    "ours_10m",
)  # fmt: skip
MEMORY_SIZES: Final = (2_048, 4_096, 8_192)


class Worker:
    """A system in its process, asked for steps."""

    def __init__(self, name: str, python: Path, threads: int, device: str) -> None:
        words = [str(python), str(FOLDER / "training_workers.py"), name, str(threads), device]
        self.name = name
        self._steps = (STEPS if device == "cpu" else CUDA_STEPS).get(name, 4)
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = self._answer()

    def rate(self) -> float:
        """Return the examples a second of one turn."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self._steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return float(answer["examples"]) / float(answer["seconds"])

    def end(self) -> None:
        """Let it end with its input."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError((errors.strip().splitlines() or ["ended without a word"])[-1][:200])
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """Measure, show one table, write one JSON file."""
    arguments = parse()
    began = time.perf_counter()
    notes: dict[str, str] = {}
    rates = take_turns(arguments, notes)
    figures = ratios(rates) | loss_figures(arguments.device) | loader_figures(arguments.loader_rows)
    report = {
        **{name: float(f"{value:.6g}") for name, value in figures.items()},
        "not_measured": notes or None,
        "parameters": {
            "batch": workload.BATCH, "threads": arguments.threads, "rounds": arguments.rounds,
            "device": arguments.device,
            "users": workload.NUM_USERS, "items": workload.NUM_ITEMS,
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "commit": commit(),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    show(report, figures, notes)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--without", nargs="*", default=[], choices=SYSTEMS)
    parser.add_argument(
        "--environments",
        type=Path,
        default=FOLDER / "build",
        help="the peers' virtual environments",
    )
    arguments = parser.parse_args()
    arguments.rounds = 5 if arguments.quick else 15
    arguments.loader_rows = 2_000_000 if arguments.quick else 10_000_000
    return arguments


def take_turns(arguments: argparse.Namespace, notes: dict[str, str]) -> list[dict[str, float]]:
    """Return what each system did in each round, examples a second."""
    workers = []
    for name in SYSTEMS:
        if name in arguments.without:
            notes[name] = "left out by --without"
            continue
        if arguments.device == "cuda" and name not in ON_CUDA:
            notes[name] = "measured on the CPU"
            continue
        try:
            workers.append(start(name, arguments))
        except (RuntimeError, OSError) as error:
            notes[name] = str(error)
    rounds = [{worker.name: worker.rate() for worker in workers} for _ in range(arguments.rounds)]
    for worker in workers:
        worker.end()
    return rounds


def start(name: str, arguments: argparse.Namespace) -> Worker:
    """Start a system, in its own environment where it has one."""
    python = Path(sys.executable)
    if name in ENVIRONMENT_OF:
        assert ENVIRONMENT_OF[name] in PEER_PACKAGES
        python = environment_python(ENVIRONMENT_OF[name], arguments.environments)
    return Worker(name, python, arguments.threads, arguments.device)


def ratios(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the medians, and the medians of what each round's neighbours say."""

    def over(first: str, second: str) -> list[float]:
        return [one[first] / one[second] for one in rounds if first in one and second in one]

    flops = sum(workload.flops_per_example(workload.BATCH).values())
    found = {
        "examples_per_s": [one["ours"] for one in rounds if "ours" in one],
        "sgemm_gflops": [one["sgemm"] / 1e9 for one in rounds if "sgemm" in one],
        "sgemm_bound_share": [share * flops for share in over("ours", "sgemm")],
        "step_time_10m_over_1m_rows": over("ours", "ours_10m"),
        **{f"vs_{name}": over("ours", name) for name in SYSTEMS[2:-1]},
    }
    return {name: median(values) for name, values in found.items() if values}


def loss_figures(device: str) -> dict[str, float]:
    """Return the memory of the loss and the error of its gradients, each in a fresh process."""

    def ask(*words: str) -> float:
        command = [sys.executable, str(FOLDER / "training_ours.py"), device, *words]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(found.stdout))

    memory = {size: ask("memory", "tiled", str(size)) for size in MEMORY_SIZES}
    return {
        "gradient_error": ask("gradients"),
        "loss_extra_memory_mb": memory[4_096],
        "loss_extra_memory_8192_over_4096": memory[8_192] / memory[4_096],
        "plain_loss_extra_memory_mb": ask("memory", "plain", "4096"),
    }


def loader_figures(num_rows: int) -> dict[str, float]:
    """Return the loader's rates, in a fresh process."""
    command = [sys.executable, str(FOLDER / "training_loader.py"), str(num_rows)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    rates: dict[str, float] = json.loads(found.stdout)
    return rates


def show(report: dict[str, Any], figures: dict[str, float], notes: dict[str, str]) -> None:
    """Print one table and why something is not in it."""
    title = f"training, {report['commit']}, {report['machine']}, {report['parameters']}"
    table = Table("figure", title=title, title_justify="left")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}")
    Console().print(table)
    for name, reason in notes.items():
        Console().print(f"{name}: {reason}", highlight=False)


if __name__ == "__main__":
    main()
