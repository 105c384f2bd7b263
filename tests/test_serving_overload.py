"""Overload: noticed by how long requests wait, answered in steps, over when it is over."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_project import (
    USERS,
    Reply,
    RunningServer,
    eventually,
    publish_marked,
    reply_on,
    running_server,
    write_project,
)
from tiny_checkpoint import tiny_checkpoint
from twotower.index.interface import TunableIndex
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.messages import RetrieveRequest
from twotower.serving.overload import CHEAPER_SEARCH, SMALLER_K, Overload
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ServingSettings

LIMIT_S = 0.1


class Counts:
    def __init__(self) -> None:
        self.shed: Counter[str] = Counter()
        self.refused: Counter[tuple[str, int]] = Counter()
        self.degraded: Counter[str] = Counter()

    def request_shed(self, reason: str) -> None:
        self.shed[reason] += 1

    def request_refused(self, route: str, code: int) -> None:
        self.refused[route, code] += 1

    def overload_degraded(self, step: str) -> None:
        self.degraded[step] += 1


WORK_S = 0.001


class Loaded:
    """Requests that find as many others as a test says, by a clock that it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        self.now_s = 1000.0
        self.counts = Counts()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)
        given = {"max_wait_s": LIMIT_S, "max_in_flight": 10_000, **settings}
        self.overload = Overload(ServingSettings(**given), self.counts)  # type: ignore[arg-type]
        for _ in range(1000):
            self.overload.worked(WORK_S)

    def ask(self, wait_s: float, path: bytes = b"/v1/retrieve", method: str = "POST") -> bool:
        """Whether a request that has so long to wait is let in."""
        headers = [(b"x-request-id", b"mine")]
        answer = self.overload.refusal(method, path, headers, round(wait_s / WORK_S))
        if answer is None:
            return True
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert b"content-length: %d" % len(body) in head
        assert json.loads(body)["request_id"] == "mine"
        return False

    def ask_for(self, seconds: float, wait_s: float) -> list[bool]:
        """Requests every 10 ms."""
        admitted = []
        for _ in range(round(seconds / 0.01)):
            self.now_s += 0.01
            admitted.append(self.ask(wait_s))
        return admitted


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(monkeypatch)


def test_steps_are_taken_one_after_the_other_and_only_the_last_refuses(loaded: Loaded) -> None:
    assert all(loaded.ask_for(2.0, 0.2 * LIMIT_S))
    assert loaded.overload.step == 0
    for share, step in ((0.3, 1), (0.6, 2), (0.99, 2)):
        assert all(loaded.ask_for(2.0, share * LIMIT_S))
        assert loaded.overload.step == step
    admitted = loaded.ask_for(2.0, 1.5 * LIMIT_S)
    assert loaded.overload.step == 3
    assert not any(admitted[-100:])
    assert loaded.counts.shed == {"queue_full": admitted.count(False)}
    assert loaded.counts.refused == {("/v1/retrieve", 503): admitted.count(False)}
    assert loaded.ask(0.9 * LIMIT_S)  # who has not too long to wait is answered all the same


def test_one_burst_is_refused_by_its_length_alone(loaded: Loaded) -> None:
    loaded.ask_for(1.0, 0.0)
    assert all(loaded.ask(0.02 * number * LIMIT_S) for number in range(500))
    assert loaded.overload.step == 1


def test_a_step_is_taken_back_only_after_a_calm_second(loaded: Loaded) -> None:
    loaded.ask_for(2.0, 2 * LIMIT_S)
    assert loaded.overload.step == 3
    loaded.ask_for(3.0, 0.6 * LIMIT_S)  # below the bar of the step, above half of it
    assert loaded.overload.step == 3
    steps = []
    for _ in range(9):
        loaded.ask_for(0.9, 0.0)
        steps.append(loaded.overload.step)
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (3, 0)
    assert set(steps) == {3, 2, 1, 0}


def test_a_pause_is_calm(loaded: Loaded) -> None:
    loaded.ask_for(2.0, 2 * LIMIT_S)
    loaded.now_s += 60.0
    loaded.ask(0.0)
    assert loaded.overload.step == 0


