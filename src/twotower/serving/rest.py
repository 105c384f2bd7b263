"""Work beside those who answer: a little of it, then a rest that is longer.

A thread that computes without a pause keeps the core, and the interpreter, from a request for some
milliseconds each time; one that rests after some hundred microseconds keeps it for as long as that.
"""

from __future__ import annotations

import time

__all__ = ["Rest"]


class Rest:
    """Called between two pieces of work, it sleeps. For one thread."""

    def __init__(self, factor: float) -> None:
        """Begin to work; each rest takes `factor` times as long as the work before it."""
        self._factor = factor
        self._rested_s = time.thread_time()

    def __call__(self) -> None:
        """Sleep."""
        time.sleep(self._factor * (time.thread_time() - self._rested_s))
        self._rested_s = time.thread_time()
