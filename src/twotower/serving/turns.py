"""Work of another thread, done by the event loop between two requests.

Two threads of one interpreter that both compute slow each other down far beyond their shares. What
has to be computed in a serving process beside the answers is therefore cut into steps, each about
as long as a request; the loop takes one when no request waits, and then rests for longer than that
took, because other workers may share its core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Final

__all__ = ["Turns"]

_REST_FACTOR: Final = 3.0
_PATIENCE_S: Final = 0.005
"""How long requests go before a step, which is then taken although some wait."""


class Turns:
    """Steps for one event loop; until it is known, whoever has some takes them himself."""

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        """`num_waiting` tells how many requests were read and wait for the loop."""
        self._num_waiting = num_waiting
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on this loop takes the steps; it runs until nobody has any more."""
        self._loop = loop

    def take(self, steps: Iterator[None]) -> None:
        """Take all steps; returns after the last one. For any thread but the loop's.

        Raises:
            Exception: whatever one of them raises, which is the last one then.
        """
        if self._loop is None:
            for _ in steps:
                pass
            return
        done: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._begin_step, steps, done)
        done.result()

    def _begin_step(self, steps: Iterator[None], done: Future[None]) -> None:
        self._after_reading(steps, done, time.perf_counter() + _PATIENCE_S)

    def _after_reading(self, steps: Iterator[None], done: Future[None], latest_s: float) -> None:
        """Let the loop read its sockets before it looks who waits."""
        assert self._loop is not None
        self._loop.call_soon(self._look, steps, done, latest_s)

    def _look(self, steps: Iterator[None], done: Future[None], latest_s: float) -> None:
        if self._num_waiting() and time.perf_counter() < latest_s:
            self._after_reading(steps, done, latest_s)  # behind those that wait
            return
        began_s = time.perf_counter()
        try:
            next(steps)
        except StopIteration:
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)
        else:
            assert self._loop is not None
            rest_s = _REST_FACTOR * (time.perf_counter() - began_s)
            self._loop.call_later(rest_s, self._begin_step, steps, done)
