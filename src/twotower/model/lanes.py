"""Independent parts of one computation, each on a thread of its own.

A library that splits every single operation over the threads makes them wait for each other at the
end of each, hundreds of times a step, and the slowest decides: beside any other busy process that
costs more than the arithmetic. Parts of many operations meet once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

import torch

__all__ = ["MAX_LANES", "num_lanes", "run_in_lanes"]

MAX_LANES: Final = 8
"""More threads than these share lanes: each lane has buffers of its own."""

T = TypeVar("T")


def num_lanes() -> int:
    """Return how many parts run at once: the threads of PyTorch, at most `MAX_LANES`."""
    return min(torch.get_num_threads(), MAX_LANES)


def run_in_lanes(parts: Sequence[Callable[[], T]]) -> list[T]:
    """Run the parts at once and return their results in order; none may depend on another.

    The same parts and thread count give the same bits: which lane ran a part changes nothing.
    """
    lanes = num_lanes()
    if lanes == 1 or len(parts) == 1:
        return [part() for part in parts]
    executor = _executor(lanes, torch.get_num_threads())
    return [future.result() for future in [executor.submit(part) for part in parts]]


@cache
def _executor(lanes: int, threads: int) -> ThreadPoolExecutor:
    """Return threads in which PyTorch splits an operation over their share of `threads`."""
    started = threading.Barrier(lanes)
    executor = ThreadPoolExecutor(lanes, "lane")

    def start() -> None:
        torch.set_num_threads(max(1, threads // lanes))
        started.wait()

    for future in [executor.submit(start) for _ in range(lanes)]:
        future.result()
    # The setting is each thread's own, but threads started later begin with the last one.
    torch.set_num_threads(threads)
    return executor


# A forked child has none of its parent's threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_executor.cache_clear)