def test_who_waits_for_something_else_is_not_in_the_way(loaded: Loaded) -> None:
    with contextlib.ExitStack() as waiting:
        for _ in range(500):  # bodies that do not come, events on their way to the collector
            waiting.enter_context(loaded.overload.elsewhere())
        loaded.ask_for(3.0, 500 * WORK_S)
        assert loaded.overload.step == 0
    loaded.ask_for(3.0, 500 * WORK_S)
    assert loaded.overload.step == 3


def test_operators_are_never_refused(loaded: Loaded) -> None:
    loaded.ask_for(3.0, 2 * LIMIT_S)
    for method, path in (
        *(("GET", b"/healthz"), ("GET", b"/readyz"), ("GET", b"/metrics")),
        *(("GET", b"/v1/generations"), ("POST", b"/v1/events"), ("GET", b"/nowhere")),
    ):
        assert loaded.ask(2 * LIMIT_S, path, method), path
    for path in (b"/v1/retrieve?x=1", b"/v1/retrieve:batch"):
        assert not loaded.ask(2 * LIMIT_S, path), path


def test_what_is_unanswered_is_bounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(monkeypatch, max_in_flight=8)
    admitted = [loaded.ask(WORK_S * number) for number in (0, 7, 8, 500)]
    assert admitted == [True, True, False, False]
    assert loaded.counts.shed == {"queue_full": 2}


# -- what a step makes cheaper


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("graph")
    store = ModelStore(folder)
    publish(tiny_checkpoint(num_items=1500), store, index=IndexSettings(engine="faiss_hnsw"))
    found = Retriever.open(folder, "g-000001")
    assert isinstance(found.index, TunableIndex)
    found.index.effort = 64
    return found


