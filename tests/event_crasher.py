"""Seeded producers that remember what they sent and what was acknowledged, and a collector and a
label join that are killed under them again and again."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from pathlib import Path
from typing import Final

from collector_project import as_lines, free_port, kill, start_collector
from twotower.data.event_log.contract import make_event
from twotower.data.events import Event
from warm_process import end, run_twotower, start

__all__ = ["Ledger", "crash"]

_PRODUCERS: Final = 3
_EVENTS_EACH: Final = 10_000_000
"""Numbers of the events of one producer; more than it can send."""
_HEADERS: Final = {"Content-Type": "application/x-ndjson"}
_BAD_ROW: Final = b'{"kind": "impression"}\n'


class Ledger:
    """What all producers know when it is over."""

    def __init__(self) -> None:
        self.sent: dict[str, Event] = {}
        self.acknowledged: set[str] = set()
        self.num_kills = 0
        self.num_lost_answers = 0
        """Requests whose answer never came: their events may be stored or not."""
        self.join_exit_codes: list[int] = []


class _Stoppable(threading.Thread):
    def __init__(self) -> None:
        super().__init__()
        self.is_stopping = threading.Event()


class _Producer(_Stoppable):
    def __init__(self, address: tuple[str, int], ledger: Ledger, seed: str, number: int) -> None:
        super().__init__()
        self._random = random.Random(f"{seed}-{number}")
        self._address = address
        self._ledger = ledger
        self._next = number * _EVENTS_EACH
        self._mine: list[Event] = []
        self._connection = http.client.HTTPConnection(*address, timeout=30)

    def run(self) -> None:
        while not self.is_stopping.is_set():
            self._send(self._batch())
            time.sleep(0.002)
        self._connection.close()

    def _batch(self) -> list[Event]:
        """New events, and now and then some again that were sent before."""
        size = self._random.randint(1, 8)
        batch = [make_event(number) for number in range(self._next, self._next + size)]
        self._next += size
        if self._mine and self._random.random() < 0.2:
            batch += self._random.sample(self._mine, min(3, len(self._mine)))
        self._mine = [*self._mine, *batch][-1000:]
        self._ledger.sent |= {event.event_id: event for event in batch}
        return batch

    def _send(self, batch: list[Event]) -> None:
        """Send until it is acknowledged; or give up after an error, as real producers may."""
        has_bad_row = self._random.random() < 0.05
        body = as_lines(batch) + (_BAD_ROW if has_bad_row else b"")
        while not self.is_stopping.is_set():
            answer = self._ask(body)
            if answer is not None:
                assert [row["row"] for row in answer["rejected"]] == [len(batch)] * has_bad_row
                self._ledger.acknowledged |= {event.event_id for event in batch}
                return
            if self._random.random() < 0.3:
                return

    def _ask(self, body: bytes) -> dict[str, list[dict[str, int]]] | None:
        try:
            self._connection.request("POST", "/v1/events", body, _HEADERS)
            response = self._connection.getresponse()
            content = response.read()
        except ConnectionRefusedError:
            self.is_stopping.wait(0.02)
        except (OSError, http.client.HTTPException):
            self._ledger.num_lost_answers += 1
        else:
            assert response.status == 202, content
            return dict(json.loads(content))
        self._connection.close()
        return None


class _KilledJoin(_Stoppable):
    """Runs `twotower join --follow` and kills it, over and over."""

    def __init__(self, config: Path, ledger: Ledger, seed: str) -> None:
        super().__init__()
        self._config = config
        self._ledger = ledger
        self._random = random.Random(f"{seed}-join")

    def run(self) -> None:
        while not self.is_stopping.is_set():
            process = start(run_twotower, "join", "--follow", "--config", str(self._config))
            exit_code = end(process, after_s=self._random.uniform(0.3, 3.0))
            self._ledger.join_exit_codes.append(exit_code)


def crash(
    config: Path, seed: str, duration_s: float, min_kills: int, *, with_join: bool = False
) -> Ledger:
    """Produce for so long, and until so many kills, while the collector is killed at random moments
    and started again, and the join too if it is wanted."""
    port, ledger, dice = free_port(), Ledger(), random.Random(seed)
    collector = start_collector(config, port)
    joins = [_KilledJoin(config, ledger, seed)] if with_join else []
    for join in joins:
        join.start()
    producers = [_Producer(collector.address, ledger, seed, n) for n in range(_PRODUCERS)]
    for producer in producers:
        producer.start()
    end_s = time.monotonic() + duration_s
    try:
        while time.monotonic() < end_s or ledger.num_kills < min_kills:
            time.sleep(dice.uniform(0.02, 0.7))
            kill(collector)
            ledger.num_kills += 1
            collector = start_collector(config, port)
    finally:
        threads: list[_Stoppable] = [*producers, *joins]
        for thread in threads:
            thread.is_stopping.set()
        for thread in threads:
            thread.join()
        with contextlib.suppress(ProcessLookupError):
            kill(collector)
    return ledger
