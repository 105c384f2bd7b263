"""Incremental updates: events learned a second, and a delta from the rows to the answers.

The task is that of the training benchmarks: a million users, 200,000 items, four features a side.
An event is one joined positive: its IDs are looked up, its user is bounded, its item counted, and
its step taken. Beside it stand, on the same machine in the same run, the usual way to do it in
PyTorch, which has the batch's negatives alone, and one pass of the same arithmetic without anything
around it: scores against the step's items, their softmax, the gradient.
A delta of 100,000 rows is taken from the tables, written and fsynced, read back and laid over an
answering generation's rows; beside it stands the same number of bytes in one file, fsynced.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch

import training_workload as workload
from stream_increment_peer import sparse_adagrad
from training_state import make_state, training_settings
from twotower.checkpoint import Checkpoint
from twotower.data.example_log import JoinedExamples, no_examples
from twotower.publishing.delta import Delta, DeltaSpan
from twotower.publishing.delta_rows import DeltaRows
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import IndexEntry, Manifest, Trained, Window
from twotower.serving.latest_rows import LatestRows
from twotower.training.increment.settings import IncrementSettings
from twotower.training.incremental_update import IncrementalUpdate

__all__ = ["increment"]

NUM_EVENTS: Final = 131_072
PORTION: Final = 65_536
ROUNDS: Final = 3
DELTA_ROWS: Final = 100_000
THREADS: Final = os.cpu_count() or 1


def increment(folder: Path) -> dict[str, float | str | None]:
    """Measure learning at several settings, then a delta; medians of 3 rounds."""
    task = workload.draw(NUM_EVENTS * ROUNDS)
    base = make_state(task, training_settings(THREADS))
    vectors = torch.nn.functional.normalize(torch.randn(workload.NUM_ITEMS, 64), dim=1).numpy()
    default = IncrementSettings()
    figures: dict[str, float | str | None] = {}
    for name, settings in (
        ("increment_events_per_s", default),
        ("increment_events_per_s_1024", changed(default, batch_size=1024)),
        ("increment_events_per_s_in_batch", changed(default, uniform=0)),
        ("increment_events_per_s_in_batch_1024", changed(default, uniform=0, batch_size=1024)),
        ("increment_events_per_s_user_and_item", changed(default, rows="user_and_item")),
    ):
        update = IncrementalUpdate(base, settings, training_settings(THREADS), item_vectors=vectors)
        figures[name] = statistics.median(learn(update, task))
    steps = NUM_EVENTS // default.batch_size
    peer = statistics.median(sparse_adagrad(task, default.batch_size, steps) for _ in range(ROUNDS))
    figures["increment_torch_sparse_adagrad_per_s"] = peer
    figures["increment_times_torch_sparse_adagrad"] = (
        float(figures["increment_events_per_s_in_batch"] or 0.0) / peer
    )
    figures["increment_arithmetic_per_s"] = arithmetic(default)
    return figures | delta(folder, base)


def changed(settings: IncrementSettings, **fields: Any) -> IncrementSettings:
    """Return other settings."""
    return msgspec.structs.replace(settings, **fields)


def learn(update: IncrementalUpdate, task: workload.Task) -> list[float]:
    """Return the events a second of each round, learned in the order of the stream."""
    rates = []
    for first in range(0, NUM_EVENTS * ROUNDS, NUM_EVENTS):
        parts = [examples_of(task, start) for start in range(first, first + NUM_EVENTS, PORTION)]
        began = time.perf_counter()
        for part in parts:
            update.learn(part)
        rates.append(NUM_EVENTS / (time.perf_counter() - began))
    return rates


def examples_of(task: workload.Task, start: int) -> JoinedExamples:
    """Return a portion of the stream, every example positive."""
    rows = slice(start, start + PORTION)
    offset = np.arange(start, start + PORTION)
    return no_examples()._replace(
        offset=offset,
        event_key=offset.astype(np.uint64),
        user_id=task.user[rows],
        item_id=task.item[rows],
        event_time_ms=1_700_000_000_000 + 10 * offset,
        is_positive=np.ones(PORTION, np.bool_),
        weight=np.ones(PORTION, np.float32),
    )


def arithmetic(settings: IncrementSettings) -> float:
    """Return the events a second of the products alone: tower, scores, and both of their ways.

    Of vectors of about unit length: what overflows, or nearly vanishes, takes ten times as long.
    """
    batch, columns = settings.batch_size, settings.batch_size + settings.uniform
    inputs = torch.randn(batch, workload.ID_DIM + 4 * workload.FEATURE_DIM)
    first = torch.randn(inputs.shape[1], workload.HIDDEN)
    second = torch.randn(workload.HIDDEN, workload.VECTOR_DIM)
    items = torch.nn.functional.normalize(torch.randn(columns, workload.VECTOR_DIM), dim=1)
    second /= ((inputs @ first) @ second).norm(dim=1).max()

    def step() -> None:
        users = (inputs @ first) @ second
        mass = (users @ items.T).exp_()
        ((mass @ items) @ second.T) @ first.T

    return batch / median_s(step, 50)


def delta(folder: Path, base: Checkpoint) -> dict[str, float | str | None]:
    """Return the milliseconds of a delta, part by part, and of a raw write of its bytes."""
    drawn = np.random.default_rng(0).permutation(workload.NUM_USERS)
    users, before = drawn[:DELTA_ROWS], drawn[DELTA_ROWS // 2 :][:DELTA_ROWS]
    update = IncrementalUpdate(
        base, IncrementSettings(), training_settings(THREADS), item_vectors=None
    )
    table = update.state.model.tables["user_id"]
    assert table.touched is not None
    rows, rows_before = (torch.from_numpy(update.state.users.rows[one]) for one in (users, before))
    generation = empty_generation(folder)
    made, written, applied, raw = [], [], [], []
    table.touched.note(rows_before)
    rows_of_before = update.take_delta_rows()
    served = LatestRows().with_block(rows_of_before.user_ids, rows_of_before.user_embeddings)
    for number in range(5):
        moments = [time.perf_counter()]
        table.touched.note(rows)
        found = update.take_delta_rows()
        moments.append(time.perf_counter())
        path = publish(folder, generation, found, number)
        moments.append(time.perf_counter())
        read = Delta.open(path).rows
        served.with_block(read.user_ids, read.user_embeddings)
        moments.append(time.perf_counter())
        made.append(moments[1] - moments[0])
        written.append(moments[2] - moments[1])
        applied.append(moments[3] - moments[2])
        raw.append(write_raw(folder / f"raw-{number}", found))
    total = [sum(parts) for parts in zip(made, written, applied, strict=True)]
    return {
        "delta_100k_ms": 1000 * statistics.median(total),
        "delta_made_ms": 1000 * statistics.median(made),
        "delta_published_ms": 1000 * statistics.median(written),
        "delta_applied_ms": 1000 * statistics.median(applied),
        "delta_raw_write_fsync_ms": 1000 * statistics.median(raw),
        "delta_times_raw": statistics.median(total) / statistics.median(raw),
    }


def publish(folder: Path, generation: Generation, rows: DeltaRows, number: int) -> Path:
    """Write the next delta."""
    span = DeltaSpan(first_offset=number, through_offset=number + 1, newest_event_time_ms=0)
    return write_delta(folder, generation, rows, span, now_ms=0).path


def empty_generation(folder: Path) -> Generation:
    """Return a generation of which a delta needs the name alone."""
    manifest = Manifest(
        name="g-000001",
        kind="full",
        parent=None,
        created_at="",
        window=Window(),
        trained=Trained(),
        vector_dim=workload.VECTOR_DIM,
        counts={},
        index=IndexEntry(engine="exact", num_items=0),
    )
    return Generation(folder / "generations" / "g-000001", manifest, "0" * 64)


def write_raw(path: Path, rows: DeltaRows) -> float:
    """Return the seconds of one plain file with the bytes of the rows, written and fsynced."""
    content = b"".join(array.tobytes() for array in rows)
    began = time.perf_counter()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, content)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - began


def median_s(work: Callable[[], None], repeats: int) -> float:
    """Return the median seconds of some work."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
