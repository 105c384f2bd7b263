"""The same request to the same generation, delta, items and offset gives the same bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from day_events import clicked, shown
from serving_project import (
    UNKNOWN_USER,
    USERS,
    RunningServer,
    ask,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_serving_day import publish_delta
from tiny_checkpoint import CUT_MS
from twotower.data.event_log import open_event_log
from twotower.publishing.day_items import add_items, withdraw_items
from twotower.publishing.encoding import Encoder
from twotower.publishing.item_register import DayItem
from twotower.publishing.store import ModelStore

ITEM, STRANGE = 1_000_650, 7
NEW = [9_000_001, 9_000_000]
HISTORY: dict[str, Any] = {
    "filter": [{"feature": "genre", "any_of": ["genre 1", "genre 2"]}],
    "display": True,
}


def write_day(data_path: Path) -> None:
    """A generation with deltas, items of the day and users who did something since."""
    store = ModelStore(data_path)
    name = publish_marked(store, 1)
    store.activate(name, force=True)
    for number in (1, 2):
        publish_delta(store, name, number)
    generation = store.open(name)
    encoder = Encoder.of(generation)
    items = [DayItem(item_id=item_id, features={"genre": "genre 1"}) for item_id in NEW]
    add_items(data_path, generation, encoder, items)
    withdraw_items(data_path, encoder, [1_000_655])
    with open_event_log(data_path) as log:
        log.append(
            [
                event
                for number, user in enumerate(USERS)
                for event in (
                    shown(3 * number, user, 1_000_660 + number),
                    clicked(3 * number + 1, user, 1_000_670 + number % 5),
                    clicked(3 * number + 2, user, NEW[0] if number % 2 else STRANGE),
                )
            ],
            CUT_MS,
        )


def requests() -> list[tuple[str, dict[str, Any]]]:
    users = [*USERS[:6], UNKNOWN_USER]
    retrieve: list[dict[str, Any]] = [{"user_id": user, "k": 30, "display": True} for user in users]
    retrieve += [{"user_id": user, "features": {"city": "Lima"}, **HISTORY} for user in users]
    inputs = [{"name": "user_id", "shape": [3], "datatype": "INT64", "data": USERS[:3]}]
    return [
        *(("/v1/retrieve", body) for body in retrieve),
        ("/v1/retrieve:batch", {"requests": [*retrieve, {"user_id": "x"}]}),
        ("/v1/similar", {"item_ids": [ITEM, NEW[0]], "display": True}),
        *(("/v1/explain", {"user_id": user, "item_id": ITEM, "display": True}) for user in users),
        ("/v2/models/twotower/infer", {"inputs": inputs, "parameters": {"k": 5}}),
    ]


def whole_day(server: RunningServer) -> bool:
    """Whether every worker has everything that `write_day` wrote."""
    return all(
        (worker["delta"], worker["items_number"], worker["user_state_offset"])
        == (2, 2, 3 * len(USERS))
        for worker in server.readiness()["workers"]
    )


def answers_of_each_worker(server: RunningServer, number: int) -> list[list[bytes]]:
    """The bytes of every answer, a list a worker."""
    found: dict[str, list[bytes]] = {}

    def all_answered() -> bool:
        with contextlib.closing(server.connect()) as opened:
            worker = ask(opened, "GET", "/healthz").headers["x-request-id"].split("-")[0]
            if worker not in found:
                replies = [ask(opened, "POST", path, body, {"X-Request-Id": "same"})
                           for path, body in requests()]  # fmt: skip
                assert {reply.status for reply in replies} == {200}
                found[worker] = [reply.body for reply in replies]
        return len(found) == number

    eventually(all_answered)
    return list(found.values())


def test_the_same_request_gives_the_same_bytes_on_every_worker_and_after_a_restart(
    tmp_path: Path,
) -> None:
    write_day(tmp_path / "twotower-data")
    config = write_project(tmp_path)
    answers: list[list[bytes]] = []
    for workers in (2, 1):
        with running_server(config, workers=workers) as server:
            eventually(lambda running=server: whole_day(running))  # type: ignore[misc]
            answers += answers_of_each_worker(server, workers)
    assert len(answers) == 3
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) == len(requests())
