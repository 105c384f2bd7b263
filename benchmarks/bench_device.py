"""The same steps on the CPU and on CUDA: are losses and moved rows the same, and how long is one?

    python benchmarks/bench_device.py --json bench-device.json

The synthetic task of `bench_training.py`. Both devices get the same batches, from the same draws.
Exit code 1 where a mean loss differs by more than 1e-5 of itself, or the rows that the first step
moved by more than 1e-4 of their movement. `--device cpu` compares the CPU with itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import training_workload as workload
from bench_stream import commit
from training_state import examples_of, make_state, training_settings
from twotower.checkpoint import Checkpoint
from twotower.training.batches import Batch, BatchMaker
from twotower.training.device import moved, training_device
from twotower.training.settings import TrainingSettings
from twotower.training.step import Stepper, load_adam

NUM_STEPS: Final = 20
LOSS_ERROR: Final = 1e-5
ROWS_ERROR: Final = 1e-4
CASES: Final[dict[str, dict[str, Any]]] = {
    "listwise, in batch": {},
    "listwise, in batch and uniform": {"full": {"uniform": 1024}},
    "listwise, uniform": {"full": {"uniform": 2048}, "negatives": {"in_batch": False}},
    "cosine contrastive, uniform": {
        "loss": "cosine_contrastive",
        "full": {"uniform": 2048},
        "negatives": {"in_batch": False, "per_positive": 0},
    },
    "pointwise": {"loss": "pointwise", "full": {"uniform": 1024}},
}
HEADINGS: Final = ("case", "loss error", "rows error", "CPU, ms a step", "device, ms", "TF32: ms")


class Run(NamedTuple):
    """What some steps did."""

    losses: list[float]
    moved: dict[str, Tensor]
    """By how much the first step moved each table."""
    step_ms: float


def main() -> int:
    """Compare every case; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--users", type=int, default=workload.NUM_USERS)
    parser.add_argument("--batch", type=int, default=workload.BATCH)
    arguments = parser.parse_args()
    device = training_device(arguments.device)
    task = workload.draw(NUM_STEPS * arguments.batch, num_users=arguments.users)
    base = training_settings(0, batch=arguments.batch)
    state = make_state(task, base)
    rows = [compare(name, state, task, with_changes(base, CASES[name]), device) for name in CASES]
    show(rows)
    if arguments.json:
        report = {"rows": rows, "device": describe(device), "commit": commit()}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(
        any(row["loss_error"] > LOSS_ERROR or row["rows_error"] > ROWS_ERROR for row in rows)
    )


def with_changes(training: TrainingSettings, changes: dict[str, Any]) -> TrainingSettings:
    """Return the settings with a case's changes, one level deep."""
    new = msgspec.to_builtins(training)
    for name, value in changes.items():
        new[name] = {**new[name], **value} if isinstance(value, dict) else value
    return msgspec.convert(new, TrainingSettings)


def compare(
    name: str,
    state: Checkpoint,
    task: workload.Task,
    training: TrainingSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Return a row of the table."""
    size = training.full.batch_size
    maker = BatchMaker(
        state, examples_of(task), task.log_probability, training, training.full, finds_hits=True
    )
    batches = [
        maker.make(np.arange(n, n + size), torch.Generator().manual_seed(n))
        for n in range(0, len(task.user), size)
    ]
    here = run(state, training, batches, torch.device("cpu"))
    there = run(state, training, batches, device)
    row = {
        "case": name,
        "loss_error": max(
            abs(one / other - 1) for one, other in zip(there.losses, here.losses, strict=True)
        ),
        "rows_error": max(
            float((there.moved[table] - rows).norm() / rows.norm().clamp_min(1e-30))
            for table, rows in here.moved.items()
        ),
        "cpu_step_ms": here.step_ms,
        "device_step_ms": there.step_ms,
    }
    torch.backends.cuda.matmul.allow_tf32 = True
    row["tf32_step_ms"] = run(state, training, batches, device).step_ms
    torch.backends.cuda.matmul.allow_tf32 = False
    return row


def run(
    state: Checkpoint, training: TrainingSettings, batches: list[Batch], device: torch.device
) -> Run:
    """Take the steps on a copy of the model."""
    model = copy.deepcopy(state.model)
    before = {name: table.weight.clone() for name, table in model.tables.items()}
    model.move_to(device)
    stepper = Stepper(model, load_adam(model, {}, 1e-3), training, training.full)
    given = [moved(batch, device) for batch in batches]
    generators = [torch.Generator().manual_seed(number) for number in range(len(given))]
    losses = [stepper.start(given[0], generators[0])]
    change = {name: table.weight.cpu() - before[name] for name, table in model.tables.items()}
    losses.append(stepper.start(given[1], generators[1]))
    losses[-1].item()
    began = time.perf_counter()
    losses += [stepper.start(*one) for one in zip(given[2:], generators[2:], strict=True)]
    losses[-1].item()
    seconds = time.perf_counter() - began
    return Run(
        [loss.item() for loss in losses],
        {name: rows for name, rows in change.items() if len(rows)},
        1000 * seconds / (len(given) - 2),
    )


def describe(device: torch.device) -> str:
    """Return the device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(
            row["case"], f"{row['loss_error']:.1e}", f"{row['rows_error']:.1e}",
            *(f"{row[key]:.2f}" for key in ("cpu_step_ms", "device_step_ms", "tf32_step_ms")),
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
