"""The typed client, blocking and asynchronous, against real servers and a scripted one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from collector_project import free_port, running_collector
from serving_project import (
    UNKNOWN_USER,
    USERS,
    RunningServer,
    publish_marked,
    running_server,
    write_project,
)
from twotower.client import (
    AsyncClient,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    DeadlineExpired,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RequestRefused,
    ServerFailed,
    Unavailable,
    admin_calls,
    calls,
)
from twotower.client.call import Call
from twotower.data.events import Event
from twotower.publishing.store import ModelStore
from twotower.serving.admin_messages import ActivateRequest, NewItem, PinRequest, RollBackRequest
from twotower.serving.key_changes import create_key
from twotower.serving.messages import Condition, ExplainRequest, RetrieveRequest, SimilarRequest
from twotower.serving.routes import ROUTES

Ask = Callable[..., Any]
CALLS = {name for name in (*calls.__all__, *admin_calls.__all__) if name.islower()}


def ask_blocking(url: str, name: str, *args: object, options: Any = None, **given: object) -> Any:
    with Client(url, **(options or {})) as client:
        return getattr(client, name)(*args, **given)


def ask_awaited(url: str, name: str, *args: object, options: Any = None, **given: object) -> Any:
    async def answer() -> Any:
        async with AsyncClient(url, **(options or {})) as client:
            return await getattr(client, name)(*args, **given)

    return asyncio.run(answer())


@pytest.fixture(params=[ask_blocking, ask_awaited], ids=["blocking", "awaited"])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two generations; the first is live, before and after each test."""
    folder = tmp_path_factory.mktemp("client")
    store = ModelStore(folder / "twotower-data")
    names = [publish_marked(store, number) for number in (1, 2)]
    store.activate(names[0], force=True)
    with running_server(write_project(folder)) as running:
        yield running


# -- what the server says


def test_an_answer_is_the_servers_answer(server: RunningServer, ask: Ask) -> None:
    asked = {"k": 3, "features": {"city": "Lima"}, "exclude": [5], "display": True}
    headers = {"headers": {"X-Request-Id": "same"}}
    answer = ask(server.url, "retrieve", USERS[3], options=headers, **asked)
    body = {"user_id": USERS[3], **asked}
    reply = server.ask("POST", "/v1/retrieve", body, X_Request_Id="same")
    assert msgspec.to_builtins(answer) == reply.json()
    assert [candidate.rank for candidate in answer.candidates] == [1, 2, 3]
    assert np.float32(answer.candidates[0].score) > np.float32(answer.candidates[2].score)
    assert ask(server.url, "retrieve", UNKNOWN_USER).degraded == ["unknown_user"]


@pytest.mark.parametrize(
    ("call", "request_type"),
    [
        (calls.retrieve, RetrieveRequest),
        (calls.similar, SimilarRequest),
        (calls.explain, ExplainRequest),
        (admin_calls.activate, ActivateRequest),
        (admin_calls.roll_back, RollBackRequest),
        (admin_calls.pin, PinRequest),
    ],
)
def test_every_field_of_a_request_can_be_given(
    call: Callable[..., Call[Any]], request_type: type[msgspec.Struct]
) -> None:
    values: dict[str, Any] = {
        "user_id": 1, "item_id": 2, "item_ids": [3, 4], "k": 5, "features": {"age": 3},
        "recent": [6], "exclude": [7, 8], "filter": [Condition(feature="genre")],
        "include_seen": True, "display": True, "num_clicks": 9, "reason": "x", "force": True,
        "dry_run": True, "only_after": 10,
    }  # fmt: skip
    fields = set(request_type.__struct_fields__)
    assert set(inspect.signature(call).parameters) - {"generation"} == fields
    given = {name: values[name] for name in fields}
    place = {"generation": "g-000001"} if "generation" in inspect.signature(call).parameters else {}
    body = call(**place, **given).body or b""
    assert msgspec.json.decode(body, type=request_type) == request_type(**given)


