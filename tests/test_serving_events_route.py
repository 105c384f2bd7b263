"""Events behind the server's address: the collector's answer, or the word that it is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector_project import as_lines, free_port, kill, start_collector
from serving_project import RunningServer, ask, eventually, running_server, write_project
from twotower.data.event_log import open_event_log
from twotower.data.event_log.contract import make_events
from twotower.serving.collector_link import CollectorLink
from twotower.serving.exchange import Call, Reply
from twotower.serving.problems import RefusedRequest
from twotower.serving.settings import CollectorSettings

PORT = free_port()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = f"[collector]\nport = {PORT}\nbody_limit_bytes = 200_000\nwaiting_limit_bytes = 300_000"
    return write_project(tmp_path_factory.mktemp("events"), more=more)


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[RunningServer]:
    """It serves nothing, because nothing is published: events do not need that."""
    with running_server(config, wait=False) as running:
        yield running


def stored(config: Path) -> list[str]:
    with open_event_log(config.parent / "twotower-data") as log:
        return [event.event_id for event in log.read_events(0, 100_000)]


def test_events_go_through_the_collector_and_outlive_it(
    config: Path, server: RunningServer
) -> None:
    eventually(lambda: server.ask("GET", "/startupz").status == 200)
    events = make_events(0, 40)
    reply = server.ask("POST", "/v1/events", msgspec.json.encode(events[:1]))
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "twotower collect" in reply.json()["detail"]
    collector = start_collector(config, PORT)
    try:
        with contextlib.closing(server.connect()) as opened:
            reply = ask(opened, "POST", "/v1/events", msgspec.json.encode(events[:20]))
            assert (reply.status, reply.json()["accepted"]) == (202, 20)
            lines, kind = (
                as_lines(events[19:30]) + b"nonsense\n",
                {"Content-Type": "application/x-ndjson"},
            )
            reply = ask(opened, "POST", "/v1/events", lines, kind)
            assert (reply.status, reply.json()["duplicates"]) == (202, [0])
            assert reply.json()["rejected"][0]["row"] == 11
            named = {**kind, "Idempotency-Key": "k"}
            replies = [ask(opened, "POST", "/v1/events", lines, named) for _ in range(2)]
            assert replies[0].body == replies[1].body
            assert replies[1].headers["idempotent-replayed"] == "true"
            bad = ask(opened, "POST", "/v1/events", b"[1,", {"X-Request-Id": "mine"})
            assert (bad.status, bad.json()["request_id"]) == (400, "mine")
            assert bad.headers["content-type"] == "application/problem+json"
            assert (
                ask(opened, "POST", "/v1/events", b"[]", {"Content-Type": "text/csv"}).status == 415
            )
            assert ask(opened, "GET", "/v1/events").status == 405
        too_large = server.ask("POST", "/v1/events", b"[" + b" " * 200_000 + b"]")
        assert too_large.status == 413
        kill(collector)  # the connections that the server kept are dead now
        collector = start_collector(config, PORT)
        reply = server.ask("POST", "/v1/events", msgspec.json.encode(events[30:]))
        assert (reply.status, reply.json()["accepted"]) == (202, 10)
        assert stored(config) == [event.event_id for event in events]
    finally:
        kill(collector)
    assert server.ask("POST", "/v1/events", msgspec.json.encode(events)).status == 503
    assert server.ask("GET", "/healthz").status == 200


def test_startup_is_over_once_every_worker_has_looked(server: RunningServer) -> None:
    eventually(lambda: server.ask("GET", "/startupz").status == 200)
    started = server.ask("GET", "/startupz").json()
    assert started == {"status": "started", "workers": 1, "started": 1}
    assert server.ask("GET", "/readyz").status == 503  # there is nothing to serve


def call(seconds: float, body: bytes = b"[]") -> Call:
    headers = [(b"authorization", b"Bearer secret"), (b"cookie", b"no"), (b"x-api-key", b"k")]
    return Call(body, "id-1", {}, time.perf_counter() + seconds, {"headers": headers})


class Peer(threading.Thread):
    """Answers what it is told to, one piece a request, and remembers what it was sent."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self.received: list[bytes] = []
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        with self._listener:
            for answer in self._answers:
                opened, _ = self._listener.accept()
                with opened:
                    self.received.append(opened.recv(65536))
                    opened.sendall(answer)
                    if not answer:
                        opened.recv(1)  # until the other side gives up


async def sent(link: CollectorLink, seconds: float) -> Reply:
    try:
        return await link.events(call(seconds))
    finally:
        link.close()
        await asyncio.sleep(0)


def refused(*answers: bytes, seconds: float = 10.0) -> tuple[RefusedRequest, Peer]:
    peer = Peer(*answers)
    peer.start()
    link = CollectorLink(CollectorSettings(port=peer.port))
    with pytest.raises(RefusedRequest) as found:
        asyncio.run(sent(link, seconds))
    peer.join()
    return found.value, peer


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\n",
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\ncontent-type: a/b\r\n\r\nhalf",
        b"HTTP/1.1 202 Accepted\r\ncontent-type: a/b\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\ncontent-length: x\r\ncontent-type: a/b\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_half_an_answer_is_none(answer: bytes) -> None:
    assert refused(answer)[0].status == 503


def test_a_collector_that_hangs_is_given_up_in_time() -> None:
    found, _ = refused(b"", seconds=0.2)
    assert (found.status, "may be stored" in str(found)) == (504, True)


def test_keys_are_passed_on_and_nothing_else() -> None:
    body = json.dumps({"accepted": 0}).encode()
    head = b"HTTP/1.1 202 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    peer = Peer(head % len(body) + body)
    peer.start()
    link = CollectorLink(CollectorSettings(host="0.0.0.0", port=peer.port))
    reply = asyncio.run(sent(link, 10.0))
    assert (reply.status, reply.body, reply.content_type) == (202, body, b"application/json")
    lines = peer.received[0].lower().split(b"\r\n")
    assert {b"authorization: bearer secret", b"x-api-key: k", b"x-request-id: id-1"} <= set(lines)
    assert not any(line.startswith(b"cookie") for line in lines)


def test_without_a_fixed_port_there_is_nobody_to_ask() -> None:
    link = CollectorLink(CollectorSettings(port=0))
    with pytest.raises(RefusedRequest) as found:
        asyncio.run(sent(link, 1.0))
    assert found.value.status == 503
