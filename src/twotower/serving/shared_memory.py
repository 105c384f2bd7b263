"""What the workers of one server share: named counters and a status each, in plain memory.

The server maps one anonymous block for each worker before it forks. Only that worker writes it,
anybody reads it, and a worker that replaces a dead one goes on with its numbers: a counter never
falls, nothing is left on the disk, and adding to a counter costs no system call and no lock.

Layout of a block: 8 bytes with the number of bytes in use, then one record for each name: its
length (8 bytes), the name in UTF-8 padded to 8, its float64. An aligned float64 is written whole.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec

__all__ = ["BLOCK_BYTES", "CounterBlock", "SharedMemory", "StatusBlock", "read_counters"]

BLOCK_BYTES: Final = 256 << 10
_STATUS_BYTES: Final = 16 << 10
_WORD: Final = 8
T = TypeVar("T")


class CounterBlock:
    """One worker's counters. Adding is for one thread at a time a counter."""

    def __init__(self, memory: memoryview) -> None:
        """Go on with what `memory` holds; zeros are an empty block."""
        self._memory = memory
        self._used = memory.cast("Q")
        self.values = memory.cast("d")
        """Add to a counter with `values[place(name)] += 1`."""
        self._places = dict(_records(memory))
        self._adding = threading.Lock()

    def place(self, name: str) -> int:
        """Return where the counter `name` stands in `values`; a new one is 0.

        Raises:
            MemoryError: the block is full.
        """
        found = self._places.get(name)
        if found is not None:
            return found
        with self._adding:
            return self._places.setdefault(name, self._places.get(name) or self._append(name))

    def _append(self, name: str) -> int:
        encoded = name.encode()
        start = max(self._used[0], _WORD)
        value_at = start + _WORD + _padded(len(encoded))
        if value_at + _WORD > len(self._memory):
            raise MemoryError(f"no room for the counter {name!r} in {len(self._memory)} bytes")
        self._used[start // _WORD] = len(encoded)
        self._memory[start + _WORD : start + _WORD + len(encoded)] = encoded
        self.values[value_at // _WORD] = 0.0  # a worker killed just here may have left anything
        self._used[0] = value_at + _WORD  # last: a reader sees the record whole or not at all
        return value_at // _WORD


def read_counters(memory: memoryview) -> dict[str, float]:
    """Return every counter of a block, whoever writes it."""
    values = memory.cast("d")
    return {name: values[place] for name, place in _records(memory)}


def _records(memory: memoryview) -> Iterator[tuple[str, int]]:
    words = memory.cast("Q")
    at, end = _WORD, words[0]
    while at < end:
        length = words[at // _WORD]
        name = bytes(memory[at + _WORD : at + _WORD + length]).decode()
        at += _WORD + _padded(length)
        yield name, at // _WORD
        at += _WORD


def _padded(length: int) -> int:
    return -(-length // _WORD) * _WORD


class StatusBlock:
    """One worker's status, replaced as a whole: written beside the old one, then switched."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._which = memory.cast("Q")
        self._writing = threading.Lock()

    def write(self, status: object) -> None:
        """Replace the status by a struct whose JSON has at most 8 KB."""
        content = msgspec.json.encode(status)
        with self._writing:
            self._write(content)

    def _write(self, content: bytes) -> None:
        half = (len(self._memory) - _WORD) // 2
        if len(content) > half:
            raise ValueError(f"expected a status of at most {half} bytes, found {len(content)}")
        turn = self._which[0] + 1
        start = _WORD + (turn % 2) * half
        self._memory[start : start + half] = content.ljust(half)
        self._which[0] = turn

    def read(self, kind: type[T]) -> T | None:
        """Return the status, None before the first one."""
        while True:
            turn = self._which[0]
            if turn == 0:
                return None
            half = (len(self._memory) - _WORD) // 2
            start = _WORD + (turn % 2) * half
            content = bytes(self._memory[start : start + half])
            if self._which[0] == turn:  # else it may have been overwritten while it was read
                return msgspec.json.decode(content, type=kind)


class SharedMemory:
    """The blocks of all workers, and what the verifier says; made before the first fork."""

    def __init__(self, num_workers: int) -> None:
        blocks_bytes = num_workers * (BLOCK_BYTES + _STATUS_BYTES)
        self._memory = memoryview(mmap.mmap(-1, blocks_bytes + _STATUS_BYTES))
        self.num_workers = num_workers
        self.verifier = StatusBlock(self._memory[blocks_bytes:])

    def counters(self, slot: int) -> memoryview:
        """Return the memory of one worker's counters."""
        start = slot * (BLOCK_BYTES + _STATUS_BYTES)
        return self._memory[start : start + BLOCK_BYTES]

    def status(self, slot: int) -> StatusBlock:
        """Return one worker's status."""
        start = slot * (BLOCK_BYTES + _STATUS_BYTES) + BLOCK_BYTES
        return StatusBlock(self._memory[start : start + _STATUS_BYTES])

    def statuses(self, kind: type[T]) -> list[T | None]:
        """Return the status of every worker."""
        return [self.status(slot).read(kind) for slot in range(self.num_workers)]
