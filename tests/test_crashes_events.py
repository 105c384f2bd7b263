"""The event crasher: `kill -9` of the collector, again and again, under producers that remember."""

from __future__ import annotations

from pathlib import Path

import pytest

from event_crasher import Ledger, crash_collector
from serving_project import write_project
from twotower.data.event_log import open_event_log
from twotower.data.events import Event


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


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    config = write_project(tmp_path)
    ledger = crash_collector(config, seed="quick", duration_s=4.0)
    assert ledger.num_kills >= 2
    assert len(ledger.acknowledged) > 50
    check(config, ledger)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["c1"])
def test_nothing_acknowledged_is_lost_for_two_minutes(tmp_path: Path, seed: str) -> None:
    config = write_project(tmp_path)
    ledger = crash_collector(config, seed=seed, duration_s=120.0)
    assert ledger.num_kills >= 30
    assert ledger.num_lost_answers > 0
    check(config, ledger)
