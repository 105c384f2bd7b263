"""A request that comes whole is answered without ASGI, and nobody can tell."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving_project import (
    USERS,
    RunningServer,
    publish_marked,
    reply_on,
    running_server,
    write_project,
)
from twotower.publishing.store import ModelStore
from twotower.serving.direct_protocol import direct_protocol
from twotower.serving.problems import Header
from twotower.serving.protocol import ConnectionLimits, GuardedProtocol

KEEP_S = 30
HEAD_S = 10.0
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def request_bytes(
    body: bytes, head: str = "POST /v1/retrieve HTTP/1.1", **headers: str | None
) -> bytes:
    given: dict[str, str | None] = {
        "Host": "x",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Request-Id": "mine",
    }
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([head, *lines, "", ""]).encode() + body


# -- on a server: the same answer as the application's


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("direct")
    store = ModelStore(folder / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    with running_server(write_project(folder, more="body_limit_bytes = 1000")) as running:
        yield running


GOOD = json.dumps({"user_id": USERS[0], "k": 5}).encode()
ASKED = {
    "an answer": (request_bytes(GOOD, Traceparent=TRACE), 200),
    "the last one": (request_bytes(GOOD, Connection="close"), 200),
    "an older protocol": (request_bytes(GOOD, "POST /v1/retrieve HTTP/1.0"), 200),
    "an unknown user": (request_bytes(b'{"user_id": 4711, "display": true}'), 200),
    "no JSON": (request_bytes(b"{user"), 400),
    "a strange timeout": (request_bytes(GOOD, X_Request_Timeout_Ms="soon"), 400),
    "too late": (request_bytes(GOOD, X_Request_Timeout_Ms="0"), 504),
    "a wrong field": (request_bytes(b'{"user_id": 1, "k": 0}'), 422),
    "undeclared": (request_bytes(GOOD, Content_Type=None), 415),
    "compressed": (request_bytes(GOOD, Content_Encoding="gzip"), 415),
    "in chunks": (
        request_bytes(b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD), Content_Length=None)
        .replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        200,
    ),
    "too many chunks": (
        request_bytes(b"3e9\r\n%s\r\n0\r\n\r\n" % (b" " * 1001), Content_Length=None)
        .replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        413,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "status"), ASKED.values(), ids=ASKED.keys())
def test_whole_or_in_pieces_the_answer_is_the_same(
    server: RunningServer, asked: bytes, status: int
) -> None:
    answers = []
    for first in (len(asked), len(asked) - 2):
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(asked[:first])
            server.ask("GET", "/healthz")  # what was sent is read by now
            connection.sendall(asked[first:])
            reply = reply_on(connection)
            stays = {n: v for n, v in reply.headers.items() if n not in ("date", "server-timing")}
            answers.append((reply.status, list(stays.items()), reply.body))
    assert answers[0] == answers[1]
    assert answers[0][0] == status
    assert ("x-request-id", "mine") in answers[0][1]


def test_both_are_counted(server: RunningServer) -> None:
    def counted() -> float:
        return server.metric("twotower_http_requests_total", route="/v1/retrieve", code="200")

    before, asked = counted(), request_bytes(GOOD)
    for first in (len(asked), len(asked) - 2):
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(asked[:first])
            server.ask("GET", "/healthz")
            connection.sendall(asked[first:])
            assert reply_on(connection).status == 200
    assert counted() == before + 2


# -- one connection, and what it writes


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 6)}.get(name, default)

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Route:
    """Answers with the body that it was asked with."""

    def __init__(self) -> None:
        self.num_gone = 0

    def takes(self, method: bytes, url: bytes) -> bool:
        return (method, url) == (b"POST", b"/v1/retrieve")

    def answer(
        self, headers: Sequence[Header], body: bytes, read_s: float, *, is_gone: bool
    ) -> tuple[int, list[Header], bytes]:
        self.num_gone += is_gone
        content = b"<direct %s>" % body
        return 200, [(b"content-length", b"%d" % len(content))], content


class Gate:
    """Lets everybody in, and remembers how many it saw waiting."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def refusal(
        self, method: str, path: bytes, headers: Iterable[Header], num_unanswered: int
    ) -> bytes | None:
        self.seen.append(num_unanswered)
        return None


