"""One pass over a set of examples: exactly shuffled, every example once an epoch, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from twotower.checkpoint import Checkpoint, Trained
from twotower.data.days import event_digest, exact_shuffle
from twotower.data.examples import Examples
from twotower.data.schema import IntArray
from twotower.errors import LineageError
from twotower.failpoints import failpoint
from twotower.model.row_negatives import NO_ITEM
from twotower.progress import Progress
from twotower.training.batches import Batch, BatchMaker, NegativeLists
from twotower.training.device import (
    LossSum,
    made_ahead,
    moved,
    moved_for,
    training_device,
)
from twotower.training.resume import Cursor, PassKeeper
from twotower.training.settings import PassOrder, PassSettings, TrainingSettings
from twotower.training.step import Stepper, load_adam, save_adam

__all__ = ["AfterEpoch", "check_trained_once", "mix_seeds", "pass_order", "run_pass"]

_MS_PER_HOUR: Final = 3_600_000

AfterEpoch = Callable[[Checkpoint, int], bool]
"""Sees the state after an epoch, counted from 1, its model on the device of the pass; the pass ends
where it returns False."""


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
    keeper: PassKeeper | None = None,
    listed: Sequence[NegativeLists] = (),
    after_epoch: AfterEpoch | None = None,
) -> Trained:
    """Train `state.model` on every example, `schedule.epochs` times in a new order each.

    On the CPU the same state, examples, settings, seed and thread count give the same parameters,
    bit for bit, however often the pass was killed and begun again. On CUDA they are the same to
    rounding: the device adds the gradients of one row in the order in which they come.

    Args:
        state: its model and optimiser move in place.
        examples: of the window.
        example_log_probability: `[n]`, log of each example's item frequency at its time.
        training: settings of the loss and its negatives.
        schedule: settings of this kind of pass.
        pass_number: tells this pass's random numbers from those of any other of the lineage.
        progress: told of every step.
        task: its name there.
        keeper: saves the pass as it goes and finds what was saved; None for neither.
        listed: sources of negatives that belong to users.
        after_epoch: decides whether another epoch follows; None for all of the schedule.

    Returns:
        What went through a step in the last epoch, counted there and not before.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    device = training_device(training.device)
    cursor = (keeper and keeper.load(state)) or _start_of(0, examples, len(listed))
    maker = BatchMaker(
        state, examples, example_log_probability, training, schedule, listed,
        finds_hits=device.type != "cpu",
    )  # fmt: skip
    began, resumed_at = time.perf_counter(), cursor.epoch * len(examples) + cursor.start
    progress.begin(task, len(examples) * schedule.epochs)
    progress.advance(resumed_at)
    with moved_for(state.model, device), state.model.one_item_table():
        running = _Pass(state, examples, maker, training, schedule, pass_number)
        running.keeper = keeper
        while True:
            cursor = running.finish_epoch(cursor, progress)
            num_epochs = cursor.epoch + 1
            is_last = num_epochs == schedule.epochs
            goes_on = after_epoch is None or after_epoch(state, num_epochs)
            if is_last or not goes_on:
                break
            cursor = _start_of(cursor.epoch + 1, examples, len(listed))
        state.optimizer = save_adam(state.model, running.adam)
    progress.end()
    rows = len(examples) * num_epochs - resumed_at
    return _count(examples, cursor, schedule, rows, time.perf_counter() - began)


def _start_of(epoch: int, examples: Examples, num_sources: int) -> Cursor:
    times_stepped = np.zeros(len(examples), np.uint8)
    return Cursor(epoch, 0, times_stepped, 0.0, np.zeros(num_sources, np.int64))


class _Made(NamedTuple):
    """A batch on the pass's device, with what only the CPU knows of it."""

    indices: IntArray
    batch: Batch
    generator: torch.Generator
    """For what the step still draws."""
    num_drawn: npt.NDArray[np.int64]


class _Pass:
    """What the steps of a pass share."""

    keeper: PassKeeper | None = None

    def __init__(
        self,
        state: Checkpoint,
        examples: Examples,
        maker: BatchMaker,
        training: TrainingSettings,
        schedule: PassSettings,
        pass_number: int,
    ) -> None:
        self._state = state
        self._examples = examples
        self._device = state.model.device
        self._batch_size = schedule.batch_size
        self._order = schedule.order
        self._seed = (training.seed, pass_number)
        self._maker = maker
        self.adam = load_adam(state.model, state.optimizer, schedule.dense_learning_rate)
        self._stepper = Stepper(state.model, self.adam, training, schedule)

    def finish_epoch(self, cursor: Cursor, progress: Progress) -> Cursor:
        """Train the epoch's examples from the cursor on; return where it ended."""
        order = pass_order(
            self._examples.event_time_ms, self._order, mix_seeds(*self._seed, cursor.epoch)
        )

        def make(start: int, epoch: int = cursor.epoch) -> _Made:
            indices = order[start : start + self._batch_size]
            generator = torch.Generator()
            generator.manual_seed(mix_seeds(*self._seed, epoch, start + 1))
            batch = self._maker.make(indices, generator)
            return _Made(indices, moved(batch, self._device), generator, _num_drawn(batch))

        losses = LossSum(cursor.total_loss, self._device)
        starts = range(cursor.start, len(order), self._batch_size)
        for made in made_ahead(make, starts, self._device):
            loss = losses.add(self._stepper.start(made.batch, made.generator), len(made.indices))
            failpoint("pass.after_step")
            cursor.times_stepped[made.indices] += 1
            cursor = cursor._replace(
                start=cursor.start + len(made.indices),
                drawn_negatives=cursor.drawn_negatives + made.num_drawn,
            )
            if self.keeper is not None:
                step = -(-cursor.start // self._batch_size)
                if self.keeper.is_due(step):
                    cursor = cursor._replace(total_loss=losses.total())
                self.keeper.save(self._state, self.adam, cursor, step)
            progress.advance(len(made.indices), loss=loss)
        return cursor._replace(total_loss=losses.total())


def pass_order(event_time_ms: IntArray, order: PassOrder, seed: int) -> IntArray:
    """Return in which order a pass trains its examples, each exactly once: `int64[n]`.

    Args:
        event_time_ms: `[n]`.
        order: see `PassSettings`.
        seed: of the shuffle.
    """
    if order == "by_time":
        return np.argsort(event_time_ms, kind="stable")
    shuffled = exact_shuffle(len(event_time_ms), seed)
    if order == "shuffled":
        return shuffled
    hour = event_time_ms[shuffled] // _MS_PER_HOUR
    return shuffled[np.argsort(hour, kind="stable")]


def _num_drawn(batch: Batch) -> npt.NDArray[np.int64]:
    drawn = [int((own.places != NO_ITEM).sum()) for own in batch.row_negatives]
    return np.array(drawn, np.int64)


def _count(
    examples: Examples, cursor: Cursor, schedule: PassSettings, rows_now: int, seconds: float
) -> Trained:
    event_ids = np.repeat(examples.event_id, cursor.times_stepped)
    rows = len(event_ids)
    return Trained(
        rows=rows,
        distinct_event_ids=len(np.unique(event_ids)),
        digest=event_digest(event_ids),
        epochs=cursor.epoch + 1,
        steps=-(-len(examples) // schedule.batch_size) * (cursor.epoch + 1),
        loss=cursor.total_loss / max(rows, 1),
        seconds=round(seconds, 3),
        examples_per_s=round(rows_now / max(seconds, 1e-9), 1),
        drawn_negatives=tuple(cursor.drawn_negatives.tolist()),
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


def mix_seeds(*parts: int) -> int:
    """Return one 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
