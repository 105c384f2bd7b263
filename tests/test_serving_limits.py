"""What a client may send and how slowly: every abuse ends in a 4xx or a closed connection."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_project import (
    USERS,
    RunningServer,
    eventually,
    publish_marked,
    reply_on,
    running_server,
    write_project,
)
from twotower.publishing.store import ModelStore
from twotower.serving.protocol import ConnectionLimits, protocol_with

CONNECTIONS = 30
SETTINGS = f"""
header_timeout_s = 0.3
body_timeout_s = 0.3
max_connections = {CONNECTIONS}
"""
HEAD = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"user_id": USERS[0], "k": 1}).encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("limits")
    store = ModelStore(folder / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    with running_server(write_project(folder, more=SETTINGS)) as running:
        yield running


def until_closed(connection: socket.socket) -> bytes:
    """All that the server says until it closes; a reset is a close too."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def said(server: RunningServer, *parts: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with socket.create_connection(server.address, timeout=20) as connection:
        for part in parts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(part)
        return until_closed(connection)


def status(received: bytes) -> int:
    return int(received.split(b" ")[1]) if received else 0


LONG_HEADS = {
    "one long header": HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n",
    "many headers": HEAD + b"X: y\r\n" * 4000 + b"\r\n",
    "an endless header": HEAD + b"X: " + b"x" * 40_000,
    "an endless name": HEAD + b"x" * 40_000,
    "a long path": b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "an endless path": b"GET /" + b"x" * 40_000,
}


@pytest.mark.parametrize("sent", LONG_HEADS.values(), ids=LONG_HEADS.keys())
def test_a_long_head_is_431(server: RunningServer, sent: bytes) -> None:
    received = said(server, sent)
    assert status(received) == 431
    assert b"application/problem+json" in received
    assert b"expected at most 16384 bytes of headers" in received


def test_a_head_below_the_limit_is_read(server: RunningServer) -> None:
    sent = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close\r\nX: " + b"x" * 16_000)
    assert status(said(server, sent)) == 200


SLOW = {
    "nothing": (b"", 0),
    "half a line": (b"POST /v1/ret", 408),
    "half a head": (HEAD, 408),
    "empty lines": (b"\r\n", 0),
    "half a body": (HEAD + b"Content-Length: 20\r\n\r\n{", 408),
    "half a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", 408),
}


@pytest.mark.parametrize(("sent", "expected"), SLOW.values(), ids=SLOW.keys())
def test_who_does_not_go_on_is_cut_off(server: RunningServer, sent: bytes, expected: int) -> None:
    assert status(said(server, sent)) == expected


def test_so_is_who_stops_after_an_answer(server: RunningServer) -> None:
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(WHOLE)
        assert reply_on(connection).status == 200
        connection.sendall(HEAD[:30])
        assert status(until_closed(connection)) == 408
    refused = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(refused)  # answered before its body came, which never does
        assert reply_on(connection).status == 415
        connection.sendall(b" ")
        assert until_closed(connection) == b""


def test_who_trickles_is_cut_off_too(server: RunningServer) -> None:
    with socket.create_connection(server.address, timeout=0.05) as connection:
        received = b""

        def is_closed() -> bool:
            nonlocal received
            try:
                connection.sendall(b"X")
                received += connection.recv(65536)
            except TimeoutError:
                return False
            except OSError:
                return True
            return bool(received)

        connection.sendall(HEAD)
        eventually(is_closed)
    assert status(received) in (0, 408)


def test_requests_in_one_packet_are_answered_in_order(server: RunningServer) -> None:
    last = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")
    mine = [WHOLE.replace(b"Host: x", b"Host: x\r\nX-Request-Id: r%d" % n) for n in range(5)]
    received = said(server, b"".join(mine) + last)
    assert received.count(b"HTTP/1.1 200 OK") == 6
    places = [received.index(b"x-request-id: r%d" % n) for n in range(5)]
    assert places == sorted(places)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