def test_a_batch_has_an_answer_or_a_problem_for_each(server: RunningServer, ask: Ask) -> None:
    requests = [RetrieveRequest(user_id=USERS[3], k=2), RetrieveRequest(user_id="no number")]
    answer = ask(server.url, "retrieve_batch", requests)
    good, bad = answer.results
    assert good.answer.candidates == ask(server.url, "retrieve", USERS[3], 2).candidates
    assert bad.problem.status == 422
    assert answer.generation == "g-000001"


def test_items_like_others_and_why_a_user_gets_one(server: RunningServer, ask: Ask) -> None:
    best = ask(server.url, "retrieve", USERS[3], 2).candidates
    similar = ask(server.url, "similar", [best[0].item_id], 3)
    assert len(similar.candidates) == 3
    assert best[0].item_id not in {candidate.item_id for candidate in similar.candidates}
    why = ask(server.url, "explain", USERS[3], best[0].item_id)
    assert (why.rank, np.float32(why.score)) == (1, np.float32(best[0].score))
    with pytest.raises(NotFound):
        ask(server.url, "similar", [123_456_789_012])


def test_generations_are_listed_pinned_and_made_live(server: RunningServer, ask: Ask) -> None:
    listed = ask(server.url, "list_generations")
    assert [known.name for known in listed.generations] == ["g-000001", "g-000002"]
    sequence = listed.live.sequence
    assert ask(server.url, "show_generation", "g-000002").manifest.name == "g-000002"
    made = ask(server.url, "activate", "g-000002", force=True, reason="a test")
    assert (made.sequence, made.reason) == (sequence + 1, "a test")
    with pytest.raises(Conflict):
        ask(server.url, "activate", "g-000001", force=True, only_after=sequence)
    assert ask(server.url, "pin", "g-000001", reason="why").pinned == {"g-000001": "why"}
    assert ask(server.url, "unpin", "g-000001").pinned == {}
    assert ask(server.url, "roll_back", "g-000002").generation == "g-000001"
    with pytest.raises(NotFound):
        ask(server.url, "show_generation", "g-999999")


def test_items_are_added_withdrawn_and_restored(server: RunningServer, ask: Ask) -> None:
    added = ask(server.url, "add_items", [NewItem(item_id=77, features={"genre": "genre 1"})])
    assert (added.added, added.known) == ([77], [])
    withdrawn = ask(server.url, "withdraw_item", 77, reason="sold & gone")
    assert [(item.item_id, item.reason) for item in withdrawn.withdrawn] == [(77, "sold & gone")]
    listed = ask(server.url, "list_items")
    assert [item.item_id for item in listed.withdrawn] == [77]
    assert ask(server.url, "restore_items", [77]).withdrawn == []


def test_a_value_of_a_path_stays_in_its_place() -> None:
    path = admin_calls.withdraw_item("a/b?c", reason="x&y").path
    assert path == "/v1/items/a%2Fb%3Fc?reason=x%26y"


def test_every_route_has_its_call() -> None:
    spoken = CALLS | {"healthz", "readyz"}
    others = {"put_item", "startupz", "metrics", "openapi", "docs", "docs_style"}
    rest = {route.name for route in ROUTES} - spoken - others
    assert all(name.startswith("v2_") for name in rest), rest


def test_what_must_not_happen_twice_is_known() -> None:
    for call in (admin_calls.activate("g-000001"), admin_calls.roll_back("g-000001")):
        assert not call.is_idempotent
    for idempotent in (admin_calls.pin("g-000001"), admin_calls.add_items([]), calls.events([])):
        assert idempotent.is_idempotent


