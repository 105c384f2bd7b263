"""One pass over a set of examples: exactly shuffled, every example once an epoch, counted."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint, Trained
from twotower.data.days import event_digest, exact_shuffle
from twotower.data.examples import Examples
from twotower.errors import LineageError
from twotower.progress import Progress
from twotower.training.batches import BatchMaker
from twotower.training.settings import PassSettings, TrainingSettings
from twotower.training.step import Stepper, load_adam, save_adam

__all__ = ["check_trained_once", "run_pass"]


def run_pass(
    state: Checkpoint,
    examples: Examples,
    example_log_probability: npt.NDArray[np.float32],
    *,
    training: TrainingSettings,
    schedule: PassSettings,
    pass_number: int,
    progress: Progress,
    task: str,
) -> Trained:
    """Train `state.model` on every example, `schedule.epochs` times in a new order each.

    The same state, examples, settings, seed and thread count give the same parameters, bit for
    bit.

    Args:
        state: its model and optimiser move in place.
        examples: of the window.
        example_log_probability: `[n]`, log of each example's item frequency at its time.
        training: settings of the loss and its negatives.
        schedule: settings of this kind of pass.
        pass_number: tells this pass's random numbers from those of any other of the lineage.
        progress: told of every step.
        task: its name there.

    Returns:
        What went through a step in the last epoch, counted there and not before.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    maker = BatchMaker(state, examples, example_log_probability, training, schedule)
    adam = load_adam(state.model, state.optimizer, schedule.dense_learning_rate)
    stepper = Stepper(state.model, adam, training, schedule)
    began = time.perf_counter()
    progress.begin(task, len(examples) * schedule.epochs)
    for epoch in range(schedule.epochs):
        trained = _run_epoch(
            maker, stepper, examples, schedule, (training.seed, pass_number, epoch), progress
        )
    progress.end()
    state.optimizer = save_adam(state.model, adam)
    return _count(*trained, schedule, time.perf_counter() - began)


def _run_epoch(
    maker: BatchMaker,
    stepper: Stepper,
    examples: Examples,
    schedule: PassSettings,
    seed: tuple[int, int, int],
    progress: Progress,
) -> tuple[list[npt.NDArray[np.uint64]], float]:
    """Return the event IDs of every step and the summed loss."""
    order = exact_shuffle(len(examples), _mix(*seed))
    generator = torch.Generator()
    stepped, total_loss = [], 0.0
    for start in range(0, len(order), schedule.batch_size):
        indices = order[start : start + schedule.batch_size]
        generator.manual_seed(_mix(*seed, start + 1))
        loss = stepper.step(maker.make(indices, generator), generator)
        stepped.append(examples.event_id[indices])
        total_loss += loss * len(indices)
        progress.advance(len(indices), loss=loss)
    return stepped, total_loss


def _count(
    stepped: list[npt.NDArray[np.uint64]], total_loss: float, schedule: PassSettings, seconds: float
) -> Trained:
    event_ids = np.concatenate([np.zeros(0, np.uint64), *stepped])
    rows = len(event_ids)
    return Trained(
        rows=rows,
        distinct_event_ids=len(np.unique(event_ids)),
        digest=event_digest(event_ids),
        epochs=schedule.epochs,
        steps=len(stepped) * schedule.epochs,
        loss=total_loss / max(rows, 1),
        seconds=round(seconds, 3),
        examples_per_s=round(rows * schedule.epochs / max(seconds, 1e-9), 1),
    )


def check_trained_once(trained: Trained, *, rows: int, digest: str) -> None:
    """Refuse a pass that did not train exactly the day's events, each once.

    Raises:
        LineageError: rows, distinct event IDs or their digest differ from the day's.
    """
    found = (trained.rows, trained.distinct_event_ids, trained.digest)
    if found != (rows, rows, digest):
        raise LineageError(
            f"expected to train {rows} events of digest {digest}, each once; found {found[0]} rows "
            f"of {found[1]} distinct events and digest {found[2]}; nothing was written: import "
            "the day again and repeat the update"
        )


def _mix(*parts: int) -> int:
    """Return one 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
