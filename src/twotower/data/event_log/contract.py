"""The contract suite: what every event log must do, ready to be run against a new engine.

Subclass `EventLogContract` as a pytest test class and give it `open`; every test of it then runs
against your engine.
"""

# The names of the tests are their docstrings.
# ruff: noqa: D102

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from twotower.data.event_log.interface import EventLog, Fate
from twotower.data.events import EVENT_KINDS, MAX_NAMES, NO_NAME, NO_REQUEST, Event, IdKinds
from twotower.data.ids import decode_ids
from twotower.errors import DataError, LineageError

__all__ = ["EventLogContract", "make_event", "make_events"]

_START_MS: Final = 1_700_000_000_000
_DEADLINE_S: Final = 20.0


def make_event(number: int, **changed: Any) -> Event:
    """Return a valid event; each number has an event ID of its own."""
    kind = EVENT_KINDS[number % 3]
    fields: dict[str, Any] = {
        "kind": kind,
        "event_id": f"event-{number}",
        "user_id": number % 7 - 3,
        "item_id": number % 5 + 2**62,
        "event_time_ms": _START_MS - number,
        "request_id": None if number % 4 == 0 else f"request-{number // 4}",
        "outcome": "click" if kind == "outcome" else None,
        "value": 0.1 * number + 1,
        "stage": "ranking" if kind == "candidate" else None,
    }
    return Event(**(fields | changed))


def make_events(start: int, end: int) -> list[Event]:
    """Return the events of the numbers `[start, end)`."""
    return [make_event(number) for number in range(start, end)]


