"""Independent parts of one computation, each on a thread of its own.

A library that splits every single operation over the threads makes them wait for each other at the
end of each, hundreds of times a step, and the slowest decides: beside any other busy process that
costs more than the arithmetic. Parts of many operations meet once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, NamedTuple, TypeVar

import torch

__all__ = ["MAX_LANES", "num_lanes", "run_in_lanes", "split_rows"]

MAX_LANES: Final = 8
"""More threads than these share lanes: each lane has buffers of its own."""

T = TypeVar("T")


def num_lanes() -> int:
    """Return how many parts run at once: the threads of PyTorch, at most `MAX_LANES`."""
    return min(torch.get_num_threads(), MAX_LANES)


def split_rows(num_rows: int, parts: int) -> list[range]:
    """Return the rows in as many runs, or fewer, as even as can be."""
    size = -(-num_rows // parts)
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def run_in_lanes(parts: Sequence[Callable[[], T]], threads: int | None = None) -> list[T]:
    """Run the parts at once and return their results in order; none may depend on another.

    The same parts and thread count give the same bits: which lane ran a part changes nothing.
    Fewer parts than threads share them evenly. Gradients are recorded as they are outside.

    Args:
        parts: what to run.
        threads: to share, those of PyTorch where none are given.
    """
    threads = threads or torch.get_num_threads()
    lanes = min(threads, MAX_LANES, len(parts))
    if lanes == 1:
        return [part() for part in parts]
    executor = _running(lanes, threads)
    is_recorded = torch.is_grad_enabled()
    futures = [executor.submit(_run, part, is_recorded) for part in parts]
    return [future.result() for future in futures]


def _run(part: Callable[[], T], is_recorded: bool) -> T:
    with torch.set_grad_enabled(is_recorded):
        return part()


class _Lanes(NamedTuple):
    executor: ThreadPoolExecutor
    workers: list[threading.Thread]


def _running(lanes: int, threads: int) -> ThreadPoolExecutor:
    started = _start(lanes, threads)
    if not all(worker.is_alive() for worker in started.workers):
        # This is a forked child, which has none of its parent's threads: it would wait for ever.
        _start.cache_clear()
        started = _start(lanes, threads)
    return started.executor


@cache
def _start(lanes: int, threads: int) -> _Lanes:
    """Start threads in which PyTorch splits an operation over their share of `threads`."""
    before, all_started = torch.get_num_threads(), threading.Barrier(lanes)
    executor = ThreadPoolExecutor(lanes, "lane")

    def begin() -> threading.Thread:
        torch.get_num_threads()  # else the first operation here would undo the setting
        torch.set_num_threads(max(1, threads // lanes))
        all_started.wait()
        return threading.current_thread()

    begun = [executor.submit(begin) for _ in range(lanes)]
    workers = [future.result() for future in begun]
    # The setting is each thread's own, but threads started later begin with the last one.
    torch.set_num_threads(before)
    return _Lanes(executor, workers)