def test_half_the_effort_then_fewer_items(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(monkeypatch, overload_k=5)
    request = RetrieveRequest(user_id=USERS[0], k=9)
    overload = loaded.overload
    assert overload.lighten(retriever, request) == (retriever, request, [])
    overload.step = 1
    cheaper, same, reasons = overload.lighten(retriever, request)
    assert isinstance(cheaper.index, TunableIndex)
    assert isinstance(retriever.index, TunableIndex)
    assert (cheaper.index.effort, retriever.index.effort) == (32, 64)
    assert (same, reasons) == (request, [CHEAPER_SEARCH])
    assert overload.lighten(retriever, request)[0] is cheaper  # made once
    for step in (2, 3):
        overload.step = step
        again, smaller, reasons = overload.lighten(retriever, request)
        assert (again, smaller.k, reasons) == (cheaper, 5, [CHEAPER_SEARCH, SMALLER_K])
    few = RetrieveRequest(user_id=USERS[0], k=3)
    assert overload.lighten(retriever, few)[1:] == (few, [CHEAPER_SEARCH])
    assert loaded.counts.degraded == {"cheaper_search": 5, "smaller_k": 2}
    assert cheaper.retrieve(USERS[0], 5).generation == "g-000001"


def test_a_search_that_cannot_be_cheaper_is_not_called_so(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(monkeypatch)
    loaded.overload.step = 1
    request = RetrieveRequest(user_id=USERS[0])
    lowest = retriever.with_less_effort(0.25)
    assert loaded.overload.lighten(lowest, request) == (lowest, request, [])


def test_nothing_is_made_cheaper_where_the_settings_forbid_it(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(monkeypatch, overload_degrades=False)
    request = RetrieveRequest(user_id=USERS[0], k=900)
    loaded.ask_for(2.0, 2 * LIMIT_S)
    assert loaded.overload.step == 3
    assert loaded.overload.lighten(retriever, request) == (retriever, request, [])
    assert not loaded.ask(2 * LIMIT_S)


# -- on a server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    store = ModelStore(tmp_path / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    config = write_project(tmp_path, more="max_in_flight = 10\noverload_k = 3")
    with running_server(config) as running:
        yield running


def request_bytes(path: str = "/v1/retrieve", method: str = "POST", **headers: str) -> bytes:
    body = json.dumps({"user_id": USERS[0], "k": 10}).encode() if method == "POST" else b""
    given = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{name.replace('_', '-')}: {text}" for name, text in {**given, **headers}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def test_a_burst_is_answered_refused_or_too_late_and_counted(server: RunningServer) -> None:
    (worker,) = server.worker_pids()

    def burst(number: int, **headers: str) -> list[Reply]:
        """The answers to so many requests that are read in one turn of the loop."""
        with contextlib.ExitStack() as opened:
            connections = [
                opened.enter_context(socket.create_connection(server.address, timeout=30))
                for _ in range(number)
            ]
            for connection in connections:
                connection.sendall(request_bytes("/healthz", "GET"))
            for connection in connections:
                assert reply_on(connection).status == 200  # all of them are accepted
            os.kill(worker, signal.SIGSTOP)
            for connection in connections[:-1]:
                connection.sendall(request_bytes(**headers))
            connections[-1].sendall(request_bytes("/healthz", "GET"))
            os.kill(worker, signal.SIGCONT)
            return list(map(reply_on, connections))

    *found, health = burst(41)
    statuses = Counter(response.status for response in found)
    assert statuses.keys() == {200, 503}
    assert health.status == 200
    for response in found:
        if response.status == 503:
            assert response.headers["retry-after"] == "1"
            assert response.headers["content-type"] == "application/problem+json"
    shed = server.metric("twotower_shed_requests_total", reason="queue_full")
    assert shed == statuses[503] >= 20
    searched = server.metric("twotower_retrieve_items_returned_count")
    assert searched == statuses[200]
    found = burst(9, X_Request_Timeout_Ms="0")
    assert {response.status for response in found[:-1]} == {504}
    assert server.metric("twotower_shed_requests_total", reason="deadline") == 8
    assert server.metric("twotower_retrieve_items_returned_count") == searched
    assert server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}).json()["degraded"] is None


class Flood:
    """Connections that ask again as soon as they are answered, in one thread."""

    def __init__(self, server: RunningServer, number: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.num_degraded = 0
        self.faults: list[str] = []
        self._connections = []
        for _ in range(number):
            connection = socket.create_connection(server.address, timeout=30)
            connection.setblocking(False)
            self._connections.append(connection)

    def run(self, seconds: float) -> None:
        """Ask for so long, then take the last answers."""
        received = dict.fromkeys(self._connections, b"")
        selector = selectors.DefaultSelector()
        request, end_s = request_bytes(), time.monotonic() + seconds
        for opened in self._connections:
            selector.register(opened, selectors.EVENT_READ)
            opened.send(request)
        waiting = set(self._connections)
        while waiting and time.monotonic() < end_s + 20:
            for key, _ in selector.select(1.0):
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                received[connection] += connection.recv(65536)
                if not self._is_whole(received[connection]):
                    continue
                received[connection] = b""
                if time.monotonic() < end_s:
                    connection.send(request)
                else:
                    waiting.discard(connection)
        self.faults += ["a request got no answer"] * len(waiting)
        for opened in self._connections:
            opened.close()
        selector.close()

    def _is_whole(self, received: bytes) -> bool:
        head, separator, body = received.partition(b"\r\n\r\n")
        length = next(
            (int(line.partition(b":")[2]) for line in head.split(b"\r\n")[1:]
             if line.lower().startswith(b"content-length")), 0,
        )  # fmt: skip
        if not separator or len(body) < length:
            return False
        status = int(head.split(b" ")[1])
        self.statuses[status] += 1
        self.num_degraded += b'"overload:smaller_k"' in body
        if status == 503 and b"retry-after: 1" not in head:
            self.faults.append("503 without Retry-After")
        return True


@pytest.mark.slow
def test_a_flood_is_answered_in_part_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    config = write_project(tmp_path, max_wait_s=0.01, more="overload_k = 3")
    with running_server(config) as server:
        flood = Flood(server, 120)
        flood.run(4.0)
        assert flood.faults == []
        assert flood.statuses.keys() == {200, 503}
        assert flood.num_degraded > 0
        shed = server.metric("twotower_shed_requests_total", reason="queue_full")
        assert shed == flood.statuses[503]
        steps = server.metric("twotower_overload_degraded_total", step="smaller_k")
        assert steps == flood.num_degraded

        def is_whole() -> bool:
            reply = server.ask("POST", "/v1/retrieve", {"user_id": USERS[0], "k": 10})
            return reply.status == 200 and reply.json()["degraded"] is None

        eventually(is_whole)