class EventLogContract(ABC):
    """The tests of one engine."""

    @abstractmethod
    def open(self, folder: Path) -> EventLog:
        """Return the log that is kept in `folder`, a new one where there is none."""

    def test_a_new_log_is_empty(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            assert log.bounds() == (0, 0)
            assert log.end() == 0
            assert len(log.read(0, 10).offset) == 0
            assert log.read_events(0, 10) == []
            assert log.id_kinds is None
            assert log.append([], 1) == (0, ())

    def test_offsets_are_contiguous_whatever_is_appended_and_read(self, tmp_path: Path) -> None:
        events = make_events(0, 700)
        with self.open(tmp_path) as log:
            done = 0
            for size in (1, 2, 0, 97, 500, 100):
                answer = log.append(events[done : done + size], received_ms=5)
                done += size
                assert answer == (done, (Fate.STORED,) * size)
            assert log.end() == 700
            for limit in (1, 3, 64, 701):
                assert _read_all(log, limit) == events
            offsets = log.read(3, 5).offset
            assert offsets.tolist() == list(range(3, 3 + len(offsets)))
            assert 1 <= len(offsets) <= 5

    def test_what_was_sent_comes_back(self, tmp_path: Path) -> None:
        events = make_events(0, 12)
        with self.open(tmp_path) as log:
            log.append(events[:5], received_ms=5)
            log.append(events[5:], received_ms=6)
        with self.open(tmp_path) as log:
            assert log.read_events(0, 12) == events
            found = log.read(0, 12)
            assert [EVENT_KINDS[code] for code in found.kind] == [e.kind for e in events]
            assert decode_ids(found.user_id) == [event.user_id for event in events]
            assert decode_ids(found.item_id) == [event.item_id for event in events]
            assert found.event_time_ms.tolist() == [event.event_time_ms for event in events]
            assert found.received_ms.tolist() == [5] * 5 + [6] * 7
            assert found.value.tolist() == [float(np.float32(event.value)) for event in events]
            names = [*found.outcome_names, *[None] * (NO_NAME + 1)]
            assert [names[code] for code in found.outcome] == [event.outcome for event in events]
            names = [*found.stage_names, *[None] * (NO_NAME + 1)]
            assert [names[code] for code in found.stage] == [event.stage for event in events]

    def test_keys_tie_events_of_a_request_and_nothing_else(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            log.append(make_events(0, 40), received_ms=5)
            found = log.read(0, 40)
            without = log.read(0, 40, with_requests=False)
        assert len(np.unique(found.event_key)) == 40
        for name in set(found._fields) - {"request_key"}:
            assert list(getattr(without, name)) == list(getattr(found, name)), name
        with_request = found.request_key[np.arange(40) % 4 != 0]
        assert (found.request_key[::4] == NO_REQUEST).all()
        assert (with_request.reshape(10, 3) == with_request[::3, None]).all()
        assert len(np.unique(with_request)) == 10

    def test_text_ids_come_back(self, tmp_path: Path) -> None:
        users = ["u", "üser-2", "x" * 256, "u"]
        events = [
            make_event(number, user_id=user, item_id=f"i{number}")
            for number, user in enumerate(users)
        ]
        with self.open(tmp_path) as log:
            log.append(events, received_ms=5)
            assert log.id_kinds == IdKinds("str", "str")
            assert log.read_events(0, 9) == events
            assert decode_ids(log.read(0, 9).user_id) == users

    def test_an_id_of_another_kind_is_refused_and_nothing_is_stored(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            log.append(make_events(0, 3), received_ms=5)
            assert log.id_kinds == IdKinds("int", "int")
            for changed in ({"user_id": "u"}, {"item_id": "i"}):
                events = [make_event(4), make_event(5, **changed)]
                assert _raises(DataError, lambda events=events: log.append(events, 5))
            assert log.end() == 3

    def test_a_duplicate_counts_once(self, tmp_path: Path) -> None:
        events = make_events(0, 10)
        with self.open(tmp_path) as log:
            log.append(events[:4], received_ms=5)
            answer = log.append([*events[2:6], events[5]], received_ms=6)
            assert answer.fates == (*[Fate.DUPLICATE] * 2, *[Fate.STORED] * 2, Fate.DUPLICATE)
            assert answer.end == log.end() == 6
            twice = log.append([events[7], events[7]], received_ms=6)
            assert twice == (7, (Fate.STORED, Fate.DUPLICATE))
        with self.open(tmp_path) as log:
            assert set(log.append(events[:6], received_ms=7).fates) == {Fate.DUPLICATE}
            assert _read_all(log, 100) == [*events[:6], events[7]]

    def test_another_event_under_a_used_id_is_a_conflict(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            log.append(make_events(0, 3), received_ms=5)
            others = [
                make_event(1, value=-7.0),
                make_event(1, event_time_ms=_START_MS + 1),
                make_event(1, user_id=9),
                make_event(1, item_id=9),
                make_event(1, request_id="another"),
                make_event(1, outcome="purchase"),
                make_event(1, kind="impression", outcome=None),
            ]
            assert log.append(others, received_ms=5).fates == (Fate.CONFLICT,) * len(others)
            assert _read_all(log, 100) == make_events(0, 3)

    def test_names_beyond_those_a_log_can_tell_apart_are_refused(self, tmp_path: Path) -> None:
        events = [make_event(3 * n + 1, outcome=f"outcome-{n}") for n in range(MAX_NAMES + 3)]
        with self.open(tmp_path) as log:
            fates = log.append(events, received_ms=5).fates
            assert fates == (Fate.STORED,) * MAX_NAMES + (Fate.TOO_MANY_NAMES,) * 3
            assert log.append([make_event(999)], received_ms=5).fates == (Fate.STORED,)
            assert _read_all(log, 100) == [*events[:MAX_NAMES], make_event(999)]

    def test_callers_at_the_same_time_get_their_own_answers(self, tmp_path: Path) -> None:
        batches = [make_events(20 * n, 20 * n + 30) for n in range(40)]  # a third is sent twice
        with self.open(tmp_path) as log, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda batch: log.append(batch, received_ms=5), batches))
            stored = [
                event
                for batch, answer in zip(batches, answers, strict=True)
                for event, fate in zip(batch, answer.fates, strict=True)
                if fate is Fate.STORED
            ]
            assert sorted(e.event_id for e in stored) == sorted(
                e.event_id for e in make_events(0, 810)
            )
            assert {e.event_id for e in _read_all(log, 7)} == {e.event_id for e in stored}
            assert max(answer.end for answer in answers) == log.end() == 810

    def test_two_logs_of_one_folder_see_each_other(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as first, self.open(tmp_path) as second:
            for number in range(0, 40, 2):
                assert first.append([make_event(number)], 5).end == number + 1
                answer = second.append([make_event(number), make_event(number + 1)], 5)
                assert answer == (number + 2, (Fate.DUPLICATE, Fate.STORED))
            assert _read_all(first, 100) == _read_all(second, 3) == make_events(0, 40)

    def test_a_follower_wakes_up(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as writer, self.open(tmp_path) as reader:
            assert not reader.wait(0, timeout_s=0.0)
            writer.append(make_events(0, 2), received_ms=5)
            assert reader.wait(1, timeout_s=0.0)
            assert not reader.wait(2, timeout_s=0.01)
            sender = threading.Thread(target=lambda: writer.append(make_events(2, 3), 5))
            sender.start()
            assert reader.wait(2, timeout_s=_DEADLINE_S)
            sender.join()

    def test_forgetting_removes_the_oldest_only(self, tmp_path: Path) -> None:
        events = make_events(0, 60)
        with self.open(tmp_path) as log:
            for start in range(0, 60, 10):
                log.append(events[start : start + 10], received_ms=5)
            begin = log.forget(before=35)
            assert 0 < begin <= 35
            assert log.bounds() == (begin, 60)
            assert log.read_events(begin, 100)[:1] == [events[begin]]
            assert log.read_events(35, 100)[:1] == [events[35]]
            assert log.read(40, 5).offset[0] == 40
        with self.open(tmp_path) as log:
            assert log.forget(before=0) == begin
            assert log.append(make_events(60, 61), received_ms=5).end == 61
            assert log.append(events[50:], received_ms=5).fates == (Fate.DUPLICATE,) * 10

    def test_offsets_go_on_when_all_was_forgotten(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            log.append(make_events(0, 10), received_ms=5)
            log.forget(before=10)
        with self.open(tmp_path) as log:
            assert log.append(make_events(10, 12), received_ms=5).end == 12
            assert log.read_events(10, 5) == make_events(10, 12)

    def test_what_cannot_be_read_is_said(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as log:
            for start in range(0, 30, 10):
                log.append(make_events(start, start + 10), received_ms=5)
            begin = log.forget(before=20)
            for start in (begin - 1, 31, -1):
                for read in (log.read, log.read_events):
                    assert _raises(LineageError, lambda read=read, start=start: read(start, 5))


def _read_all(log: EventLog, limit: int) -> list[Event]:
    """Return everything, read `limit` events at a time, by columns and by events alike."""
    begin, end = log.bounds()
    events: list[Event] = []
    give_up_at_s = time.monotonic() + _DEADLINE_S
    while begin + len(events) < end:
        start = begin + len(events)
        part = log.read_events(start, limit)
        assert 1 <= len(part) <= limit
        assert [e.event_time_ms for e in part] == _times(log, start, len(part))
        events += part
        assert time.monotonic() < give_up_at_s, "reading does not come to an end"
    return events


def _times(log: EventLog, start: int, length: int) -> Sequence[int]:
    times: list[int] = []
    while len(times) < length:
        times += log.read(start + len(times), length - len(times)).event_time_ms.tolist()
    return times


def _raises(expected: type[Exception], call: Any) -> bool:
    """Return whether `call` ends in the error that was expected."""
    try:
        call()
    except expected:
        return True
    return False