async def application(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    content = b"<application %s>" % body
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Connections:
    """Connections of one server."""

    def __init__(self) -> None:
        self.route, self.gate = Route(), Gate()
        limits = ConnectionLimits(10_000, HEAD_S, 100)
        kind = direct_protocol(limits, self.gate, self.route, [0])
        self._config = uvicorn.Config(
            application, http=kind, ws="none", lifespan="off", timeout_keep_alive=KEEP_S
        )
        self._config.load()
        self._kind, self._state = kind, ServerState()

    def open(self, loop: Any = None) -> tuple[GuardedProtocol, Transport]:
        used = loop or asyncio.get_running_loop()
        protocol = self._kind(self._config, self._state, {}, _loop=used)
        transport = Transport()
        protocol.connection_made(transport)
        return protocol, transport


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


Talk = Callable[[Connections, GuardedProtocol, Transport], None]


def talk(act: Talk) -> tuple[bytes, Connections]:
    """What is written to a connection on which something happens, heads left out."""

    async def run() -> tuple[bytes, Connections]:
        connections = Connections()
        protocol, transport = connections.open()
        act(connections, protocol, transport)
        await turns()
        written = transport.written
        protocol.resume_writing()
        await turns()
        parts = written.split(b"\r\n\r\n")[1:]
        return b"".join(part.partition(b"HTTP/1.1")[0] for part in parts), connections

    return asyncio.run(run())


def test_a_whole_request_is_answered_directly() -> None:
    written, _ = talk(lambda _, protocol, __: protocol.data_received(request_bytes(b"one")))
    assert written == b"<direct one>"


@pytest.mark.parametrize("left", [1, 3, 9])
def test_the_application_waits_for_a_body(left: int) -> None:
    def act(_: Connections, protocol: GuardedProtocol, __: Transport) -> None:
        asked = request_bytes(b"a whole body")
        protocol.data_received(asked[:-left])
        protocol.data_received(asked[-left:])
        assert len(protocol.tasks) == 1

    assert talk(act)[0] == b"<application a whole body>"


def test_what_is_behind_another_request_comes_after_it() -> None:
    def act(_: Connections, protocol: GuardedProtocol, __: Transport) -> None:
        protocol.data_received(request_bytes(b"one") + request_bytes(b"two")[:-1])
        protocol.data_received(b"o" + request_bytes(b"three"))

    assert talk(act)[0] == b"<direct one><application two><application three>"


def test_one_after_the_other_is_direct_again() -> None:
    async def run() -> bytes:
        protocol, transport = Connections().open()
        for body in (b"one", b"two"):
            protocol.data_received(request_bytes(body))
            await turns()
        return transport.written

    written = asyncio.run(run())
    assert b"<direct one>" in written
    assert written.endswith(b"<direct two>")


@pytest.mark.parametrize(
    "headers", [{"Expect": "100-continue"}, {"Connection": "upgrade", "Upgrade": "h2c"}]
)
def test_what_needs_more_than_an_answer_is_the_applications(headers: dict[str, str]) -> None:
    asked = request_bytes(b"one", **headers)
    written = talk(lambda _, protocol, __: protocol.data_received(asked))[0]
    assert b"direct" not in written


def test_a_client_that_does_not_read_is_waited_for() -> None:
    def act(_: Connections, protocol: GuardedProtocol, __: Transport) -> None:
        protocol.pause_writing()
        protocol.data_received(request_bytes(b"one"))

    assert talk(act)[0] == b""  # the application waits; nothing piles up


def test_nobody_works_for_a_client_that_is_gone() -> None:
    def act(_: Connections, protocol: GuardedProtocol, transport: Transport) -> None:
        protocol.data_received(request_bytes(b"one"))
        transport.is_closed = True
        protocol.connection_lost(None)

    written, connections = talk(act)
    assert (written, connections.route.num_gone) == (b"", 1)


def test_those_that_wait_for_their_turn_are_counted() -> None:
    async def run() -> list[int]:
        connections = Connections()
        opened = [connections.open()[0] for _ in range(3)]
        for protocol in opened:
            protocol.data_received(request_bytes(b"one"))
        await turns()
        opened[0].data_received(request_bytes(b"one"))
        await turns()
        return connections.gate.seen

    assert asyncio.run(run()) == [0, 1, 2, 0]


# -- how long a connection may idle


class Clock:
    """A loop whose time a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.timers: list[list[Any]] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Any:
        timer: list[Any] = [self.now_s + seconds, call]
        self.timers.append(timer)

        class Handle:
            def cancel(self) -> None:
                timer[1] = None

        return Handle()

    def call_soon(self, call: Callable[..., None], *values: object) -> None:
        call(*values)

    def pass_by(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while due := [t for t in self.timers if t[1] is not None and t[0] <= end_s]:
            timer = min(due, key=lambda found: found[0])
            self.now_s = max(self.now_s, timer[0])
            call, timer[1] = timer[1], None
            call()
        self.now_s = end_s


def test_a_request_sets_no_timer_and_moves_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    protocol, transport = Connections().open(clock)
    for _ in range(100):
        protocol.data_received(request_bytes(b"one"))
        clock.pass_by(1.0)
    assert len(clock.timers) < 15  # the first, and one each time that one ran out
    clock.pass_by(KEEP_S - 1.5)
    assert not transport.is_closed
    clock.pass_by(1.0)
    assert transport.is_closed


def test_half_a_head_after_an_answer_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    protocol, transport = Connections().open(clock)
    protocol.data_received(request_bytes(b"one"))
    clock.pass_by(HEAD_S + 1.0)  # the timer that is set is that of the rest
    protocol.data_received(b"POST /v1/re")
    clock.pass_by(HEAD_S - 0.5)
    protocol.data_received(b"tri")  # no more time for that
    assert not transport.is_closed
    clock.pass_by(1.0)
    assert (transport.is_closed, b"HTTP/1.1 408" in transport.written) == (True, True)


def test_a_rest_that_is_over_ends_the_connection_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    protocol, transport = Connections().open(clock)
    clock.pass_by(HEAD_S - 0.5)
    assert not transport.is_closed
    clock.pass_by(1.0)
    assert (transport.is_closed, transport.written) == (True, b"")
    protocol.connection_lost(None)
    assert all(call is None for _, call in clock.timers)
