"""Generations and items over HTTP: what the commands do, followed by every worker."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving_project import (
    UNKNOWN_USER,
    RunningServer,
    ask,
    damage,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_cli_generations import call_json
from twotower import errors
from twotower.publishing.item_register import read_register
from twotower.publishing.retention import pins
from twotower.publishing.store import ModelStore
from twotower.serving.key_changes import create_key
from twotower.serving.problems import RefusedRequest
from twotower.serving.refusals import as_problems

NEW = 9_000_001


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("admin")
    store = ModelStore(folder / "twotower-data")
    for number in (1, 2, 3):
        publish_marked(store, number)
    damage(folder / "twotower-data", "g-000003")
    store.activate("g-000001", force=True)
    return write_project(folder)


@pytest.fixture(scope="module")
def store(config: Path) -> ModelStore:
    return ModelStore(config.parent / "twotower-data")


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[RunningServer]:
    with running_server(config, workers=2) as running:
        yield running


def post(server: RunningServer, path: str, status: int = 200, **body: object) -> Any:
    reply = server.ask("POST", path, body, X_Request_Id="audit-1")
    assert reply.status == status, reply.body
    return reply.json()


# -- generations


def test_the_list_is_that_of_the_command(config: Path, server: RunningServer) -> None:
    listed = server.ask("GET", "/v1/generations").json()
    assert call_json(config.parent, "generations", "list") == listed
    assert [found["name"] for found in listed["generations"]] == [f"g-00000{n}" for n in (1, 2, 3)]
    assert [found["live"] for found in listed["generations"]].count(True) == 1
    shown = server.ask("GET", "/v1/generations/g-000002").json()
    assert (shown["manifest"]["name"], shown["live"]) == ("g-000002", False)


def test_activation_and_roll_back_are_followed_audited_and_only_move_forward(
    server: RunningServer, store: ModelStore
) -> None:
    first = store.live()
    assert first is not None
    planned = post(server, "/v1/generations/g-000002:activate", force=True, dry_run=True)
    assert (planned["generation"], store.live()) == ("g-000002", first)
    made = post(server, "/v1/generations/g-000002:activate", force=True, reason="try it")
    assert (made["sequence"], made["previous"]) == (first.sequence + 1, "g-000001")
    server.wait_ready(made["sequence"])
    answer = post(server, "/v1/retrieve", user_id=UNKNOWN_USER)
    assert (answer["generation"], answer["sequence"]) == ("g-000002", made["sequence"])
    post(server, "/v1/generations/g-000001:roll-back", 409)  # it is not live
    back = post(server, "/v1/generations/g-000002:roll-back", reason="worse")
    assert (back["generation"], back["sequence"]) == ("g-000001", made["sequence"] + 1)
    again = post(server, "/v1/generations/g-000002:roll-back", 409)  # asked twice
    assert "nothing was changed" in again["detail"]
    server.wait_ready(back["sequence"])
    audit = [(a.generation, a.sequence, a.action, a.reason) for a in store.activations()][-2:]
    assert audit == [
        ("g-000002", made["sequence"], "activate", "try it"),
        ("g-000001", back["sequence"], "roll_back", "worse"),
    ]
    assert all("request audit-1" in a.by for a in store.activations()[-2:])


def test_what_does_not_allow_it_is_a_conflict_and_changes_nothing(
    server: RunningServer, store: ModelStore
) -> None:
    before = store.live()
    damaged = post(server, "/v1/generations/g-000003:activate", 409, force=True)
    assert "checksum" in damaged["detail"]
    late = post(server, "/v1/generations/g-000002:activate", 409, force=True, only_after=0)
    assert "stays live" in late["detail"]
    assert store.live() == before
    assert server.ask("GET", "/v1/generations/g-000003").status == 200  # its manifest is whole


@pytest.mark.parametrize(
    "name",
    [
        *("g-000009", "CURRENT", "g-1", "..", "%2e%2e", "..%2f..%2fetc", "%2Fetc%2Fpasswd"),
        *("g-000001%00", "g-00000%EF%BC%91", "C:%5C", "%5C%5Chost%5Cshare", "g-000001%2F..", " "),
        *("g-000001 ", ".staging-g-000002", "x" * 4096, "g-" + "0" * 4096, "g-000001%0A"),
    ],
)
def test_only_the_plain_name_of_a_generation_is_one(server: RunningServer, name: str) -> None:
    quoted = name.replace(" ", "%20")
    assert server.ask("GET", f"/v1/generations/{quoted}").status == 404
    for verb, body in (
        ("activate", {"force": True}),
        ("roll-back", {}),
        ("pin", {}),
        ("unpin", {}),
    ):
        reply = server.ask("POST", f"/v1/generations/{quoted}:{verb}", body)
        assert reply.status == 404, reply.body
        assert reply.headers["content-type"] == "application/problem+json"


def test_a_change_must_be_declared_as_json(server: RunningServer, store: ModelStore) -> None:
    """So that no page of another site makes a browser send one."""
    before = store.live()
    for kind in ("", "text/plain", "application/x-www-form-urlencoded"):
        path = "/v1/generations/g-000002:activate"
        assert server.ask("POST", path, b'{"force": true}', Content_Type=kind).status == 415
    assert store.live() == before


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError, 422),
        (errors.DataError, 422),
        (errors.GateRefused, 409),
        (errors.LineageError, 409),
        (errors.CorruptArtifact, 409),
        (errors.NotReady, 409),
        (errors.Busy, 503),
    ],
)
def test_every_refusal_has_its_status(error: type[errors.TwoTowerError], status: int) -> None:
    with pytest.raises(RefusedRequest, match="as it says") as refused, as_problems():
        raise error("as it says")
    assert refused.value.status == status
    assert bool(refused.value.headers) == (status == 503)


def test_pins_come_and_go(server: RunningServer, store: ModelStore) -> None:
    found = post(server, "/v1/generations/g-000002:pin", reason="baseline")
    assert found == {"pinned": {"g-000002": "baseline"}} == {"pinned": pins(store)}
    assert server.ask("GET", "/v1/generations/g-000002").json()["pinned"] == "baseline"
    assert post(server, "/v1/generations/g-000002:unpin") == {"pinned": {}}
    assert pins(store) == {}


def test_answers_go_on_while_another_process_keeps_activations_out(
    server: RunningServer, store: ModelStore
) -> None:
    """The work is done beside the event loop of the worker that was asked."""

    def worker_of(connection: http.client.HTTPConnection) -> str:
        return ask(connection, "GET", "/healthz").headers["x-request-id"].split("-")[0]

    with contextlib.ExitStack() as opened, ThreadPoolExecutor(1) as pool:
        connections = [opened.enter_context(contextlib.closing(server.connect())) for _ in range(3)]
        workers = [worker_of(connection) for connection in connections]
        shared = [c for c, w in zip(connections, workers, strict=True) if workers.count(w) >= 2]
        one, other = shared[:2]  # of three connections, two reach one of two workers
        path, body = "/v1/generations/g-000002:pin", {"user_id": UNKNOWN_USER}
        with store.activating():
            waiting = pool.submit(ask, one, "POST", path, {})
            seen = [ask(other, "POST", "/v1/retrieve", body).status for _ in range(20)]
            assert not waiting.done()
        assert waiting.result(30).json()["pinned"]
    assert seen == [200] * 20
    post(server, "/v1/generations/g-000002:unpin")


# -- items


def on_each_worker(server: RunningServer, body: dict[str, Any]) -> list[Any]:
    """One answer of each of the two workers."""
    answers: dict[str, Any] = {}

    def both() -> list[Any]:
        with contextlib.closing(server.connect()) as opened:
            worker = ask(opened, "GET", "/healthz").headers["x-request-id"].split("-")[0]
            answers[worker] = ask(opened, "POST", "/v1/retrieve", body).json()
        return list(answers.values()) if len(answers) == 2 else []

    return eventually(both)


def items_of(answer: Any) -> list[int]:
    return [candidate["item_id"] for candidate in answer["candidates"]]


def follow(server: RunningServer, number: int) -> None:
    """Until every worker has that change of the items."""
    eventually(
        lambda: all((w["items_number"] or 0) >= number for w in server.readiness()["workers"])
    )


def test_an_item_of_the_day_is_found_changed_withdrawn_and_restored_on_every_worker(
    server: RunningServer, config: Path
) -> None:
    body = {"user_id": UNKNOWN_USER, "k": 100, "display": True}
    added = post(server, "/v1/items", items=[{"item_id": NEW, "features": {"genre": "genre 2"}}])
    assert (added["added"], added["known"]) == ([NEW], [])
    follow(server, added["number"])
    assert all(NEW in items_of(answer) for answer in on_each_worker(server, body))
    fields = {"features": {"genre": "genre 3"}, "display": {"title": "new"}}
    put = server.ask("PUT", f"/v1/items/{NEW}", fields).json()
    assert put["number"] > added["number"]
    follow(server, put["number"])
    shown = [c for c in on_each_worker(server, body)[0]["candidates"] if c["item_id"] == NEW]
    assert shown[0]["display"] == {"title": "new"}
    began = time.monotonic()
    gone = server.ask("DELETE", f"/v1/items/{NEW}?reason=legal%20notice").json()
    assert gone["withdrawn"][-1]["reason"] == "legal notice"
    follow(server, gone["number"])
    took_s = time.monotonic() - began
    assert not any(NEW in items_of(answer) for answer in on_each_worker(server, body))
    assert took_s < 30  # a second is the promise; a busy machine of tests is no measure of it
    listed = server.ask("GET", "/v1/items").json()
    assert [item["item_id"] for item in listed["added"]] == [NEW]
    assert [item["item_id"] for item in listed["withdrawn"]] == [NEW]
    assert listed["number"] == read_register(config.parent / "twotower-data").number
    back = post(server, "/v1/items:restore", item_ids=[NEW])
    follow(server, back["number"])
    assert all(NEW in items_of(answer) for answer in on_each_worker(server, body))


def test_items_that_are_there_already_are_left_as_they_are(server: RunningServer) -> None:
    known = items_of(post(server, "/v1/retrieve", user_id=UNKNOWN_USER))[0]
    found = server.ask("PUT", f"/v1/items/{known}", {"features": {"genre": "genre 1"}}).json()
    assert (found["added"], found["known"]) == ([], [known])


def test_items_that_cannot_be_are_refused_and_none_is_added(
    server: RunningServer, config: Path
) -> None:
    before = read_register(config.parent / "twotower-data").number
    good = {"item_id": NEW + 1, "features": {"genre": "genre 1"}}
    for items in (
        [good, {"item_id": NEW + 2, "features": {"gnere": 1}}],
        [good, {"item_id": "no number"}],
        [good, {"features": {}}],
        [good | {"added_ms": 1}],
        [],
    ):
        post(server, "/v1/items", 422, items=items)
    for method, path in (
        ("DELETE", "/v1/items/no-number"),
        ("DELETE", "/v1/items/" + "9" * 40),
        ("DELETE", "/v1/items/%00"),
        ("DELETE", f"/v1/items/1?reason={'x' * 1001}"),
        ("PUT", "/v1/items/no-number"),
    ):
        body: object = {} if method == "PUT" else None
        assert server.ask(method, path, body).status == 422, path
    assert server.ask("DELETE", "/v1/items/%ff").status == 400
    assert read_register(config.parent / "twotower-data").number == before


def test_the_audit_names_the_key(server: RunningServer, store: ModelStore, config: Path) -> None:
    """The last test of this file: from its key on, the server asks for one."""
    made = create_key(config.parent / "twotower-data", "deployer", ["admin"])
    path, key = "/v1/generations/g-000002:activate", {"X_API_Key": made.secret}

    def activated() -> bool:
        unasked = server.ask("POST", path, {"dry_run": True, "force": True}).status
        return unasked == 401 and server.ask("POST", path, {"force": True}, **key).status == 200

    eventually(activated)
    newest = store.live()
    assert newest is not None
    assert newest.by.endswith(f", key {made.key.key_id}")
    assert made.secret not in newest.by
