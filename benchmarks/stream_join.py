"""Label join: events a second, exact against a truth that is known because it was made.

`join_events_per_s` is the join itself: columns in, examples and state out, in batches of the
default size; `join_events_per_cpu_s` the same by the processor's time, all threads together, which
neighbours on the machine change less. `join_disk_events_per_s` goes the whole way: read the event
log, join, write shards, state and manifest, every file fsynced. Medians of 3 rounds.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Final

import numpy as np

from twotower.data.event_log import open_event_log
from twotower.data.events import NO_NAME, Event, EventColumns
from twotower.data.example_log import LATE_POSITIVE
from twotower.data.label_join import JoinSettings
from twotower.data.label_join.batch import JoinedBatch, join_batch
from twotower.data.label_join.joiner import join_available
from twotower.data.label_join.state import JoinState

__all__ = ["label_join"]

NUM_IMPRESSIONS: Final = 800_000
NUM_CLICKS: Final = 200_000
NUM_STORED: Final = 200_000
ROUNDS: Final = 3
START_MS: Final = 1_700_000_000_000
HOURS: Final = 4
WINDOW_MS: Final = 600_000
LONGEST_MS: Final = 700_000
"""Of the delays of clicks: every seventh comes after the window and is a late positive."""


def label_join(folder: Path) -> dict[str, float]:
    """Join a million events in memory, and a part of them from disk to disk."""
    events, num_late = made_events()
    settings = JoinSettings(window_s=WINDOW_MS / 1000)
    memory = [join_in_memory(events, settings, num_late) for _ in range(ROUNDS)]
    store(folder, events)
    disk = [join_on_disk(folder, settings, number) for number in range(ROUNDS)]
    return {
        "join_events_per_s": statistics.median(rate for rate, _ in memory),
        "join_events_per_cpu_s": statistics.median(rate for _, rate in memory),
        "join_disk_events_per_s": statistics.median(disk),
    }


def made_events() -> tuple[EventColumns, int]:
    """Impressions of four hours and clicks on a quarter of them, up to 30 s out of order; and how
    many clicks come after the window."""
    dice = np.random.default_rng(0)
    shown_ms = START_MS + np.sort(dice.integers(0, HOURS * 3_600_000, NUM_IMPRESSIONS))
    clicked = dice.choice(NUM_IMPRESSIONS, NUM_CLICKS, replace=False)
    delay_ms = dice.integers(1, LONGEST_MS + 1, NUM_CLICKS)
    of = np.concatenate([np.arange(NUM_IMPRESSIONS), clicked])
    time_ms = np.concatenate([shown_ms, shown_ms[clicked] + delay_ms])
    received_ms = time_ms + dice.integers(0, 30_000, len(of))
    order = np.argsort(received_ms, kind="stable")
    is_click = (np.arange(len(of)) >= NUM_IMPRESSIONS)[order]
    users, items = dice.integers(0, 30_000, len(of)), dice.integers(0, 8_000, len(of))
    events = EventColumns(
        offset=np.arange(len(of), dtype=np.int64),
        kind=is_click.astype(np.uint8),
        event_key=dice.permutation(len(of)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        user_id=users[of][order],
        item_id=items[of][order],
        event_time_ms=time_ms[order],
        received_ms=received_ms[order],
        request_key=(of + 1)[order].astype(np.uint64),
        outcome=np.where(is_click, 0, NO_NAME).astype(np.uint8),
        value=np.ones(len(of), np.float32),
        stage=np.full(len(of), NO_NAME, np.uint8),
        outcome_names=("click",),
        stage_names=(),
    )
    return events, int((delay_ms > WINDOW_MS).sum())


def join_in_memory(
    events: EventColumns, settings: JoinSettings, num_late: int
) -> tuple[float, float]:
    """Events a second and a processor's second, after the result was compared with the truth."""
    state, batches = JoinState.empty(), []
    began, began_cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(events.offset), settings.batch_events):
        part = events.take(slice(start, start + settings.batch_events))
        batches.append(join_batch(state, part, settings, "UTC", None))
        state = batches[-1].state
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    nothing = events.take(slice(0, 0))
    batches.append(join_batch(state, nothing, settings, "UTC", START_MS + 10**9))
    check(batches, num_late)
    return len(events.offset) / seconds, len(events.offset) / cpu_seconds


def check(batches: list[JoinedBatch], num_late: int) -> None:
    """Every impression once, every click once, in the place where it belongs."""
    num_examples = sum(len(batch.examples.offset) for batch in batches)
    late = sum(int((batch.examples.kind == LATE_POSITIVE).sum()) for batch in batches)
    positives = sum(int(batch.examples.is_positive.sum()) for batch in batches)
    found = (num_examples, late, positives, batches[-1].state.num_undecided)
    expected = (NUM_IMPRESSIONS + num_late, num_late, NUM_CLICKS, 0)
    if found != expected:
        raise AssertionError(f"expected {expected}, found {found}")


def store(folder: Path, events: EventColumns) -> None:
    """Put the first events into an event log."""
    rows = [column[:NUM_STORED].tolist() for column in events[:11]]
    stored = [
        Event(
            kind="outcome" if kind else "impression",
            event_id=f"{key:016x}",
            user_id=user,
            item_id=item,
            event_time_ms=time_ms,
            request_id=str(request),
            outcome="click" if kind else None,
        )
        for _, kind, key, user, item, time_ms, _, request, *_ in zip(*rows, strict=True)
    ]
    with open_event_log(folder) as log:
        for start in range(0, NUM_STORED, 500):
            log.append(stored[start : start + 500], received_ms=rows[6][start + 499])


def join_on_disk(folder: Path, settings: JoinSettings, number: int) -> float:
    """Events a second from the event log to durable shards."""
    with open_event_log(folder) as log:
        began = time.perf_counter()
        manifest = join_available(folder / str(number), log, settings, "UTC", None)
        seconds = time.perf_counter() - began
    if manifest is None or manifest.event_offset != NUM_STORED:
        raise AssertionError(f"expected {NUM_STORED} joined events, found {manifest}")
    return NUM_STORED / seconds
