"""`POST /v1/retrieve:batch`: each request with its answer or its problem, all of one generation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_project import (
    UNKNOWN_USER,
    USERS,
    RunningServer,
    publish_marked,
    running_server,
    write_project,
)
from twotower.publishing.store import ModelStore
from twotower.serving.exchange import Call
from twotower.serving.messages import MAX_BATCH
from twotower.serving.metrics import Metrics
from twotower.serving.overload import Overload
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import RetrieveRoute
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import CounterBlock, SharedMemory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    store = ModelStore(folder / "twotower-data")
    for number in (1, 2):
        publish_marked(store, number)
    store.activate("g-000001", force=True)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server(write_project(folder)) as running:
        yield running


def test_each_request_gets_what_it_gets_alone(server: RunningServer) -> None:
    requests: list[Any] = [{"user_id": user, "k": 4, "display": True} for user in USERS]
    requests += [{"user_id": UNKNOWN_USER}, {"user_id": 1, "k": 0}, {"featurs": 1}, 7, "x", None]
    requests += [{"user_id": 1, "features": {"ciity": 1}}, {"user_id": "no number"}]
    reply = server.ask("POST", "/v1/retrieve:batch", {"requests": requests}, X_Request_Id="one")
    assert reply.status == 200, reply.body
    assert reply.headers["x-generation"] == "g-000001"
    batch = reply.json()
    assert (batch["generation"], batch["sequence"], batch["request_id"]) == ("g-000001", 1, "one")
    assert len(batch["results"]) == len(requests)
    for request, result in zip(requests, batch["results"], strict=True):
        alone = server.ask("POST", "/v1/retrieve", json.dumps(request).encode(), X_Request_Id="one")
        name = "answer" if alone.status == 200 else "problem"
        assert result == {name: alone.json()}
    assert sum("answer" in result for result in batch["results"]) == len(USERS) + 1


def test_the_size_of_a_batch_is_bounded(server: RunningServer) -> None:
    request = {"user_id": UNKNOWN_USER, "k": 1}
    for number, status in ((0, 422), (MAX_BATCH, 200), (MAX_BATCH + 1, 422)):
        reply = server.ask("POST", "/v1/retrieve:batch", {"requests": [request] * number})
        assert reply.status == status
        if status == 422:
            assert reply.json()["errors"][0]["path"] == "$.requests"
    for body, status in ((b"{", 400), (b"{}", 422), (b'{"requests": [1], "x": 1}', 422)):
        assert server.ask("POST", "/v1/retrieve:batch", body).status == status


class Batch:
    """A route over a follower that this process moves by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = ModelStore(folder / "twotower-data")
        metrics = Metrics(CounterBlock(SharedMemory(1).counters(0)))
        settings = ServingSettings()
        self.follower = Follower(folder / "twotower-data", settings, metrics)
        self.follower.tick()
        self.route = RetrieveRoute(self.follower, metrics, Overload(settings, metrics))

    def call(self, number: int, seconds: float = 60.0) -> Call:
        requests = [{"user_id": UNKNOWN_USER, "k": 1}] * number
        deadline_s = time.perf_counter() + seconds
        return Call(json.dumps({"requests": requests}).encode(), "id", {}, deadline_s, {})


def test_a_batch_is_of_one_generation_whatever_goes_live_meanwhile(folder: Path) -> None:
    batch = Batch(folder)
    first = batch.follower.served
    batch.store.activate("g-000002", force=True)

    async def both() -> list[Any]:
        async def swap() -> None:
            await asyncio.sleep(0)
            batch.follower.tick()  # in the middle of the batch

        reply, _ = await asyncio.gather(batch.route.batch(batch.call(20)), swap())
        later = await batch.route.batch(batch.call(20))
        return [json.loads(found.body) for found in (reply, later)]

    try:
        found, later = asyncio.run(both())
    finally:
        batch.store.activate("g-000001", force=True)
    assert batch.follower.served is not first
    for answer, generation in ((found, "g-000001"), (later, "g-000002")):
        made_by = {result["answer"]["generation"] for result in answer["results"]}
        assert made_by == {answer["generation"]} == {generation}


def test_others_are_answered_between_two_requests_of_a_batch(folder: Path) -> None:
    batch = Batch(folder)
    turns: list[int] = []

    async def both() -> None:
        async def other() -> None:
            for turn in range(10):
                turns.append(turn)
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        await batch.route.batch(batch.call(10))
        task.cancel()

    asyncio.run(both())
    assert len(turns) >= 9


def test_what_the_deadline_leaves_over_is_refused(folder: Path) -> None:
    batch = Batch(folder)
    call = batch.call(3, seconds=0.0)
    reply = asyncio.run(batch.route.batch(call))
    problems = [result["problem"]["status"] for result in json.loads(reply.body)["results"]]
    assert problems == [504] * 3
