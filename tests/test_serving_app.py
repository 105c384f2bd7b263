"""The contract of every endpoint, on a real server with two workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from serving_project import (
    NUM_CORPUS,
    UNKNOWN_USER,
    USERS,
    RunningServer,
    ask,
    running_server,
    write_project,
)
from tiny_checkpoint import external_ids, tiny_checkpoint
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.retriever import Retriever
from twotower.serving.routes import ROUTES

BUSY_USER = USERS[3]
LIMIT = 20_000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    store = ModelStore(folder / "twotower-data")
    name = publish(tiny_checkpoint(), store, index=IndexSettings()).name
    store.activate(name, force=True)
    return write_project(folder, more=f"body_limit_bytes = {LIMIT}\nbody_timeout_s = 0.3")


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[RunningServer]:
    with running_server(config, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def retriever(config: Path) -> Retriever:
    return Retriever.open(config.parent / "twotower-data")


@pytest.fixture
def connection(server: RunningServer) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(server.connect()) as opened:
        yield opened


def retrieve(connection: http.client.HTTPConnection, **request: object) -> Any:
    reply = ask(connection, "POST", "/v1/retrieve", request)
    assert reply.status == 200, reply.body
    return reply.json()


# -- answers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 1},
        {"k": 7, "include_seen": True},
        {"k": 1000},
        {"features": {"city": "Lima", "age": 44, "tags": ["a", "c"]}, "k": 9},
        {"features": {"city": None, "joined": "2020"}, "k": 9},
        {"exclude": external_ids("int", "item", 30), "k": 9},
        {"recent": external_ids("int", "item", 60)[5:9], "k": 9},
        {"recent": [424_242], "k": 2},
        {"recent": [], "k": 2},
        {"exclude": external_ids("int", "item", 60)},
    ],
    ids=json.dumps,
)
def test_answers_equal_the_retrievers(
    connection: http.client.HTTPConnection, retriever: Retriever, options: dict[str, Any]
) -> None:
    for user in (*USERS, UNKNOWN_USER, str(BUSY_USER)):
        given = retrieve(connection, user_id=user, **options)
        expected = retriever.retrieve(user, **options)
        assert (given["generation"], given["sequence"], given["delta"]) == ("g-000001", 1, None)
        assert given["degraded"] == (expected.degraded or None)
        assert [(c["item_id"], np.float32(c["score"]), c["rank"]) for c in given["candidates"]] == [
            (c.item_id, np.float32(c.score), c.rank) for c in expected.candidates
        ]
        shown = retrieve(connection, user_id=user, display=True, **options)["candidates"]
        assert [c["display"] for c in shown] == [c.display for c in expected.candidates]


def test_an_unknown_user_is_no_error(connection: http.client.HTTPConnection) -> None:
    answer = retrieve(connection, user_id=UNKNOWN_USER)
    assert answer["degraded"] == ["unknown_user"]
    assert len(answer["candidates"]) == 20
    answer = retrieve(connection, user_id=UNKNOWN_USER, features={"city": "Atlantis"})
    missing = [f"feature:{name}=missing" for name in ("age", "tags", "joined")]
    assert answer["degraded"] == ["unknown_user", "feature:city=unseen", *missing]


def test_k_above_the_corpus(connection: http.client.HTTPConnection) -> None:
    answer = retrieve(connection, user_id=UNKNOWN_USER, k=1000)
    assert len(answer["candidates"]) == NUM_CORPUS


def test_every_answer_has_its_headers(connection: http.client.HTTPConnection) -> None:
    body = {"user_id": BUSY_USER}
    reply = ask(connection, "POST", "/v1/retrieve", body, {"X-Request-Id": "mine-1"})
    assert reply.headers["x-generation"] == "g-000001"
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == "mine-1"
    assert re.fullmatch(r"tower;dur=\d+\.\d+, ann;dur=\d+\.\d+", reply.headers["server-timing"])
    assert reply.headers["content-type"] == "application/json"
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for given, back in ((trace, trace), ("no trace", None)):
        reply = ask(connection, "POST", "/v1/retrieve", body, {"traceparent": given})
        assert reply.headers.get("traceparent") == back
    replies = [ask(connection, "POST", "/v1/retrieve", body) for _ in range(3)]
    replies.append(ask(connection, "POST", "/v1/retrieve", body, {"X-Request-Id": "no good"}))
    replies.append(ask(connection, "GET", "/nowhere"))
    assert len({reply.headers["x-request-id"] for reply in replies}) == 5
    assert "no good" not in replies[3].headers.values()


# -- what is refused

BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, ""),
    "no JSON": (b"user_id=712", 400, ""),
    "cut": (b'{"user_id": 712', 400, ""),
    "two documents": (b'{"user_id": 1}{}', 400, ""),
    "no UTF-8": (b'{"user_id": "\xff"}', 400, ""),
    "half a surrogate": (b'{"user_id": "\\ud800"}', 400, ""),
    "NaN": (b'{"user_id": 1, "features": {"age": NaN}}', 400, ""),
    "deep": (b'{"user_id": 1, "features": {"age": ' + b"[" * 9000, 422, "$.features"),
    "a list": (b"[]", 422, "$"),
    "null": (b"null", 422, "$"),
    "no user": (b'{"k": 3}', 422, "$"),
    "user null": (b'{"user_id": null}', 422, "$.user_id"),
    "user true": (b'{"user_id": true}', 422, "$.user_id"),
    "user 1.5": (b'{"user_id": 1.5}', 422, "$.user_id"),
    "user object": (b'{"user_id": {}}', 422, "$.user_id"),
    "user empty": (b'{"user_id": ""}', 422, "$.user_id"),
    "user no integer": (b'{"user_id": "abc"}', 422, "$"),
    "user beyond 64 bits": (b'{"user_id": 9223372036854775808}', 422, "$.user_id"),
    "user text beyond 64 bits": (b'{"user_id": "%s"}' % (b"9" * 40), 422, "$"),
    "user 5000 digits": (b'{"user_id": %s}' % (b"9" * 5000), 422, "$.user_id"),
    "user 1e400": (b'{"user_id": 1e400}', 422, "$.user_id"),
    "user NUL": (b'{"user_id": "a\\u0000"}', 422, "$"),
    "user long": (b'{"user_id": "%s"}' % (b"x" * 600), 422, "$.user_id"),
    "k 0": (b'{"user_id": 1, "k": 0}', 422, "$.k"),
    "k negative": (b'{"user_id": 1, "k": -1}', 422, "$.k"),
    "k 1001": (b'{"user_id": 1, "k": 1001}', 422, "$.k"),
    "k text": (b'{"user_id": 1, "k": "5"}', 422, "$.k"),
    "k null": (b'{"user_id": 1, "k": null}', 422, "$.k"),
    "k 1e9": (b'{"user_id": 1, "k": 1e9}', 422, "$.k"),
    "unknown field": (b'{"user_id": 1, "featurs": {}}', 422, "$.featurs"),
    "unknown feature": (b'{"user_id": 1, "features": {"ciity": 1}}', 422, "$.features.ciity"),
    "features list": (b'{"user_id": 1, "features": []}', 422, "$.features"),
    "feature object": (b'{"user_id": 1, "features": {"city": {}}}', 422, "$.features"),
    "feature nested": (b'{"user_id": 1, "features": {"tags": [["a"]]}}', 422, "$.features"),
    "257 features": (
        json.dumps({"user_id": 1, "features": {f"f{n}": 1 for n in range(257)}}).encode(),
        422,
        "$.features",
    ),
    "exclude text": (b'{"user_id": 1, "exclude": "5"}', 422, "$.exclude"),
    "exclude null": (b'{"user_id": 1, "exclude": [1, null]}', 422, "$.exclude[1]"),
    "exclude no integer": (b'{"user_id": 1, "exclude": ["x"]}', 422, "$"),
    "recent number": (b'{"user_id": 1, "recent": 5}', 422, "$.recent"),
    "recent no integer": (b'{"user_id": 1, "recent": [5, "x"]}', 422, "$"),
    "include_seen 1": (b'{"user_id": 1, "include_seen": 1}', 422, "$.include_seen"),
    "too large": (b'{"user_id": "%s"}' % (b"x" * LIMIT), 413, ""),
}


@pytest.mark.parametrize(
    ("body", "status", "path"), BAD_BODIES.values(), ids=BAD_BODIES.keys()
)  # fmt: skip
def test_bad_bodies_are_refused(server: RunningServer, body: bytes, status: int, path: str) -> None:
    reply = server.ask("POST", "/v1/retrieve", body)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert problem["type"].startswith("urn:twotower:problem:")
    assert problem["title"]
    assert problem["detail"]
    found = [fault["path"] for fault in problem.get("errors", [])]
    assert [place[: len(path)] for place in found] == ([path] if path else [])


def test_unknown_names_are_refused_with_a_suggestion(server: RunningServer) -> None:
    for body, name in (
        ({"user_id": 1, "exlude": []}, "exclude"),
        ({"user_id": 1, "features": {"ciity": 1}}, "city"),
    ):
        (fault,) = server.ask("POST", "/v1/retrieve", body).json()["errors"]
        assert fault["detail"].endswith(f"did you mean '{name}'?")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/retrieve", 405),
        ("PUT", "/v1/retrieve", 405),
        ("POST", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/v1/retrieve/", 404),
        ("GET", "/docs/../../etc/passwd", 404),
        ("GET", "/docs/%2e%2e/style.css", 404),
    ],
)
def test_other_paths_and_methods_are_problems(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    reply = server.ask(method, path)
    assert (reply.status, reply.json()["status"]) == (status, status)
    assert reply.headers["content-type"] == "application/problem+json"
    assert ("allow" in reply.headers) == (status == 405)


def test_a_body_must_be_declared_as_json(server: RunningServer) -> None:
    undeclared = raw(server, HEAD.partition(b"Content-Type")[0] + b"Connection: close\r\n\r\n")
    assert undeclared.startswith(b"HTTP/1.1 415")
    packed = {"Content_Encoding": "gzip"}
    assert server.ask("POST", "/v1/retrieve", {"user_id": 1}, **packed).status == 415
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = server.ask("POST", "/v1/retrieve", {"user_id": 1}, Content_Type=kind)
        assert reply.status == 415
    kind = "application/json; charset=utf-8"
    assert server.ask("POST", "/v1/retrieve", {"user_id": 1}, Content_Type=kind).status == 200


def test_a_deadline_that_has_passed_is_504_without_a_search(server: RunningServer) -> None:
    def ask_within(milliseconds: str) -> int:
        header = {"X_Request_Timeout_Ms": milliseconds}
        return server.ask("POST", "/v1/retrieve", {"user_id": 1}, **header).status

    before = server.metric("twotower_retrieve_items_returned_count")
    shed = server.metric("twotower_shed_requests_total", reason="deadline")
    assert ask_within("0") == 504
    assert server.metric("twotower_retrieve_items_returned_count") == before
    assert server.metric("twotower_shed_requests_total", reason="deadline") == shed + 1
    assert ask_within("60000") == 200
    for bad in ("-1", "soon", "1.5", "", "9" * 30):
        assert ask_within(bad) == 400


def raw(server: RunningServer, *parts: bytes) -> bytes:
    """What the server says to these bytes, until it closes."""
    with socket.create_connection(server.address, timeout=10) as opened:
        for part in parts:
            opened.sendall(part)
        received = b""
        while chunk := opened.recv(65536):
            received += chunk
        return received


HEAD = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_large_body_is_refused_before_it_is_read(server: RunningServer) -> None:
    received = raw(server, HEAD + b"Content-Length: 999999999999\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 413")
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    received = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 6)
    assert received.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_408(server: RunningServer) -> None:
    for begun in (b"", b'{"user'):
        received = raw(server, HEAD + b"Content-Length: 20\r\n\r\n" + begun)
        assert received.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in received


def test_what_is_no_http_is_refused(server: RunningServer) -> None:
    assert raw(server, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert server.ask("GET", "/healthz").status == 200


# -- documents


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Any:
    return server.ask("GET", "/openapi.json").json()


def test_the_openapi_document_is_valid_and_whole(document: Any) -> None:
    validate(document)
    documented = {
        (method.upper(), path) for path, found in document["paths"].items() for method in found
    }
    hidden = {"openapi", "docs", "docs_style"}
    assert documented == {(r.method, r.path) for r in ROUTES if r.name not in hidden}
    responses = document["paths"]["/v1/retrieve"]["post"]["responses"]
    assert {"200", "400", "413", "422", "503", "504"} <= set(responses)


def fits(document: Any, name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return bool(OAS31Validator(schema).is_valid(value))


def test_the_documented_schemas_are_those_of_the_decoder(
    server: RunningServer, document: Any
) -> None:
    for body, status, _ in BAD_BODIES.values():
        if status == 422:
            with contextlib.suppress(ValueError, RecursionError):
                is_documented = fits(document, "RetrieveRequest", json.loads(body))
                detail = server.ask("POST", "/v1/retrieve", body).json()
                by_the_model = detail["errors"][0]["path"] in ("$", "$.features.ciity")
                assert not is_documented or by_the_model, body
    for user in (BUSY_USER, UNKNOWN_USER):
        for display in (True, False):
            body_sent = {"user_id": user, "display": display, "k": 3}
            assert fits(document, "RetrieveRequest", body_sent)
            reply = server.ask("POST", "/v1/retrieve", body_sent)
            assert fits(document, "RetrieveAnswer", reply.json())
    assert fits(document, "Problem", server.ask("GET", "/nowhere").json())
    assert fits(document, "Readiness", server.readiness())


def test_the_docs_page_needs_nothing_from_outside(server: RunningServer) -> None:
    reply = server.ask("GET", "/docs")
    page = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self';")
    assert "unsafe" not in policy
    links = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert links
    for link in links:
        assert server.ask("GET", link).status == 200
    assert set(re.findall(r"https?://[^/\s]+", page)) == {"http://127.0.0.1:8080"}  # the example
    assert not re.search(r"<script|@import|url\(|//[a-z]", page.replace("http://127", ""))
    assert "/v1/retrieve" in page
    style = server.ask("GET", "/docs/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert b"url(" not in style.body


# -- health and metrics


def test_health_and_readiness(server: RunningServer) -> None:
    assert server.ask("GET", "/healthz").json() == {"status": "alive"}
    reply = server.ask("GET", "/readyz")
    assert (reply.status, reply.json()["status"]) == (200, "ready")
    assert all(check["ok"] for check in reply.json()["checks"].values())
    served = [(w["generation"], w["sequence"], w["state"]) for w in reply.json()["workers"]]
    assert served == [("g-000001", 1, "serving")] * 2


def test_metrics_count_what_was_asked_over_all_workers(server: RunningServer) -> None:
    def counted() -> dict[str, float]:
        name = "twotower_http_requests_total"
        codes = {code: server.metric(name, route="/v1/retrieve", code=code)
                 for code in ("200", "422", "405")}  # fmt: skip
        return codes | {
            "durations": server.metric(
                "twotower_http_request_duration_seconds_count", route="/v1/retrieve"
            ),
            "other": server.metric(name, route="other", code="404"),
            "ann": server.metric("twotower_retrieve_stage_duration_seconds_count", stage="ann"),
            "items": server.metric("twotower_retrieve_items_returned_sum"),
            "unknown": server.metric("twotower_unknown_users_total"),
            "city": server.metric("twotower_feature_oov_total", feature="city"),
        }

    before = counted()
    for n in range(40):
        server.ask("POST", "/v1/retrieve", {"user_id": USERS[n % 12], "k": 2})
    unknown = {"user_id": UNKNOWN_USER, "k": 2, "features": {"city": "Atlantis"}}
    for _ in range(5):
        server.ask("POST", "/v1/retrieve", unknown)
        server.ask("POST", "/v1/retrieve", {"k": 2})
    server.ask("GET", "/v1/retrieve")
    for name in ("a", "b"):
        server.ask("GET", f"/{name}")  # a label for any path would be a cardinality bomb
    after = counted()
    assert {name: after[name] - before[name] for name in after} == {
        "200": 45, "422": 5, "405": 1, "durations": 51, "other": 2, "ann": 45, "items": 90,
        "unknown": 5, "city": 5,
    }  # fmt: skip
    assert server.metric("twotower_inflight_requests") == 1  # that one
    assert server.metric("twotower_generation_info", generation="g-000001") == 1
    assert server.metric("twotower_publish_total", kind="full", result="ok") == 1
    assert server.metric("twotower_gate_passed", generation="live", metric="finite") == 1


def test_no_metric_names_a_user(server: RunningServer) -> None:
    server.ask("POST", "/v1/retrieve", {"user_id": 987_654_321})
    text = server.ask("GET", "/metrics").body.decode()
    assert "987654321" not in text


# -- processes


def test_workers_load_no_training_and_share_the_files(server: RunningServer) -> None:
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in server.worker_pids()]
    assert len(maps) == 2
    for text in maps:
        assert "onnxruntime" in text
        assert "index/vectors.npy" in text
        for name in ("libtorch", "polars", "pyarrow", "/scipy/"):
            assert name not in text


def test_the_server_itself_has_one_thread_and_no_engine(server: RunningServer) -> None:
    folder = Path(f"/proc/{server.process.pid}")
    assert len(list((folder / "task").iterdir())) == 1
    assert "onnxruntime" not in (folder / "maps").read_text()


def test_what_workers_share_is_there_before_they_are_forked(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "twotower-data")
    checkpoint = tiny_checkpoint(num_items=1500)
    name = publish(checkpoint, store, index=IndexSettings(engine="faiss_hnsw")).name
    store.activate(name, force=True)
    with running_server(write_project(tmp_path)) as server:
        folder = Path(f"/proc/{server.process.pid}")
        maps = (folder / "maps").read_text()
        assert "faiss" in maps  # the engine of what is live
        assert "pydantic_core" in maps  # the application
        assert len(list((folder / "task").iterdir())) == 1
        assert server.ask("POST", "/v1/retrieve", {"user_id": BUSY_USER}).status == 200