def test_a_wrong_field_is_named_by_its_path(server: RunningServer, ask: Ask) -> None:
    with pytest.raises(InvalidRequest, match=r"422 .* at \$\.k$") as caught:
        ask(server.url, "retrieve", 1, k=0)
    assert caught.value.status == 422
    assert [fault.path for fault in caught.value.faults] == ["$.k"]
    assert caught.value.request_id


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with nothing to serve."""
    with running_server(write_project(tmp_path_factory.mktemp("empty")), wait=False) as running:
        yield running


def test_a_server_without_a_generation_is_not_ready(empty: RunningServer, ask: Ask) -> None:
    assert ask(empty.url, "health").status == "alive"
    found = ask(empty.url, "readiness")
    assert found.status == "not ready"
    assert not found.checks["loaded"].ok
    with pytest.raises(Unavailable, match="503") as caught:
        ask(empty.url, "retrieve", 1, options={"timeout_s": 0.9})
    assert caught.value.retry_after_s == 1


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_collector(write_project(tmp_path_factory.mktemp("events"))) as running:
        yield running


def test_events_are_stored_once(collector: RunningServer, ask: Ask) -> None:
    shown = Event(
        kind="impression",
        event_id=ask.__name__,
        user_id=1,
        item_id=1,
        event_time_ms=1_700_000_000_000,
    )
    sent = [shown, msgspec.structs.replace(shown, event_id=f"{ask.__name__}-2")]
    receipt = ask(collector.url, "events", sent)
    assert (receipt.accepted, receipt.duplicates, receipt.rejected) == (2, [], [])
    assert ask(collector.url, "events", sent).duplicates == [0, 1]
    (row,) = ask(collector.url, "events", [msgspec.structs.replace(shown, item_id=9)]).rejected
    assert row.code == "conflict"


def test_a_key_opens_what_its_scopes_say(tmp_path: Path) -> None:
    key = {"api_key": create_key(tmp_path / "twotower-data", "shop", ["events"]).secret}
    with running_server(write_project(tmp_path), wait=False) as guarded:
        assert ask_blocking(guarded.url, "health").status == "alive"
        with pytest.raises(NotAuthenticated):
            ask_blocking(guarded.url, "retrieve", 1)
        with pytest.raises(NotPermitted, match="retrieve"):
            ask_blocking(guarded.url, "retrieve", 1, options=key)


# -- a server that does what it is told


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]


class Scripted(NamedTuple):
    url: str
    asked: list[Asked]


Step = tuple[int, dict[str, str], bytes]
DROP: Step = (0, {}, b"")
ALIVE: Step = (200, {}, b'{"status":"alive"}')


@contextlib.contextmanager
def scripted(*steps: Step, hang: threading.Event | None = None) -> Iterator[Scripted]:
    """A real server that gives these answers in turn; the last one goes on. Status 0 hangs up."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = steps[min(len(asked), len(steps) - 1)]
            asked.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}))
            if hang is not None:
                hang.wait(10)
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody waits for it any more
                self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Scripted(f"http://127.0.0.1:{running.server_port}", asked)
        finally:
            running.shutdown()
            thread.join()


def problem(status: int, **headers: str) -> Step:
    body = {
        "type": "urn:x", "title": "Title", "status": status, "detail": "what", "request_id": "r1"
    }  # fmt: skip
    return (
        status,
        {name.replace("_", "-"): v for name, v in headers.items()},
        json.dumps(body).encode(),
    )


def test_what_may_pass_is_tried_again(ask: Ask) -> None:
    with scripted(problem(503), problem(429), DROP, ALIVE) as server:
        assert ask(server.url, "health", options={"timeout_s": 20}).status == "alive"
        assert len(server.asked) == 4
        left = [int(asked.headers["x-request-timeout-ms"]) for asked in server.asked]
        assert left == sorted(left, reverse=True)
        assert 0 < left[3] < left[0] <= 20_000


def test_a_pause_is_no_shorter_than_the_server_asks(ask: Ask) -> None:
    with scripted(problem(503, Retry_After="1"), ALIVE) as server:
        began = time.monotonic()
        assert ask(server.url, "health", options={"timeout_s": 20}).status == "alive"
        assert time.monotonic() - began >= 1


def test_a_pause_that_does_not_fit_is_not_begun(ask: Ask) -> None:
    with scripted(problem(503, Retry_After="3"), ALIVE) as server:
        with pytest.raises(Unavailable) as caught:
            ask(server.url, "health", options={"timeout_s": 2})
        assert len(server.asked) == 1
        assert caught.value.retry_after_s == 3


