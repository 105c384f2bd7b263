"""The life of a server: swaps under load, bad generations, deaths, drains."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving_project import (
    USERS,
    Reply,
    RunningServer,
    ask,
    damage,
    eventually,
    publish_marked,
    reference,
    running_server,
    write_project,
)
from twotower.data.ids import Id
from twotower.publishing.store import ModelStore

K = 10
References = dict[str, dict[Id, list[tuple[Id, float]]]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, References]:
    """Three generations whose item IDs and scores say which one made them; the first is live."""
    data_path = tmp_path_factory.mktemp("published") / "twotower-data"
    store = ModelStore(data_path)
    names = [publish_marked(store, number) for number in (1, 2, 3)]
    store.activate(names[0], force=True)
    return data_path, {name: reference(data_path, name, K) for name in names}


@pytest.fixture
def store(published: tuple[Path, References], tmp_path: Path) -> ModelStore:
    """A store of its own with those generations; files are links to the same bytes."""
    folder = tmp_path / "twotower-data" / "generations"
    for path in sorted((published[0] / "generations").rglob("*")):
        copy = folder / path.relative_to(published[0] / "generations")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            copy.write_bytes(path.read_bytes())
    return ModelStore(tmp_path / "twotower-data")


class Client(threading.Thread):
    """Asks over one connection as a keep-alive client does, until told to stop."""

    def __init__(self, server: RunningServer, references: References, seed: int) -> None:
        super().__init__(daemon=True)
        self.failed: list[str] = []
        self.answers: list[tuple[str, int]] = []
        """Generation and sequence, in order, of connections one after the other."""
        self.num_backwards = 0
        self.stopping = threading.Event()
        self.stops_when_asked_to_close = False
        self._server = server
        self._references = references
        self._seed = seed
        self._last = 0

    def run(self) -> None:
        connection = self._server.connect()
        number = self._seed
        try:
            while not self.stopping.is_set():
                user = USERS[number % len(USERS)]
                reply = ask(connection, "POST", "/v1/retrieve", {"user_id": user, "k": K})
                self._check(user, reply)
                if reply.headers.get("connection") == "close":
                    if self.stops_when_asked_to_close:
                        break
                    self._last = 0  # another connection may reach another worker
                number += 1
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
        finally:
            connection.close()

    def _check(self, user: Id, reply: Reply) -> None:
        if reply.status != 200:
            self.failed.append(f"{reply.status} {reply.body[:200]!r}")
            return
        answer = json.loads(reply.body)
        generation, sequence = answer["generation"], answer["sequence"]
        found = [(c["item_id"], float(np.float32(c["score"]))) for c in answer["candidates"]]
        if found != self._references[generation][user]:
            self.failed.append(f"mixed: {generation} answered {found[:2]}")
        if reply.headers["x-generation"] != generation:
            self.failed.append("the header names another generation")
        self.num_backwards += sequence < self._last
        self._last = sequence
        self.answers.append((generation, sequence))


@contextlib.contextmanager
def load(server: RunningServer, references: References, num_clients: int) -> Iterator[list[Client]]:
    """Clients that ask all the time, each once at least before the block is entered."""
    clients = [Client(server, references, seed) for seed in range(num_clients)]
    for client in clients:
        client.start()
    try:
        eventually(lambda: all(client.answers or client.failed for client in clients))
        yield clients
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(30)


def check_load(clients: list[Client], store: ModelStore) -> None:
    """Nothing failed, nothing mixed, nothing backwards; sequence and generation belong together."""
    assert [failure for client in clients for failure in client.failed][:3] == []
    assert sum(client.num_backwards for client in clients) == 0
    made_live = {(record.generation, record.sequence) for record in store.activations()}
    assert {answer for client in clients for answer in client.answers} <= made_live


def swap_under_load(
    server: RunningServer, store: ModelStore, references: References, num_swaps: int
) -> list[Client]:
    """Activate and roll back while clients ask; every third swap does not wait for the last."""
    names = list(references)
    with load(server, references, 4) as clients:
        for number in range(1, num_swaps + 1):
            if number % 4 == 0:
                activation = store.roll_back()
            else:
                activation = store.activate(names[number % 3], force=True)
            if number % 3:
                server.wait_ready(activation.sequence)
        server.wait_ready(activation.sequence)
        seen = [len(client.answers) for client in clients]
        eventually(lambda: all(len(c.answers) > n + 5 for c, n in zip(clients, seen, strict=True)))
    return clients


def test_swaps_and_roll_backs_under_load_fail_mix_and_reverse_nothing(
    store: ModelStore, published: tuple[Path, References], tmp_path: Path
) -> None:
    references = published[1]
    with running_server(write_project(tmp_path), workers=2) as server:
        clients = swap_under_load(server, store, references, 12)
        check_load(clients, store)
        served = {answer for client in clients for answer in client.answers}
        assert {generation for generation, _ in served} == set(references)
        assert len({sequence for _, sequence in served}) >= 9
        assert server.metric("twotower_publish_total", result="rolled_back") >= 2
        num_answers = sum(len(client.answers) for client in clients)
        counted = server.metric("twotower_http_requests_total", route="/v1/retrieve", code="200")
        assert counted == num_answers


def test_the_checker_sees_a_mixed_answer(published: tuple[Path, References]) -> None:
    """An answer of one generation under another's name, and half an answer of each."""
    references = published[1]
    client = Client(RunningServer(None, "http://127.0.0.1:1"), references, 0)  # type: ignore[arg-type]
    user = USERS[3]
    first, second = (references[name][user] for name in ("g-000001", "g-000002"))
    scores_of_second = [(a, s) for (a, _), (_, s) in zip(first, second, strict=True)]
    for found in (second, first[:5] + second[5:], scores_of_second):
        candidates = [{"item_id": item_id, "score": score} for item_id, score in found]
        answer = {"generation": "g-000001", "sequence": 1, "candidates": candidates}
        client._check(user, Reply(200, {"x-generation": "g-000001"}, json.dumps(answer).encode()))
    assert len(client.failed) == 3


