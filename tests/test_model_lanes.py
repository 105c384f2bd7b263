"""Parts in lanes: at once, in order, with one thread each, and in a forked process too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from twotower.model.lanes import MAX_LANES, num_lanes, run_in_lanes


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_parts_run_at_once_and_their_results_keep_the_order(is_recorded: bool) -> None:
    both = threading.Barrier(2)

    def part(number: int) -> tuple[int, str, int, bool]:
        both.wait(20)
        name = threading.current_thread().name
        return number, name, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.set_grad_enabled(is_recorded):
        found = run_in_lanes([partial(part, number) for number in range(2)])
    assert [number for number, *_ in found] == [0, 1]
    assert len({name for _, name, *_ in found}) == 2
    assert all(rest == [1, is_recorded] for _, _, *rest in found)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (2, True)


def test_one_thread_or_one_part_stays_where_it_is() -> None:
    here = threading.current_thread()
    assert run_in_lanes([threading.current_thread]) == [here]
    torch.set_num_threads(1)
    assert run_in_lanes([threading.current_thread] * 3) == [here] * 3


def test_many_threads_share_lanes() -> None:
    torch.set_num_threads(MAX_LANES * 2)
    assert num_lanes() == MAX_LANES
    assert set(run_in_lanes([torch.get_num_threads] * MAX_LANES)) == {2}
    assert run_in_lanes([torch.get_num_threads] * 2) == [MAX_LANES, MAX_LANES]


def test_an_error_of_a_part_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_lanes([lambda: 1, lambda: 1 // 0])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_lanes_of_its_own() -> None:
    run_in_lanes([lambda: 1, lambda: 2])
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills a child that waits for threads which it does not have
        os._exit(sum(run_in_lanes([lambda: 1, lambda: 2])))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
