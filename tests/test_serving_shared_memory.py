"""Numbers that workers share: never torn, never lost, never another's."""

from __future__ import annotations

import os

import msgspec
import pytest

from twotower.serving.shared_memory import CounterBlock, SharedMemory, read_counters


class Note(msgspec.Struct):
    text: str


def test_counters_are_read_by_name_by_others() -> None:
    memory = SharedMemory(2)
    block = CounterBlock(memory.counters(1))
    for name in ("a", "längerer Name", "a", "b" * 33):
        block.values[block.place(name)] += 1.5
    assert read_counters(memory.counters(1)) == {"a": 3.0, "längerer Name": 1.5, "b" * 33: 1.5}
    assert read_counters(memory.counters(0)) == {}


def test_a_replacement_goes_on_with_the_numbers() -> None:
    memory = SharedMemory(1)
    first = CounterBlock(memory.counters(0))
    first.values[first.place("a")] += 2
    second = CounterBlock(memory.counters(0))
    second.values[second.place("a")] += 1
    second.values[second.place("b")] += 1
    assert read_counters(memory.counters(0)) == {"a": 3.0, "b": 1.0}


def test_a_torn_record_is_not_seen_and_a_new_counter_starts_at_zero() -> None:
    memory = SharedMemory(1).counters(0)
    block = CounterBlock(memory)
    used = memory.cast("Q")[0]
    block.place("x" * 64)  # as if its writer had been killed before the end:
    memory.cast("Q")[0] = used
    assert read_counters(memory) == {}
    again = CounterBlock(memory)
    assert again.values[again.place("y")] == 0.0
    assert read_counters(memory) == {"y": 0.0}


def test_a_full_block_says_so() -> None:
    memory = memoryview(bytearray(64))
    block = CounterBlock(memory)
    block.place("a" * 8)
    block.place("b" * 8)
    with pytest.raises(MemoryError, match="no room"):
        block.place("c" * 8)
    assert set(read_counters(memory)) == {"a" * 8, "b" * 8}


def test_a_status_is_replaced_as_a_whole() -> None:
    memory = SharedMemory(2)
    assert memory.statuses(Note) == [None, None]
    for text in ("one", "a longer one", "x"):
        memory.status(1).write(Note(text))
        assert memory.statuses(Note) == [None, Note(text)]
    with pytest.raises(ValueError, match="at most"):
        memory.status(1).write(Note("x" * 20_000))
    assert memory.statuses(Note) == [None, Note("x")]


def test_a_child_process_writes_what_its_parent_reads() -> None:
    memory = SharedMemory(1)
    pid = os.fork()
    if pid == 0:
        block = CounterBlock(memory.counters(0))
        block.values[block.place("from the child")] += 7
        memory.status(0).write(Note("child"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert read_counters(memory.counters(0)) == {"from the child": 7.0}
    assert memory.statuses(Note) == [Note("child")]
