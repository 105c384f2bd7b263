"""The collector as a process: what it answers, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from collector_project import as_lines, running_collector
from serving_project import RunningServer, eventually, write_project
from twotower.cli.app import main
from twotower.data.event_log import open_event_log
from twotower.data.event_log.contract import make_event, make_events

SETTINGS = """
[event_log]
lock_timeout_s = 0.2
[collector]
body_limit_bytes = 200_000
body_timeout_s = 0.5
waiting_limit_bytes = 300_000
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("collector"), more=SETTINGS)


@pytest.fixture(scope="module")
def collector(config: Path) -> Iterator[RunningServer]:
    with running_collector(config) as running:
        yield running


def stored(config: Path, start: int) -> list[str]:
    with open_event_log(config.parent / "twotower-data") as log:
        return [event.event_id for event in log.read_events(start, 100_000)]


def end(config: Path) -> int:
    with open_event_log(config.parent / "twotower-data") as log:
        return log.end()


def test_arrays_and_lines_are_stored_before_the_answer(
    config: Path, collector: RunningServer
) -> None:
    start = end(config)
    events = make_events(0, 20)
    reply = collector.ask("POST", "/v1/events", msgspec.json.encode(events[:10]))
    assert reply.status == 202
    assert reply.json() == {
        "accepted": 10,
        "duplicates": [],
        "rejected": [],
        "end_offset": start + 10,
    }
    lines = as_lines(events[9:]) + b"nonsense\n"
    reply = collector.ask("POST", "/v1/events", lines, Content_Type="application/x-ndjson")
    found = reply.json()
    assert (reply.status, found["accepted"], found["duplicates"]) == (202, 11, [0])
    assert [(r["row"], r["code"]) for r in found["rejected"]] == [(11, "invalid")]
    assert stored(config, start) == [event.event_id for event in events]


def test_a_body_under_its_key_gets_the_same_receipt_again(
    config: Path, collector: RunningServer
) -> None:
    start, body = end(config), msgspec.json.encode(make_events(900, 905))
    other = msgspec.json.encode(make_events(905, 906))
    first = collector.ask("POST", "/v1/events", body, Idempotency_Key="k-1")
    again = collector.ask("POST", "/v1/events", body, Idempotency_Key="k-1")
    assert (first.status, first.json()["accepted"], first.json()["duplicates"]) == (202, 5, [])
    assert (again.status, again.body) == (202, first.body)
    assert [reply.headers.get("idempotent-replayed") for reply in (first, again)] == [None, "true"]
    refused = collector.ask("POST", "/v1/events", other, Idempotency_Key="k-1")
    assert refused.status == 409
    assert "found another" in refused.json()["detail"]
    unnamed = collector.ask("POST", "/v1/events", body)
    assert unnamed.json()["duplicates"] == [0, 1, 2, 3, 4]
    assert len(stored(config, start)) == 5
    for key in (" ", "a b", "x" * 256):
        assert collector.ask("POST", "/v1/events", body, Idempotency_Key=key).status == 400


def test_a_key_is_free_after_a_refusal(collector: RunningServer) -> None:
    refused = collector.ask("POST", "/v1/events", b"[1,", Idempotency_Key="k-2")
    assert refused.status == 400
    body = msgspec.json.encode(make_events(910, 911))
    assert collector.ask("POST", "/v1/events", body, Idempotency_Key="k-2").status == 202


def test_requests_and_how_late_events_come_are_counted(collector: RunningServer) -> None:
    lag, requests = "twotower_event_lag_seconds", "twotower_http_requests_total"

    def counted() -> dict[str, float]:
        return {
            "within a minute": collector.metric(f"{lag}_bucket", le="60.0"),
            "within five": collector.metric(f"{lag}_bucket", le="300.0"),
            "all": collector.metric(f"{lag}_count"),
            "sum": collector.metric(f"{lag}_sum"),
            "202": collector.metric(requests, route="/v1/events", code="202"),
            "400": collector.metric(requests, route="/v1/events", code="400"),
            "other": collector.metric(requests, route="other", code="404"),
            "timed": collector.metric("twotower_http_request_duration_seconds_count"),
        }

    before, now_ms = counted(), int(time.time() * 1000)
    times = (now_ms, now_ms + 3_600_000, now_ms - 90_000)  # the second by a clock that is ahead
    events = [
        msgspec.structs.replace(make_event(5000 + row), event_time_ms=time_ms)
        for row, time_ms in enumerate(times)
    ]
    collector.ask("POST", "/v1/events", as_lines(events) + b"nonsense\n")
    collector.ask("POST", "/v1/events", b"[1,")
    collector.ask("GET", "/nowhere")
    after = counted()
    grown = {name: after[name] - before[name] for name in after}
    assert 90 <= grown.pop("sum") < 100
    assert grown == {
        "within a minute": 2, "within five": 3, "all": 3, "202": 1, "400": 1, "other": 1, "timed": 2
    }  # fmt: skip
    assert collector.metric("twotower_collector_waiting_bytes") == 0
    assert collector.metric("process_resident_memory_bytes") > 0


