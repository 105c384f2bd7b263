"""Histories and bounds of an incremental update against a plain reading of their rules."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from stream import stream_of
from tiny_checkpoint import tiny_checkpoint
from twotower.data.user_state import Ragged
from twotower.training.increment.durable_update import DurableUpdate
from twotower.training.increment.journal import Journal
from twotower.training.increment.settings import IncrementSettings
from twotower.training.increment.stream_histories import StreamHistories
from twotower.training.increment.user_limit import UserLimit
from twotower.training.incremental_update import IncrementalUpdate
from twotower.training.settings import TrainingSettings


def base_lists(rng: np.random.Generator, num_users: int) -> Ragged:
    lengths = rng.integers(0, 9, num_users)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Ragged(rng.integers(0, 99, offsets[-1]), offsets)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lateness", [0, 40])
def test_a_history_is_what_came_strictly_before(seed: int, lateness: int) -> None:
    rng = np.random.default_rng(seed)
    length, num_users = 6, 10
    base = base_lists(rng, num_users - 3)
    histories = StreamHistories(base, length)
    lists: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for user in range(num_users - 3):
        lists[user] = [(-np.inf, int(item)) for item in base.list_at(user)[-length:]]
    clock = 0
    for size in (1, 30, 0, 25, 40):
        users, items = rng.integers(0, num_users, size), rng.integers(0, 99, size)
        times = clock + np.sort(rng.integers(0, 20, size)) - lateness * (rng.random(size) < 0.2)
        clock += 15
        found = histories.extend(users, items, times.astype(np.int64))
        for user, item, time_ms in zip(users, items, times, strict=True):
            lists[user].append((time_ms, int(item)))
        for user in lists:
            lists[user].sort(key=lambda entry: entry[0])
        for place, (user, time_ms) in enumerate(zip(users, times, strict=True)):
            expected = [item for when, item in lists[user] if when < time_ms][-length:]
            mine = found.past.values[found.start[place] : found.end[place]]
            assert mine.tolist() == expected
        for user in lists:
            lists[user] = lists[user][-length:]


def test_a_model_without_history_keeps_none() -> None:
    histories = StreamHistories(Ragged.empty(3), 0)
    ones = np.ones(4, np.int64)
    found = histories.extend(ones, ones, ones)
    assert found.start.tolist() == found.end.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_a_user_has_so_many_in_the_newest_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limit = UserLimit(3, 100)
    window: dict[int, int] = {}
    count: dict[int, int] = defaultdict(int)
    for _ in range(6):
        size = int(rng.integers(0, 40))
        users = rng.integers(0, 8, size)
        times = rng.integers(0, 600, size)
        expected = []
        for user, time_ms in zip(users.tolist(), times.tolist(), strict=True):
            newest = max(window.get(user, -1), time_ms // 100)
            if newest != window.get(user):
                window[user], count[user] = newest, 0
            count[user] += 1
            expected.append(count[user] <= 3)
        assert limit.take(users, times).tolist() == expected


def test_deltas_that_do_not_fit_the_state_lead_to_one_of_every_row(tmp_path: Path) -> None:
    update = IncrementalUpdate(
        tiny_checkpoint(), IncrementSettings(batch_size=4), TrainingSettings(threads=1)
    )
    durable = DurableUpdate(update, Journal(tmp_path / "g", "ab" * 16, 1 << 20))
    durable.learn(stream_of([700, 699, 698], [650, 651, 652]))
    assert durable.take_delta_rows().user_ids.tolist() == [698, 699, 700]
    durable.learn(stream_of([700], [653], first_offset=3))
    durable.agree(2)
    assert durable.published_offset == 2
    assert durable.take_delta_rows().user_ids.tolist() == [698, 699, 700]
    durable.learn(stream_of([699], [653], first_offset=4))
    durable.agree(durable.offset)
    assert not durable.take_delta_rows(), "all of it is published already"
