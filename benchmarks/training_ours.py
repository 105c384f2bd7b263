"""This package on the synthetic task: its steps, the memory of its loss, its gradients' error.

Run as a program it prints the peak of memory that one loss takes beyond what was there before:

    python training_ours.py cpu memory tiled 4096
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import training_workload as workload
from training_state import examples_of, make_state, training_settings
from twotower.model.column_table import find_hits
from twotower.model.logits import Columns, LogitRules, training_logits
from twotower.model.losses import listwise
from twotower.model.tiled_listwise import tiled_listwise
from twotower.training.batches import Batch, BatchMaker
from twotower.training.device import made_ahead, moved, training_device
from twotower.training.settings import DeviceName
from twotower.training.step import Stepper, load_adam

__all__ = ["BYTES_PER_USER", "gradient_error", "steps_of"]

BYTES_PER_USER: Final = 4 * (workload.ID_DIM + 1)
"""Of the ID table: the row in float32 and one float of Adagrad's state."""
_RULES: Final = LogitRules(workload.TEMPERATURE, True, in_batch=True, per_positive=None)


def steps_of(
    threads: int, num_users: int, num_batches: int, device_name: DeviceName = "cpu"
) -> Callable[[int], int]:
    """Return a function that takes the next so many steps, each with its batch made anew."""
    torch.set_num_threads(threads)
    task = workload.draw(num_batches * workload.BATCH, num_users=num_users)
    training = training_settings(threads)
    state = make_state(task, training)
    examples = examples_of(task)
    device = training_device(device_name)
    maker = BatchMaker(
        state,
        examples,
        task.log_probability,
        training,
        training.full,
        finds_hits=device.type != "cpu",
    )
    state.model.move_to(device)
    adam = load_adam(state.model, {}, training.full.dense_learning_rate)
    stepper, done = Stepper(state.model, adam, training, training.full), 0

    def make(number: int) -> tuple[Batch, torch.Generator]:
        place = number % num_batches * workload.BATCH
        generator = torch.Generator().manual_seed(number)
        batch = maker.make(np.arange(place, place + workload.BATCH), generator)
        return moved(batch, device), generator

    def steps(count: int) -> int:
        nonlocal done
        for batch, generator in made_ahead(make, range(done, done + count), device):
            loss = stepper.start(batch, generator)
            if device.type == "cpu":
                loss.item()
        done += count
        loss.item()  # waits for the last one
        return count * workload.BATCH

    steps(2)
    return steps


def gradient_error(device: torch.device) -> float:
    """Return the largest relative error of a gradient against the plain form's in float64."""
    users, vectors, places, columns, weight = _batch(workload.BATCH, device)
    inputs = [users, vectors]
    tiled = tiled_listwise(users, vectors, places, columns, _RULES, weight)
    found = torch.autograd.grad(tiled, inputs)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    plain = _plain(exact[0], exact[1], places, columns, weight)
    errors = [
        float((one.double() - other).norm() / other.norm())
        for one, other in zip(found, torch.autograd.grad(plain, exact), strict=True)
    ]
    return max(errors)


def _batch(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Columns, Tensor]:
    generator = torch.Generator().manual_seed(0)
    task = workload.draw(size)
    items = torch.from_numpy(task.item)
    distinct, places = torch.unique(items, return_inverse=True)

    def unit(count: int) -> Tensor:
        made = torch.randn(count, workload.VECTOR_DIM, generator=generator)
        return functional.normalize(made, dim=1).to(device).requires_grad_()

    columns = Columns(items, torch.from_numpy(task.log_probability) + float(np.log(size)))
    hits = find_hits(columns, places, size, in_batch=True)
    columns = moved(columns if device.type == "cpu" else columns._replace(hits=hits), device)
    weight = torch.ones(size, device=device)
    return unit(size), unit(len(distinct)), places.to(device), columns, weight


def _plain(
    users: Tensor, vectors: Tensor, places: Tensor, columns: Columns, weight: Tensor
) -> Tensor:
    scores = users @ vectors.index_select(0, places).T
    losses = listwise(*training_logits(scores, columns, _RULES, torch.Generator()))
    return (losses * weight).sum() / weight.sum()


def _peak_mb(kind: str, size: int, device: torch.device) -> float:
    """Return by how much loss and gradients raise the peak of memory, in MB.

    Of this process's, or of the device's.
    """
    few = _batch(64, device)
    batch = _batch(size, device)

    def loss(kind: str, given: tuple[Tensor, Tensor, Tensor, Columns, Tensor]) -> Tensor:
        users, vectors, places, columns, weight = given
        if kind == "plain":
            return _plain(users, vectors, places, columns, weight)
        return tiled_listwise(users, vectors, places, columns, _RULES, weight)

    loss(kind, few).backward()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        loss(kind, batch).backward()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    for _ in range(2):
        loss(kind, batch).backward()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    asked_device = training_device("cuda" if sys.argv[1] == "cuda" else "cpu")
    if sys.argv[2] == "memory":
        sys.stdout.write(json.dumps(_peak_mb(sys.argv[3], int(sys.argv[4]), asked_device)))
    else:
        sys.stdout.write(json.dumps(gradient_error(asked_device)))
