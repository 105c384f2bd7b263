"""Work that the event loop does between two requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from twotower.serving import turns
from twotower.serving.rest import Rest
from twotower.serving.turns import Turns


class Loop:
    """A running event loop, and how many requests wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.turns = Turns(lambda: self.waiting)
        self.turns.begin(self.loop)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.stop()


def test_steps_are_taken_by_the_thread_of_the_loop_one_a_turn(loop: Loop) -> None:
    done: list[object] = []

    def steps() -> Iterator[None]:
        for _ in range(3):
            done.append(threading.get_ident())
            loop.loop.call_soon(done.append, "others")
            yield

    loop.turns.take(steps())
    assert done == [loop.thread.ident, "others"] * 3


def test_without_a_loop_they_are_taken_at_once() -> None:
    done: list[int] = []

    def steps() -> Iterator[None]:
        for _ in range(2):
            done.append(threading.get_ident())
            yield

    Turns(lambda: 1).take(steps())
    assert done == [threading.get_ident()] * 2


def test_what_a_step_raises_comes_back_and_the_loop_goes_on(loop: Loop) -> None:
    def fails() -> Iterator[None]:
        yield
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        loop.turns.take(fails())
    loop.turns.take(iter([None]))


def test_requests_that_wait_go_first(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE_S", 60.0)
    done: list[str] = []

    def answer(left: int) -> None:
        done.append("answer")
        loop.waiting -= 1
        if left > 1:  # the next one was read meanwhile
            loop.waiting += 1
            loop.loop.call_soon(answer, left - 1)

    def steps() -> Iterator[None]:
        done.append("step")
        yield

    loop.waiting = 1
    loop.loop.call_soon_threadsafe(answer, 5)
    loop.turns.take(steps())
    assert done == ["answer"] * 5 + ["step"]


def test_a_step_waits_no_longer_than_its_patience(loop: Loop) -> None:
    loop.waiting = 1
    loop.turns.take(iter([None]))
    assert loop.waiting == 1


def test_a_rest_is_as_much_longer_than_the_work_as_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worked_s: list[float] = [0.0]
    rested: list[float] = []
    monkeypatch.setattr("twotower.serving.rest.time.thread_time", lambda: worked_s[0])
    monkeypatch.setattr("twotower.serving.rest.time.sleep", rested.append)
    take = Rest(4.0)
    for work_s in (0.5, 0.25, 0.0):
        worked_s[0] += work_s
        take()
    assert rested == [2.0, 1.0, 0.0]


def test_the_loop_rests_for_longer_than_a_step_took(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[float] = []
    call_later = loop.loop.call_later

    def calling(delay_s: float, *given: Any) -> Any:
        rested.append(delay_s)
        return call_later(0, *given)

    ticks = iter(range(1000))
    monkeypatch.setattr(loop.loop, "call_later", calling)
    monkeypatch.setattr("twotower.serving.turns.time.perf_counter", lambda: next(ticks))
    loop.turns.take(iter([None, None]))
    assert rested == [3.0, 3.0]
