"""Event log: durable appends in groups, beside the same bytes written and fsynced to a file.

The raw write gets the very blocks that the log stores, one `write` and one `fdatasync` a group: no
log on this disk can acknowledge faster. `stored_before` events are in the log already, because
finding duplicates must not become slow as it grows.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from twotower.data.event_log import EventLog, open_event_log
from twotower.data.event_log.blocks import NameCodes, encode_block
from twotower.data.events import Event, IdKinds

__all__ = ["event_log"]

GROUP: Final = 500
NUM_EVENTS: Final = 200_000
STORED_BEFORE: Final = 1_000_000
ROUNDS: Final = 3


def event_log(folder: Path) -> dict[str, float]:
    """Append to an empty and to a grown log, write the same raw, read all; medians of 3 rounds."""
    durable, grown, raw, reads = [], [], [], []
    with open_event_log(folder / "grown") as large:
        for number in range(STORED_BEFORE // NUM_EVENTS):
            append_all(large, make_groups(seed=100 + number))
        for number in range(ROUNDS):
            groups = make_groups(seed=number)
            raw.append(write_raw(folder / f"raw-{number}", groups))
            with open_event_log(folder / str(number)) as log:
                durable.append(append_all(log, groups))
                reads.append(read_all(log))
            grown.append(append_all(large, groups))
    return {
        "durable_events_per_s": statistics.median(durable),
        "durable_events_per_s_on_a_million": statistics.median(grown),
        "raw_write_fsync_per_s": statistics.median(raw),
        "durable_share_of_raw": statistics.median(durable) / statistics.median(raw),
        "log_read_per_s": statistics.median(reads),
    }


def make_groups(seed: int) -> list[list[Event]]:
    """Events as a producer sends them: impressions and clicks, with IDs that never repeat."""
    generator = random.Random(seed)
    events = [
        Event(
            kind="outcome" if number % 5 == 4 else "impression",
            event_id=f"{generator.getrandbits(96):024x}",
            user_id=generator.randrange(30_000),
            item_id=generator.randrange(8_000),
            event_time_ms=1_700_000_000_000 + 7 * number,
            request_id=f"{seed}-{number // 5}",
            outcome="click" if number % 5 == 4 else None,
        )
        for number in range(NUM_EVENTS)
    ]
    return [events[start : start + GROUP] for start in range(0, NUM_EVENTS, GROUP)]


def append_all(log: EventLog, groups: list[list[Event]]) -> float:
    """Events a second: every group is on the disk before the next is begun."""
    began = time.perf_counter()
    for group in groups:
        log.append(group, received_ms=1_700_000_000_000)
    return NUM_EVENTS / (time.perf_counter() - began)


def write_raw(path: Path, groups: list[list[Event]]) -> float:
    """Events a second of a plain file that gets the same blocks."""
    blocks = list(encoded(groups))
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    began = time.perf_counter()
    for block in blocks:
        os.write(descriptor, block)
        os.fdatasync(descriptor)
    seconds = time.perf_counter() - began
    os.close(descriptor)
    return NUM_EVENTS / seconds


def encoded(groups: list[list[Event]]) -> Iterator[bytes]:
    """Yield the bytes that the log stores of each group."""
    names, kinds = NameCodes(("click",)), IdKinds("int", "int")
    received_ms = np.full(GROUP, 1_700_000_000_000)
    for group in groups:
        yield encode_block(group, received_ms, names, kinds) + bytes(16 * len(group))


def read_all(log: EventLog) -> float:
    """Events a second, read as columns in parts of 50,000."""
    began, done = time.perf_counter(), 0
    while done < NUM_EVENTS:
        done += len(log.read(done, 50_000).offset)
    return NUM_EVENTS / (time.perf_counter() - began)
