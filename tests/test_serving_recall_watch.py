"""The recall of an index on what is asked, measured while it serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving_project import USERS, publish_marked
from tiny_checkpoint import tiny_checkpoint
from twotower.index.interface import PADDING, FloatArray, SearchResult, TunableIndex
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.messages import RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.recall_watch import RecallWatch
from twotower.serving.reload import Follower
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory, read_counters

K = 50
REQUESTS = [RetrieveRequest(user_id=user, k=K) for user in USERS[:3]]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose live index is approximate."""
    path = tmp_path_factory.mktemp("recall")
    store = ModelStore(path)
    name = publish(tiny_checkpoint(num_items=1500), store, index=IndexSettings(engine="faiss_ivf"))
    store.activate(name.name, force=True)
    return path


class Counted:
    """A worker's metrics, and what they sampled."""

    def __init__(self) -> None:
        self._memory = SharedMemory(1)
        self.metrics = Metrics(CounterBlock(self._memory.counters(0)))

    def sampled(self) -> tuple[float, float]:
        """Found and wanted."""
        counters = read_counters(self._memory.counters(0))
        found, wanted = (
            counters.get(f'["twotower_ann_{name}_items_total",[],""]', 0.0)
            for name in ("found", "sampled")
        )
        return found, wanted


def test_the_last_request_is_searched_exactly_when_it_is_time(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever, counted, now_s = Retriever.open(data_path), Counted(), [100.0]
    watch = RecallWatch(60, counted.metrics, lambda: now_s[0])
    index = retriever.index
    assert isinstance(index, TunableIndex)
    found, vector = (
        index.search,
        retriever.users.asking(USERS[2], {}, None).vector(retriever.encoder),
    )

    def blind_to_half(queries: FloatArray, k: int) -> SearchResult:
        assert np.array_equal(queries, vector)
        ids = found(queries, k).ids.copy()
        ids[:, ::2] = PADDING
        return SearchResult(ids, np.zeros(ids.shape, np.float32))

    monkeypatch.setattr(index, "search", blind_to_half)
    watch.look(retriever, [])
    assert counted.sampled() == (0, 0)
    watch.look(retriever, REQUESTS)
    assert counted.sampled() == (K / 2, K)
    now_s[0] += 59
    watch.look(retriever, REQUESTS)
    assert counted.sampled()[1] == K
    now_s[0] += 1
    watch.look(retriever, REQUESTS)
    assert counted.sampled()[1] == 2 * K


def test_what_another_generation_was_asked_is_no_error(data_path: Path) -> None:
    counted = Counted()
    watch = RecallWatch(60, counted.metrics, lambda: 0.0)
    strange = RetrieveRequest(user_id=1, features={"none of ours": 1})
    watch.look(Retriever.open(data_path), [strange])
    assert counted.sampled() == (0, 0)


def test_0_takes_no_sample_and_an_exact_index_needs_none(data_path: Path, tmp_path: Path) -> None:
    store, counted = ModelStore(tmp_path), Counted()
    store.activate(publish_marked(store, 1), force=True)
    RecallWatch(0, counted.metrics).look(Retriever.open(data_path), REQUESTS)
    RecallWatch(60, counted.metrics).look(Retriever.open(tmp_path), REQUESTS)
    assert counted.sampled() == (0, 0)


def test_a_worker_samples_what_it_is_asked(data_path: Path) -> None:
    counted = Counted()
    follower = Follower(data_path, ServingSettings(), counted.metrics)
    follower.tick()
    follower.tick_day()
    assert counted.sampled() == (0, 0)
    follower.recent_requests.extend(REQUESTS)
    follower.tick_day()
    assert counted.sampled()[1] == K