CONTRADICTIONS = {
    "length and chunks": CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "chunks and length": HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{} {}",
    "a list of lengths": HEAD + b"Content-Length: 4, 5\r\n\r\n{} {}",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +4\r\n\r\n{}  ",
    "a length in hexadecimal": HEAD + b"Content-Length: 0x4\r\n\r\n{}  ",
    "a length of 40 digits": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "a chunk that is none": CHUNKED + b"\r\nzz\r\n",
    "a chunk without an end": CHUNKED + b"\r\n2\r\n{}x\r\n0\r\n\r\n",
    "a chunk of 2^64 bytes": CHUNKED + b"\r\n10000000000000000\r\n",
    "a negative chunk": CHUNKED + b"\r\n-1\r\n",
    "chunked twice around": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked, misspelt": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 4\r\n\r\n{}  ",
    "a folded header": HEAD + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 4\r\n\r\n",
    "a NUL": HEAD + b"X: a\x00b\r\n\r\n",
    "a lone return": HEAD + b"X: a\rb\r\n\r\n",
    "no name": HEAD + b": x\r\n\r\n",
    "a version of tomorrow": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path of other letters": "GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
}


@pytest.mark.parametrize("sent", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictions_are_refused_and_smuggle_nothing(server: RunningServer, sent: bytes) -> None:
    received = said(server, sent + SMUGGLED)
    assert 400 <= status(received) < 500
    assert b"HTTP/1.1 200" not in received
    assert received.count(b"HTTP/1.1 ") == 1


def test_compressed_bodies_are_refused_unopened(server: RunningServer) -> None:
    for coding in (b"gzip", b"deflate", b"br", b"gzip, gzip", b"zstd"):
        head = HEAD.replace(
            b"Host: x", b"Host: x\r\nConnection: close\r\nContent-Encoding: " + coding
        )
        received = said(server, head + b"Content-Length: 4\r\n\r\n\x1f\x8b\x08\x00")
        assert status(received) == 415


def test_an_upgrade_is_ignored(server: RunningServer) -> None:
    asked = (
        b"Host: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    )
    assert status(said(server, WHOLE.replace(b"Host: x", asked))) in (200, 400)


def test_abuse_leaves_no_files_memory_or_requests_behind(server: RunningServer) -> None:
    (worker,) = server.worker_pids()
    folder = Path(f"/proc/{worker}")

    def num_files() -> int:
        return len(os.listdir(folder / "fd"))

    def resident_bytes() -> int:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def abuse() -> None:
        for sent in (*LONG_HEADS.values(), *CONTRADICTIONS.values()):
            said(server, sent)
        for _ in range(60):
            for part in (HEAD, HEAD + b"Content-Length: 900000\r\n\r\n" + b" " * 300_000, WHOLE):
                with contextlib.suppress(OSError):
                    connection = socket.create_connection(server.address, timeout=20)
                    connection.sendall(part)
                    connection.close()  # gone, in the middle of it or before the answer

    eventually(lambda: num_files() < 60 and server.metric("twotower_inflight_requests") == 1)
    files = num_files()
    abuse()
    eventually(lambda: server.metric("twotower_inflight_requests") == 1)
    before_bytes = resident_bytes()
    abuse()
    eventually(lambda: server.metric("twotower_inflight_requests") == 1)
    eventually(lambda: num_files() <= files)
    assert resident_bytes() < before_bytes + (8 << 20)
    assert server.ask("POST", "/v1/retrieve", {"user_id": USERS[0]}).status == 200


def test_idle_connections_are_bounded(server: RunningServer) -> None:
    with contextlib.ExitStack() as opened:
        # as clients with a pool do: they were answered, and wait
        for _ in range(CONNECTIONS):
            connection = opened.enter_context(socket.create_connection(server.address, timeout=20))
            connection.sendall(WHOLE)
            assert reply_on(connection).status == 200
        for _ in range(3):
            received = said(server)
            assert status(received) == 503
            assert b"connection: close" in received
        connection.sendall(WHOLE)  # who is in is answered
        assert reply_on(connection).status == 200

    def is_free() -> bool:
        return server.ask("GET", "/healthz").status == 200

    eventually(is_free)


def test_no_more_connections_than_files() -> None:
    limits = protocol_with(ConnectionLimits(100, 1.0, 10**9)).limits
    assert limits.connections < 10**8
    assert protocol_with(ConnectionLimits(100, 1.0, 7)).limits.connections == 7