def test_the_document_names_what_the_collector_counts(collector: RunningServer) -> None:
    text = collector.ask("GET", "/metrics").body.decode()
    found = set(re.findall(r"^# TYPE (twotower_\w+)", text, re.MULTILINE))
    document = Path(__file__).parents[1] / "docs" / "operations.md"
    table = document.read_text().split("`twotower collect` has")[1].split("\n\n")[1]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == found


def test_what_is_no_body_of_rows_is_a_problem(config: Path, collector: RunningServer) -> None:
    start = end(config)
    body = as_lines([make_event(1000)])
    cases = [
        (400, ("POST", "/v1/events", b"[1,"), {}),
        (404, ("POST", "/v1/event", body), {}),
        (405, ("GET", "/v1/events"), {}),
        (405, ("POST", "/readyz", body), {}),
        (413, ("POST", "/v1/events", b" " * 200_001), {}),
        (415, ("POST", "/v1/events", body), {"Content_Type": "text/plain"}),
        (415, ("POST", "/v1/events", body), {"Content_Encoding": "gzip"}),
    ]
    for status, request, headers in cases:
        reply = collector.ask(*request, **headers)  # type: ignore[arg-type]
        assert reply.status == status, request
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == status
        assert reply.json()["detail"]
    assert end(config) == start


def test_a_body_without_a_length_is_limited_too(collector: RunningServer) -> None:
    with contextlib.closing(collector.connect()) as connection:
        parts = (b" " * 50_000 for _ in range(20))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/v1/events", parts, {"Content-Type": "application/json"})
        with contextlib.suppress(ConnectionResetError, http.client.BadStatusLine):
            assert connection.getresponse().status == 413  # or closed while we were sending


def test_a_body_that_does_not_come_is_given_up(collector: RunningServer) -> None:
    with socket.create_connection(collector.address, timeout=20) as connection:
        connection.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n["
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_many_producers_at_once(config: Path, collector: RunningServer) -> None:
    start = end(config)
    batches = [make_events(10_000 + 50 * n, 10_050 + 50 * n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(lambda batch: collector.ask("POST", "/v1/events", as_lines(batch)), batches)
        )
    assert {reply.status for reply in replies} == {202}
    assert sorted(stored(config, start)) == sorted(e.event_id for b in batches for e in b)


def test_what_cannot_be_written_is_not_acknowledged(config: Path, collector: RunningServer) -> None:
    start = end(config)
    body = as_lines([make_event(20_000)])
    other = sqlite3.connect(config.parent / "twotower-data/events/log.sqlite", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        reply = collector.ask("POST", "/v1/events", body)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert "nothing was acknowledged" in reply.json()["detail"]
        assert collector.ask("GET", "/readyz").status == 503
        assert collector.ask("GET", "/healthz").status == 200
        assert end(config) == start
        big = b"\n".join([body] * 900)[:190_000]
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: collector.ask("POST", "/v1/events", big), range(4)))
        assert sorted({reply.status for reply in replies}) == [429, 503]
        other.execute("ROLLBACK")
    assert collector.ask("POST", "/v1/events", body).json()["end_offset"] == start + 1
    assert collector.ask("GET", "/readyz").status == 200


def test_sigterm_answers_what_arrived_and_exits_with_0(tmp_path: Path) -> None:
    config = write_project(tmp_path)
    with running_collector(config) as collector, ThreadPoolExecutor(4) as pool:
        connections = [collector.connect() for _ in range(4)]
        sent: list[int] = []

        def send(number: int) -> int:
            """Events until the collector says that this was the last; how many it took."""
            taken = 0
            with contextlib.closing(connections[number]) as connection:
                for count in range(100_000):
                    event = make_event(100_000 * number + count)
                    headers = {"Content-Type": "application/json"}
                    try:
                        connection.request("POST", "/v1/events", as_lines([event]), headers)
                        response = connection.getresponse()
                    except (ConnectionError, http.client.HTTPException):
                        return taken
                    assert response.status == 202
                    taken += int(json.loads(response.read())["accepted"])
                    sent.append(1)
                    if response.getheader("connection") == "close":
                        return taken
            return taken

        futures = [pool.submit(send, number) for number in range(4)]
        eventually(lambda: len(sent) > 20)
        assert collector.stop() == 0
        acknowledged = sum(future.result() for future in futures)
    assert end(config) >= acknowledged > 20


def test_other_machines_are_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_project(tmp_path)
    words = ["twotower", "collect", "-c", str(config), "--host", "0.0.0.0", "--port", "0"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--insecure" in capsys.readouterr().err


def test_a_restarted_collector_knows_what_is_stored(tmp_path: Path) -> None:
    config = write_project(tmp_path)
    with running_collector(config) as collector:
        first = collector.ask("POST", "/v1/events", as_lines(make_events(0, 5)))
    with running_collector(config) as collector:
        again = collector.ask("POST", "/v1/events", as_lines(make_events(0, 6)))
    assert (first.status, again.status) == (202, 202)
    assert (again.json()["duplicates"], again.json()["end_offset"]) == ([0, 1, 2, 3, 4], 6)