def test_no_more_tries_than_asked_for(ask: Ask) -> None:
    with scripted(problem(503)) as server:
        with pytest.raises(Unavailable):
            ask(server.url, "health", options={"retries": 2, "timeout_s": 20})
        assert len(server.asked) == 3


def test_what_must_not_happen_twice_is_sent_once() -> None:
    call = Call("GET", "/once", calls.Alive, is_idempotent=False)
    for step in (problem(503), DROP):
        with scripted(step, ALIVE) as server, Client(server.url) as client:
            with pytest.raises((Unavailable, ConnectionFailed)):
                client._run(call)
            assert len(server.asked) == 1


def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(ask: Ask) -> None:
    hang = threading.Event()
    with scripted(ALIVE, hang=hang) as server:
        with pytest.raises(DeadlineExpired, match=r"/healthz was not answered within 0.2 s"):
            ask(server.url, "health", options={"timeout_s": 0.2})
        hang.set()
        assert len(server.asked) == 1


def test_nobody_listens(ask: Ask) -> None:
    with pytest.raises(ConnectionFailed, match="/healthz was not answered"):
        ask(f"http://127.0.0.1:{free_port()}", "health", options={"retries": 1})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, InvalidRequest) for status in (400, 413, 415, 422)],
        *[
            (401, NotAuthenticated),
            (403, NotPermitted),
            (404, NotFound),
            (409, Conflict),
            (405, RequestRefused),
        ],
        *[(504, DeadlineExpired), (500, ServerFailed)],
    ],
)
def test_each_problem_has_its_exception(status: int, kind: type[ClientError]) -> None:
    with scripted(problem(status), ALIVE) as server:
        with pytest.raises(kind, match=f"{status} Title: what") as caught:
            ask_blocking(server.url, "health")
        assert type(caught.value) is kind
        assert caught.value.status == status
        assert len(server.asked) == 1


def test_what_is_no_answer_of_ours_is_said_so(ask: Ask) -> None:
    with (
        scripted((200, {}, b"<html>")) as server,
        pytest.raises(ServerFailed, match="expected Alive"),
    ):
        ask(server.url, "health")
    with scripted((404, {}, b"no such page")) as server, pytest.raises(NotFound, match="no such"):
        ask(server.url, "health")


def test_the_key_goes_with_every_request_and_is_shown_nowhere(ask: Ask) -> None:
    with scripted(problem(401)) as server:
        with pytest.raises(NotAuthenticated) as caught:
            ask(server.url, "health", options={"api_key": "tt-secret"})
        assert server.asked[0].headers["authorization"] == "Bearer tt-secret"
    assert "tt-secret" not in f"{caught.value!r} {Client(api_key='tt-secret')!r}"


def test_options_differ_and_connections_are_shared() -> None:
    with scripted(problem(503)) as server, Client(server.url, headers={"A": "1"}) as client:
        other = client.with_options(retries=0, headers={"B": "2"}, timeout_s=3)
        with pytest.raises(Unavailable):
            other.health()
        assert len(server.asked) == 1
        found = server.asked[0].headers
        assert (found["a"], found["b"]) == ("1", "2")
        assert int(found["x-request-timeout-ms"]) <= 3000
        with pytest.raises(Unavailable):
            client.health()
        assert len(server.asked) == 1 + 4
        assert "b" not in server.asked[1].headers


# -- one implementation


def methods(kind: type) -> dict[str, inspect.Signature]:
    return {n: inspect.signature(v) for n, v in vars(kind).items() if n in CALLS}


def test_both_clients_have_every_call_with_the_same_arguments() -> None:
    assert set(methods(Client)) == CALLS
    assert methods(Client) == methods(AsyncClient)
    assert list(inspect.signature(Client().retrieve).parameters)[:2] == ["user_id", "k"]
    assert "Return the `k` best items" in (AsyncClient.retrieve.__doc__ or "")