@contextlib.contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """Processes that do nothing inside the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_damaged_generation_is_never_served(
    store: ModelStore, published: tuple[Path, References], tmp_path: Path
) -> None:
    with running_server(write_project(tmp_path), workers=2) as server:
        with load(server, published[1], 2) as clients:
            server.wait_ready(store.activate("g-000002", force=True).sequence)
            with frozen(server.worker_pids()):  # damaged after it went live, before it is loaded
                store.activate("g-000003", force=True)
                damage(tmp_path / "twotower-data", "g-000003")

            def reported() -> bool:
                check = server.readiness()["checks"]["follows_current"]
                return not check["ok"] and "g-000003" in check["detail"]

            eventually(reported)
            assert server.ask("GET", "/readyz").status == 200  # the old one is whole
            assert server.metric("twotower_publish_total", result="corrupt") == 1
            server.wait_ready(store.roll_back().sequence)
            assert server.readiness()["checks"]["follows_current"]["ok"]
        check_load(clients, store)
        served = {generation for client in clients for generation, _ in client.answers}
        assert served == {"g-000001", "g-000002"}


def test_a_generation_that_is_live_again_has_the_new_sequence(
    store: ModelStore, tmp_path: Path
) -> None:
    with running_server(write_project(tmp_path)) as server:
        with frozen(server.worker_pids()):  # the worker sees no more than the last of both
            store.activate("g-000002", force=True)
            back = store.roll_back()
        server.wait_ready(back.sequence)
        answer = server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}).json()
        assert (answer["generation"], answer["sequence"]) == ("g-000001", 3)


def test_it_may_start_before_anything_is_published(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "twotower-data")
    with running_server(write_project(tmp_path), wait=False) as server:
        eventually(lambda: server.readiness()["checks"]["started"]["ok"])
        assert server.ask("GET", "/healthz").status == 200
        reply = server.ask("GET", "/readyz")
        assert reply.status == 503
        assert not reply.json()["checks"]["loaded"]["ok"]
        reply = server.ask("POST", "/v1/retrieve", {"user_id": 1})
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert reply.headers["content-type"] == "application/problem+json"
        store.activate(publish_marked(store, 1), force=True)
        server.wait_ready(1)
        assert server.ask("POST", "/v1/retrieve", {"user_id": 1}).status == 200


def test_sigterm_under_load_fails_nothing_and_exits_with_0(
    store: ModelStore, published: tuple[Path, References], tmp_path: Path
) -> None:
    config = write_project(tmp_path, drain_delay_s=0.5)
    with running_server(config, workers=2) as server, contextlib.ExitStack() as opened:
        sleeping = opened.enter_context(socket.create_connection(server.address))
        head = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sleeping.sendall(head + b'Content-Length: 15\r\n\r\n{"user_id')
        with load(server, published[1], 4) as clients:
            for client in clients:
                client.stops_when_asked_to_close = True
            server.signal(signal.SIGTERM)
            eventually(lambda: server.ask("GET", "/readyz").status == 503)
            assert not server.readiness()["checks"]["not_draining"]["ok"]
            late = server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]})
            assert (late.status, late.headers["connection"]) == (200, "close")
            sleeping.sendall(b'": 1} ')
            assert sleeping.recv(65536).startswith(b"HTTP/1.1 200")
            for client in clients:
                client.join(30)
                assert not client.stopping.is_set()
        assert server.process.wait(30) == 0
        check_load(clients, store)


@pytest.mark.usefixtures("store")
def test_ctrl_c_does_not_wait_and_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    config = write_project(tmp_path, drain_delay_s=3600)
    with running_server(config) as server:
        server.signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    with (
        running_server(config, workers=2) as server,
        socket.create_connection(server.address) as waiting,
    ):
        waiting.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Le")
        pids = server.worker_pids()
        server.signal(signal.SIGTERM)
        eventually(lambda: server.ask("GET", "/readyz").status == 503)
        assert server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}).status == 200
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.usefixtures("store")
def test_a_worker_that_dies_is_replaced_and_counters_do_not_fall(tmp_path: Path) -> None:
    with running_server(write_project(tmp_path), workers=2) as server:
        for _ in range(20):
            server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]})
        pids = server.worker_pids()
        os.kill(min(pids), signal.SIGKILL)

        def replaced() -> bool:
            workers = server.readiness()["workers"]
            now = {worker["pid"] for worker in workers if worker["state"] == "serving"}
            return len(now) == 2 and min(pids) not in now

        eventually(replaced)
        name = "twotower_http_requests_total"
        assert server.metric(name, route="/v1/retrieve", code="200") == 20
        assert server.stop() == 0


@pytest.mark.usefixtures("store")
def test_workers_end_with_their_server(tmp_path: Path) -> None:
    with running_server(write_project(tmp_path), workers=2) as server:
        pids = server.worker_pids()
        assert len(pids) == 2
        server.signal(signal.SIGKILL)
        server.process.wait(30)
        eventually(lambda: not any(map(is_running, pids)))
