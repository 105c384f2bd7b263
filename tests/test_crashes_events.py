"""The event crasher: `kill -9` of the collector and of the label join, again and again, under
producers that remember."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from event_crasher import Ledger, crash
from serving_project import write_project
from test_data_joiner import files
from twotower.config import load_project
from twotower.data.event_log import open_event_log
from twotower.data.event_log.blocks import event_keys
from twotower.data.events import Event
from twotower.data.example_log import LATE_POSITIVE, ExampleLog
from twotower.data.label_join.joiner import join_available
from warm_process import KILLED

JOIN: Final = """
[join]
window_s = 0
allowed_lateness_s = 0
idle_after_s = 3600
remember_s = 31536000
shard_examples = 500
poll_s = 0.05
"""


def stored_events(config: Path) -> list[Event]:
    """Everything in the log, in order; its offsets have no holes."""
    events: list[Event] = []
    offsets: list[int] = []
    with open_event_log(config.parent / "twotower-data") as log:
        end = log.end()
        while len(events) < end:
            events += log.read_events(len(events), 10_000)
            offsets += log.read(len(offsets), len(events) - len(offsets)).offset.tolist()
    assert offsets == list(range(end))
    return events


def check(config: Path, ledger: Ledger) -> None:
    """Acknowledged minus stored is empty; stored minus sent is empty; everything once."""
    events = stored_events(config)
    stored = {event.event_id: event for event in events}
    assert len(stored) == len(events), "an event is stored twice"
    assert ledger.acknowledged - stored.keys() == set(), "an acknowledged event is lost"
    assert stored.keys() - ledger.sent.keys() == set(), "an event is stored that nobody sent"
    assert all(event == ledger.sent[event_id] for event_id, event in stored.items())


def check_joined(config: Path, ledger: Ledger) -> None:
    """Every stored event is in at most one example, as if nothing had been killed."""
    assert set(ledger.join_exit_codes) <= {KILLED}
    data_path = config.parent / "twotower-data"
    fresh = config.parent / "fresh"
    fresh.mkdir()
    shutil.copytree(data_path / "events", fresh / "events")
    settings = load_project(config).join
    for path in (data_path, fresh):
        with open_event_log(path) as log:
            manifest = join_available(path, log, settings, "UTC", None)
    assert manifest is not None
    assert files(data_path) == files(fresh), "the killed join came to other examples"
    examples = ExampleLog.open(data_path)
    joined = examples.read(0, examples.end)
    assert len(np.unique(joined.event_key)) == len(joined.event_key), "an event is trained twice"
    is_late = joined.kind == LATE_POSITIVE
    events = stored_events(config)
    outcomes = {
        key for key, e in zip(event_keys(events).tolist(), events, strict=True) if e.outcome
    }
    others = set(event_keys(events).tolist()) - outcomes
    assert set(joined.event_key[~is_late].tolist()) == others, "an event became no example"
    assert set(joined.event_key[is_late].tolist()) <= outcomes
    assert manifest.event_offset == len(events)


def start_project(folder: Path) -> Path:
    """A join that waits for nothing: whatever was stored is an example at once."""
    config = write_project(folder)
    config.write_text(config.read_text() + JOIN)
    return config


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    config = start_project(tmp_path)
    ledger = crash(config, seed="quick", duration_s=4.0, min_kills=2)
    assert len(ledger.acknowledged) > 50
    check(config, ledger)
    check_joined(config, ledger)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["c1"])
def test_nothing_acknowledged_is_lost_for_two_minutes(tmp_path: Path, seed: str) -> None:
    config = start_project(tmp_path)
    ledger = crash(config, seed=seed, duration_s=120.0, min_kills=15, with_join=True)
    assert len(ledger.join_exit_codes) >= 15
    assert ledger.num_lost_answers > 0
    check(config, ledger)
    check_joined(config, ledger)
