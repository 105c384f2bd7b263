"""API keys: their file, who gets in where, and that a change needs no restart."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector_project import as_lines, running_collector
from serving_project import (
    USERS,
    Reply,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from twotower.cli.app import main
from twotower.data.event_log.contract import make_event
from twotower.errors import ConfigError, CorruptArtifact
from twotower.publishing.store import ModelStore
from twotower.serving import guard as guard_module
from twotower.serving.guard import Guard
from twotower.serving.key_changes import create_key, revoke_keys, rotate_key
from twotower.serving.keys import SCOPES, KeyScope, keys_path, read_keys
from twotower.serving.metrics import Metrics
from twotower.serving.problems import RefusedRequest
from twotower.serving.rates import RateLimit
from twotower.serving.reach import check_reach
from twotower.serving.routes import ROUTES
from twotower.serving.shared_memory import CounterBlock, SharedMemory

WRONG = "tt_" + "x" * 43


def make_keys(data_path: Path) -> dict[str, str]:
    """Keys of every kind, by what is wrong with them or what they open."""
    keys: dict[str, str] = {scope: create_key(data_path, scope, [scope]).secret for scope in SCOPES}
    keys["all"] = create_key(data_path, "all", SCOPES).secret
    keys["revoked"] = create_key(data_path, "revoked", SCOPES).secret
    revoke_keys(data_path, "revoked")
    soon_ms = int(time.time() * 1000) + 20
    keys["expired"] = create_key(data_path, "expired", SCOPES, soon_ms).secret
    keys["first of two"] = create_key(data_path, "two", SCOPES).secret
    keys["second of two"] = rotate_key(data_path, "two", overlap_s=3600).secret
    keys["wrong"] = WRONG
    keys["with a letter more"] = keys["all"] + "x"
    keys["empty"] = ""
    eventually(lambda: time.time() * 1000 > soon_ms)
    return keys


BAD = {"revoked", "expired", "wrong", "with a letter more", "empty"}


def opens(kind: str) -> set[str]:
    """The scopes of a kind of key."""
    if kind in BAD:
        return set()
    return {kind} if kind in SCOPES else set(SCOPES)


class Guarded:
    """A project with keys, its server and the log of it."""

    def __init__(self, folder: Path) -> None:
        self.config = write_project(folder)
        self.data_path = folder / "twotower-data"
        self.log = folder / "server.log"
        store = ModelStore(self.data_path)
        store.activate(publish_marked(store, 1), force=True)
        self.keys = make_keys(self.data_path)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def server(guarded: Guarded) -> Iterator[RunningServer]:
    with running_server(guarded.config, workers=2, log=guarded.log) as running:
        yield running


def ask(server: RunningServer, method: str, path: str, **headers: str) -> Reply:
    body = {"user_id": USERS[0], "k": 2} if method == "POST" else None
    return server.ask(method, path, body, **headers)


def test_every_route_by_every_kind_of_key(guarded: Guarded, server: RunningServer) -> None:
    routes = [(route.method, route.path, route.scope) for route in ROUTES]
    for method, path, needed in (*routes, ("GET", "/nowhere", "open")):
        path = path.replace("{", "").replace("}", "")
        for kind, key in guarded.keys.items():
            for headers in ({"Authorization": f"Bearer {key}"}, {"X_API_Key": key}):
                reply = ask(server, method, path, **headers)
                is_let_in = needed == "open" or needed in opens(kind)
                expected = 401 if kind in BAD else 403
                where = (path, kind, headers, reply.body)
                assert (reply.status in (401, 403)) != is_let_in, where
                assert is_let_in or reply.status == expected, where
        reply = ask(server, method, path)
        assert (reply.status == 401) == (needed != "open")


def test_a_refusal_is_a_problem_that_says_what_is_missing(
    guarded: Guarded, server: RunningServer
) -> None:
    none = ask(server, "POST", "/v1/retrieve")
    assert none.headers["www-authenticate"] == 'Bearer realm="twotower"'
    bad = ask(server, "POST", "/v1/retrieve", Authorization=f"Bearer {WRONG}")
    assert 'error="invalid_token"' in bad.headers["www-authenticate"]
    weak = ask(server, "POST", "/v1/retrieve", X_API_Key=guarded.keys["metrics"])
    assert 'scope="retrieve"' in weak.headers["www-authenticate"]
    assert "the scope 'retrieve', found 'k-000004' with: metrics" in weak.json()["detail"]
    for reply in (none, bad, weak):
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == reply.status
        assert reply.json()["request_id"] == reply.headers["x-request-id"]


def test_authorization_wins_and_other_schemes_do_not_count(
    guarded: Guarded, server: RunningServer
) -> None:
    good = guarded.keys["retrieve"]
    for authorization, key, status in (
        (f"Bearer {good}", WRONG, 200),
        (f"bearer {good}", WRONG, 200),
        (f"Bearer {WRONG}", good, 401),
        ("Basic dXNlcjpwYXNz", good, 200),
        (f"Basic {good}", "", 401),
    ):
        reply = ask(server, "POST", "/v1/retrieve", Authorization=authorization, X_API_Key=key)
        assert reply.status == status, (authorization, key)


def test_no_key_is_in_the_log_or_the_metrics(guarded: Guarded, server: RunningServer) -> None:
    for key in guarded.keys.values():
        ask(server, "POST", "/v1/retrieve", Authorization=f"Bearer {key}")
        ask(server, "GET", "/nowhere", X_API_Key=key)
    metrics = ask(server, "GET", "/metrics", X_API_Key=guarded.keys["all"])
    written = guarded.log.read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert {"keys_read", "request"} <= {line["event"] for line in lines}
    assert all({"ts", "level"} <= line.keys() for line in lines)
    fields = {"route", "code", "request_id", "trace_id", "generation", "duration_ms"}
    assert all(fields <= line.keys() for line in lines if line["event"] == "request")
    for key in filter(None, guarded.keys.values()):
        for text in (written, metrics.body.decode(), keys_path(guarded.data_path).read_text()):
            assert key not in text
            assert key[3:20] not in text


def test_changes_reach_every_worker_without_a_restart(tmp_path: Path) -> None:
    config, data_path = write_project(tmp_path), tmp_path / "twotower-data"
    store = ModelStore(data_path)
    store.activate(publish_marked(store, 1), force=True)

    def every_worker(server: RunningServer, status: int, key: str = "") -> None:
        """Until so many answers with that status, one after the other, came from both workers."""

        def agree() -> bool:
            replies = [ask(server, "POST", "/v1/retrieve", X_API_Key=key) for _ in range(12)]
            workers = {reply.headers["x-request-id"].split("-")[0] for reply in replies}
            return len(workers) == 2 and {reply.status for reply in replies} == {status}

        eventually(agree)

    with running_server(config, workers=2) as server:
        every_worker(server, 200)  # a project without keys, on this machine
        first = create_key(data_path, "shop", ["retrieve"]).secret
        every_worker(server, 401)
        every_worker(server, 200, first)
        second = rotate_key(data_path, "shop", overlap_s=3600).secret
        every_worker(server, 200, second)
        every_worker(server, 200, first)
        revoke_keys(data_path, "k-000001")
        every_worker(server, 401, first)
        every_worker(server, 200, second)
        content = keys_path(data_path).read_bytes()
        keys_path(data_path).write_bytes(content[:-40])
        revoked = create_like(content, data_path, tmp_path)
        every_worker(server, 200, second)  # damaged: the last good ones stay
        keys_path(data_path).unlink()
        every_worker(server, 401)  # removed: nobody gets in
        every_worker(server, 401, second)
        keys_path(data_path).write_bytes(revoked)
        every_worker(server, 401, second)


def create_like(content: bytes, data_path: Path, folder: Path) -> bytes:
    """The file with every key of it revoked, made aside."""
    aside = folder / "aside"
    keys_path(aside).parent.mkdir(parents=True)
    keys_path(aside).write_bytes(content)
    revoke_keys(aside, "shop")
    return keys_path(aside).read_bytes()


def test_the_collector_asks_for_keys_too(tmp_path: Path) -> None:
    config = write_project(tmp_path)
    keys = make_keys(tmp_path / "twotower-data")
    body = as_lines([make_event(1)])
    with running_collector(config) as collector:
        for kind, key in keys.items():
            reply = collector.ask("POST", "/v1/events", body, X_API_Key=key)
            expected = 202 if "events" in opens(kind) else 401 if kind in BAD else 403
            assert reply.status == expected, kind
            if expected != 202:
                assert reply.headers["content-type"] == "application/problem+json"
        assert "www-authenticate" in collector.ask("POST", "/v1/events", body).headers
        assert collector.ask("GET", "/healthz").status == 200
        assert collector.ask("GET", "/readyz").status == 200


# -- the file


def test_the_file_holds_hashes_and_is_the_owners(tmp_path: Path) -> None:
    made = create_key(tmp_path, "shop", ["events", "retrieve", "events"])
    path = keys_path(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert made.secret not in path.read_text()
    assert len(made.secret) == 46
    assert made.key.scopes == ["retrieve", "events"]
    with pytest.raises(ConfigError, match="keys rotate shop"):
        create_key(tmp_path, "shop", ["events"])


def test_every_change_is_audited(tmp_path: Path) -> None:
    create_key(tmp_path, "shop", ["retrieve"])
    rotate_key(tmp_path, "shop", overlap_s=60)
    revoke_keys(tmp_path, "shop")
    register = read_keys(tmp_path)
    assert register is not None
    assert [(c.number, c.action, c.key_ids) for c in register.changes] == [
        (1, "create", ["k-000001"]),
        (2, "rotate", ["k-000002"]),
        (3, "revoke", ["k-000001", "k-000002"]),
    ]


def test_the_key_before_ends_after_the_overlap(tmp_path: Path) -> None:
    create_key(tmp_path, "shop", ["retrieve"])
    rotate_key(tmp_path, "shop", overlap_s=60)
    register = read_keys(tmp_path)
    assert register is not None
    old, new = register.keys
    assert (new.expires_ms, new.scopes) == (None, old.scopes)
    assert old.expires_ms is not None
    assert old.is_active(old.expires_ms - 1)
    assert not old.is_active(old.expires_ms)
    assert 0 < old.expires_ms - new.created_ms <= 60_001
    rotate_key(tmp_path, "shop", overlap_s=3600)
    again = read_keys(tmp_path)
    assert again is not None
    assert again.keys[0].expires_ms == old.expires_ms  # a later rotation prolongs nothing


@pytest.mark.parametrize(
    ("name", "scopes", "expires_ms", "message"),
    [
        ("shop", ["retreive"], None, "did you mean 'retrieve'"),
        ("shop", [], None, "at least one scope"),
        ("a shop", ["events"], None, "expected a name"),
        ("../shop", ["events"], None, "expected a name"),
        ("shop", ["events"], 1, "in the future"),
    ],
)
def test_bad_wishes_make_no_key(
    tmp_path: Path, name: str, scopes: list[str], expires_ms: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_key(tmp_path, name, scopes, expires_ms)
    assert read_keys(tmp_path) is None


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path, "shop", ["retrieve"])
    path = keys_path(tmp_path)
    content = path.read_bytes()
    for damaged in (content.replace(b'"retrieve"', b'"admin"'), content[:-9], b"", b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifact):
            read_keys(tmp_path)
        with pytest.raises(RefusedRequest):  # whoever starts with it lets nobody in
            Guard(tmp_path, requires_key=False).check([], "retrieve")


# -- on the way


def status_of(guard: Guard, key: str, scope: KeyScope = "retrieve") -> int:
    try:
        guard.check([(b"x-api-key", key.encode())], scope)
    except RefusedRequest as refused:
        return refused.status
    return 200


def test_what_a_key_opens_and_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_ms = int(time.time() * 1000) + 60_000
    key = create_key(tmp_path, "shop", ["retrieve"]).secret
    ending = create_key(tmp_path, "ending", ["retrieve"], end_ms).secret
    guard = Guard(tmp_path, requires_key=False)
    assert [status_of(guard, given) for given in (key, ending, WRONG)] == [200, 200, 401]
    assert status_of(guard, key, "admin") == 403
    revoke_keys(tmp_path, "shop")
    guard.look()
    assert [status_of(guard, given) for given in (key, ending)] == [401, 200]
    monkeypatch.setattr(time, "time", lambda: end_ms / 1000)
    assert status_of(guard, ending) == 401


def test_a_key_is_hashed_once_and_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = create_key(tmp_path, "shop", ["retrieve"]).secret.encode()
    hashed: list[bytes] = []
    hash_key = guard_module.hash_key  # type: ignore[attr-defined]

    def counted(token: bytes) -> str:
        hashed.append(token)
        return hash_key(token)

    monkeypatch.setattr(guard_module, "hash_key", counted)
    guard = Guard(tmp_path, requires_key=True)
    headers: list[tuple[bytes, bytes]] = [(b"host", b"x"), (b"authorization", b"Bearer " + secret)]
    for _ in range(3):
        assert guard.check(headers, "retrieve") is not None
    assert hashed == [secret]
    for number in range(50):
        with pytest.raises(RefusedRequest):
            guard.check([(b"x-api-key", b"%d" % number)], "retrieve")
    with pytest.raises(RefusedRequest):
        guard.check([(b"x-api-key", b"x" * 10_000)], "retrieve")
    assert len(hashed) == 51  # an endless one is not looked at
    assert guard._known.keys() == {
        (b"Bearer " + secret, b"")
    }  # nobody fills memory with keys that are none


def test_a_key_may_ask_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (create_key(tmp_path, name, SCOPES).secret for name in ("one", "other"))
    counts: Counter[str] = Counter()
    now_s = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    metrics = Metrics(CounterBlock(SharedMemory(1).counters(0)))
    monkeypatch.setattr(metrics, "request_shed", lambda reason: counts.update([reason]))
    guard = Guard(tmp_path, requires_key=False, rates=RateLimit(0.5, 3, metrics))

    def statuses(key: str, number: int, scope: KeyScope = "retrieve") -> list[int]:
        return [status_of(guard, key, scope) for _ in range(number)]

    assert statuses(one, 5) == [200, 200, 200, 429, 429]
    assert counts == {"rate": 2}
    assert statuses(other, 3) == [200, 200, 200]  # a bucket for each
    assert statuses(one, 9, "metrics") == [200] * 9  # operators are not limited
    now_s[0] += 2.0
    assert statuses(one, 2) == [200, 429]
    with pytest.raises(RefusedRequest) as refused:
        guard.check([(b"x-api-key", one.encode())], "events")
    assert refused.value.headers == ((b"retry-after", b"2"),)
    now_s[0] += 3600.0
    assert statuses(one, 4) == [200, 200, 200, 429]  # no more than the burst


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_kept_out(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=r"keys create .*--insecure"):
        check_reach(host, tmp_path, insecure=False)
    assert not check_reach(host, tmp_path, insecure=True)
    create_key(tmp_path, "shop", ["retrieve"])
    assert check_reach(host, tmp_path, insecure=False)
    assert check_reach(host, tmp_path, insecure=True)  # who has keys means them
    revoke_keys(tmp_path, "shop")
    with pytest.raises(ConfigError, match="found none that is active"):
        check_reach(host, tmp_path, insecure=False)
    assert check_reach(host, tmp_path, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is_let_in(tmp_path: Path, host: str) -> None:
    assert not check_reach(host, tmp_path, insecure=False)
    create_key(tmp_path, "shop", ["retrieve"])
    assert check_reach(host, tmp_path, insecure=False)


# -- the commands


def twotower(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["twotower", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_commands_show_a_key_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_project(tmp_path))

    def run(*words: str) -> Any:
        assert twotower(monkeypatch, "keys", *words, "-c", config, "--json") == 0
        return json.loads(capsys.readouterr().out)

    made = run("create", "shop", "--scope", "retrieve", "--scope", "metrics")
    assert (made["key_id"], made["scopes"]) == ("k-000001", ["retrieve", "metrics"])
    again = run("rotate", "shop", "--overlap-hours", "1")
    listed = run("list")
    assert [key["state"] for key in listed["keys"]] == ["active", "active"]
    assert [change["action"] for change in listed["changes"]] == ["create", "rotate"]
    assert run("revoke", "k-000001") == {"revoked": ["k-000001"]}
    assert twotower(monkeypatch, "keys", "list", "-c", config) == 0
    shown = capsys.readouterr().out
    assert "revoked" in shown
    assert made["key"] not in shown
    assert again["key"] not in json.dumps(listed)
    assert twotower(monkeypatch, "keys", "create", "next", "--scope", "events", "-c", config) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("tt_")
    assert len(captured.out.strip()) == 46
    assert twotower(monkeypatch, "keys", "revoke", "shopp", "-c", config) == 2
    assert "did you mean 'shop'" in capsys.readouterr().err
