"""The profile store: one contract for both engines, over HTTP, with a real Redis."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import polars as pl
import pytest

from redis_server import RunningRedis, running_redis
from serving_project import (
    UNKNOWN_USER,
    USERS,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from test_cli_generations import PROJECT, call, call_json
from test_cli_import import OWN_LOG
from tiny_checkpoint import CUT_MS, tiny_checkpoint
from twotower.config import load_project
from twotower.data.days import ImportedData
from twotower.data.features import FeatureSpec
from twotower.data.ids import Id
from twotower.data.imported_profiles import imported_profiles, readable_profiles
from twotower.data.settings import FeatureSettings, TimeUnit
from twotower.errors import ConfigError, NotReady
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.answer import Answer
from twotower.serving.profiles import open_profiles
from twotower.serving.redis_profiles import fill_profiles
from twotower.serving.retriever import Retriever
from twotower.serving.settings import ProfileSettings

PASSWORD = "opensesame"
PREFIX = "shop:"
NOWHERE = USERS[3]  # has no city
DAY_MS = 86_400_000
MISSING = [f"feature:{name}=missing" for name in ("city", "age", "tags", "joined")]
IGNORED = shutil.ignore_patterns("twotower-data")


def profiles() -> dict[Id, dict[str, object]]:
    """What `tiny_checkpoint` knows of its users, as a store holds it."""
    cities, tags = ["Oslo", "Lima", "Pune", None], [["a", "b"], ["c"], None, ["b", "c"]]
    return {
        user: {
            name: value
            for name, value in {
                "city": cities[n % 4],
                "age": 20.0 + n,
                "tags": tags[n % 4],
                "joined": CUT_MS - n * DAY_MS,
            }.items()
            if value is not None
        }
        for n, user in enumerate(USERS)
    }


class Store(NamedTuple):
    """A server with one of the engines, and the oracle: a generation that has the profiles."""

    server: RunningServer
    retriever: Retriever
    served: Retriever
    """What the server has: where profiles are in Redis, without any."""

    def expected(self, user: Id, **given: Any) -> Answer:
        return self.retriever.retrieve(user, 5, include_seen=True, **given)

    def ask(self, user: object, **given: object) -> Any:
        body = {"user_id": user, "k": 5, "include_seen": True, **given}
        reply = self.server.ask("POST", "/v1/retrieve", body)
        assert reply.status == 200, reply.body
        return reply.json()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    with running_redis(tmp_path_factory.mktemp("redis"), PASSWORD) as running:
        yield running


def settings_of(redis: RunningRedis, timeout_s: float = 1.0) -> ProfileSettings:
    return ProfileSettings(store="redis", url=redis.url, prefix=PREFIX, timeout_s=timeout_s)


def serving(folder: Path, settings: ProfileSettings | None) -> Iterator[Store]:
    oracle, store = ModelStore(folder / "oracle"), ModelStore(folder / "twotower-data")
    lines = ["[serving.profiles]"]
    for one, has_profiles in ((oracle, True), (store, settings is None)):
        checkpoint = tiny_checkpoint()
        if not has_profiles:
            checkpoint.user_profiles = checkpoint.user_features.missing(len(USERS))
        one.activate(publish(checkpoint, one, index=IndexSettings()).name)
    if settings is not None:
        lines += [f"{name} = {json.dumps(v)}" for name, v in msgspec.to_builtins(settings).items()]
    config = write_project(folder, more="\n".join(lines))
    with running_server(config, log=folder / "log") as server:
        yield Store(server, *(Retriever.open(folder / at) for at in ("oracle", "twotower-data")))


@pytest.fixture(scope="module")
def in_redis(redis: RunningRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    fill_profiles(settings_of(redis), profiles().items(), len(USERS))
    yield from serving(tmp_path_factory.mktemp("in-redis"), settings_of(redis))


@pytest.fixture(scope="module")
def in_generation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from serving(tmp_path_factory.mktemp("in-generation"), None)


@pytest.fixture(params=["generation", "redis"])
def store(request: pytest.FixtureRequest) -> Store:
    found = request.getfixturevalue(f"in_{request.param}")
    assert isinstance(found, Store)
    return found


def answer_of(expected: Answer) -> list[dict[str, object]]:
    """The candidates as the wire has them."""
    return [
        {"item_id": one.item_id, "score": pytest.approx(one.score, abs=1e-6), "rank": one.rank}
        for one in expected.candidates
    ]


def same(found: Any, expected: Answer) -> None:
    """The same items, scores to the digits of a float32, and the same reasons."""
    items = [(one["item_id"], np.float32(one["score"])) for one in found["candidates"]]
    assert items == [(one.item_id, np.float32(one.score)) for one in expected.candidates]
    assert (found["degraded"] or []) == expected.degraded


def test_the_stored_profile_makes_the_answer(store: Store) -> None:
    for user in USERS:
        same(store.ask(user), store.expected(user))


def test_an_id_may_be_text(store: Store) -> None:
    same(store.ask(f"0{USERS[0]}"), store.expected(USERS[0]))


def test_what_the_request_gives_wins(store: Store) -> None:
    for given in ({"city": "Lima"}, {"age": 71}, {"city": None}, {"tags": ["c", "new"]}):
        same(store.ask(USERS[0], features=given), store.expected(USERS[0], features=given))
    assert store.ask(USERS[0], features={"city": "Lima"}) != store.ask(USERS[0])


def test_what_is_missing_or_unseen_is_told(store: Store) -> None:
    assert store.ask(NOWHERE)["degraded"] == ["feature:city=missing"]
    assert store.ask(NOWHERE, features={"city": "Atlantis"})["degraded"] == ["feature:city=unseen"]
    assert store.ask(UNKNOWN_USER)["degraded"] == ["unknown_user"]
    same(store.ask(UNKNOWN_USER, features={"city": "Lima"}),
         store.expected(UNKNOWN_USER, features={"city": "Lima"}))  # fmt: skip


def test_a_wrong_request_is_refused_as_ever(store: Store) -> None:
    for wrong in ({"user_id": "abc"}, {"user_id": None}, {"features": {"town": 1}}, {"k": 0}):
        reply = store.server.ask("POST", "/v1/retrieve", {"user_id": USERS[0], **wrong})
        assert reply.status == 422, reply.body
    assert store.server.ask("POST", "/v1/retrieve", b"\xff{").status == 400
    wrong_data: tuple[list[object], ...] = ([{}], [None], [2**70], [True])
    for data in wrong_data:
        tensor = {"name": "user_id", "datatype": "INT64", "shape": [1], "data": data}
        reply = store.server.ask("POST", "/v2/models/twotower/infer", {"inputs": [tensor]})
        assert reply.status == 422, reply.body


def test_a_batch(store: Store) -> None:
    requests: list[dict[str, object]] = [
        {"user_id": user, "k": 5, "include_seen": True} for user in (*USERS, "abc", None)
    ]
    reply = store.server.ask("POST", "/v1/retrieve:batch", {"requests": requests})
    results = reply.json()["results"]
    for user, result in zip(USERS, results, strict=False):
        same(result["answer"], store.expected(user))
    assert [result["problem"]["status"] for result in results[-2:]] == [422, 422]


def test_an_explanation(store: Store) -> None:
    best = store.expected(USERS[1]).candidates[0]
    found = store.server.ask("POST", "/v1/explain", {"user_id": USERS[1], "item_id": best.item_id})
    explained = found.json()
    assert np.float32(explained["score"]) == np.float32(best.score)
    assert explained["user"]["features"]["city"] != 0
    assert explained["degraded"] is None


def test_the_open_inference_protocol(store: Store) -> None:
    body = {
        "inputs": [
            {"name": "user_id", "datatype": "INT64", "shape": [2], "data": [USERS[1], USERS[2]]}
        ],
        "parameters": {"k": 5, "include_seen": True},
    }
    reply = store.server.ask("POST", "/v2/models/twotower/infer", body)
    outputs = {one["name"]: one["data"] for one in reply.json()["outputs"]}
    expected = [one for user in USERS[1:3] for one in store.expected(user).candidates]
    assert outputs["item_ids"] == [str(one.item_id) for one in expected]
    found = np.asarray(outputs["scores"], np.float32)
    np.testing.assert_array_equal(found, np.array([one.score for one in expected], np.float32))


def test_an_answer_that_comes_too_late_is_not_begun(store: Store) -> None:
    reply = store.server.ask("POST", "/v1/retrieve", {"user_id": 1}, X_Request_Timeout_Ms="0")
    assert reply.status == 504


def written(redis: RunningRedis, user: Id, profile: Mapping[str, object] | bytes) -> None:
    content = profile if isinstance(profile, bytes) else json.dumps(profile).encode()
    redis.client.set(f"{PREFIX}{user}", content)


def test_redis_changes_between_two_answers(redis: RunningRedis, in_redis: Store) -> None:
    stranger = UNKNOWN_USER + 1
    given = {"city": "Pune", "age": 40}
    written(redis, stranger, {**given, "town": "of another model"})
    same(in_redis.ask(stranger), in_redis.expected(stranger, features=given))
    written(redis, stranger, {"city": "Atlantis", "age": 40, "joined": 0, "tags": ["a"]})
    assert in_redis.ask(stranger)["degraded"] == ["unknown_user", "feature:city=unseen"]
    redis.client.delete(f"{PREFIX}{stranger}")
    assert in_redis.ask(stranger)["degraded"] == ["unknown_user"]


def test_a_user_whom_redis_lacks_has_no_profile(redis: RunningRedis, in_redis: Store) -> None:
    user = USERS[5]
    kept = redis.client.getdel(f"{PREFIX}{user}")
    assert in_redis.ask(user)["degraded"] == MISSING
    redis.client.set(f"{PREFIX}{user}", kept)


@pytest.mark.parametrize("content", [b"\xff", b"[1]", b'{"city": '])
def test_what_is_no_profile_is_told(redis: RunningRedis, in_redis: Store, content: bytes) -> None:
    user = USERS[5]
    kept = redis.client.get(f"{PREFIX}{user}")
    written(redis, user, content)
    found, before = in_redis.ask(user), failures(in_redis.server, "unreadable")
    assert found["degraded"] == ["profile_store:unreadable", *MISSING]
    expected = in_redis.served.retrieve(user, 5, include_seen=True)
    assert found["candidates"] == answer_of(expected)
    assert before >= 1
    redis.client.set(f"{PREFIX}{user}", kept)
    same(in_redis.ask(user), in_redis.expected(user))


def failures(server: RunningServer, reason: str) -> float:
    return server.metric("twotower_profile_store_failures_total", reason=reason)


def in_time(found: Any) -> Any:
    """An answer, unless Redis was too slow for it."""
    return None if "profile_store:no_answer" in (found["degraded"] or []) else found


def test_a_redis_that_does_not_answer_costs_a_note_and_never_the_answer(
    redis: RunningRedis, in_redis: Store
) -> None:
    """Frozen, it is waited for as long as allowed; thawed, late answers reach nobody else."""
    server, before = in_redis.server, failures(in_redis.server, "timeout")
    redis.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = in_redis.ask(USERS[1])
        assert time.monotonic() - began < 10, "the answer waited for Redis"
        assert found["degraded"] == ["profile_store:no_answer", *MISSING]
        expected = in_redis.served.retrieve(USERS[1], 5, include_seen=True)
        assert found["candidates"] == answer_of(expected)
        body = {"user_id": USERS[1]}
        late = server.ask("POST", "/v1/retrieve", body, X_Request_Timeout_Ms="20")
        assert late.status == 504
        assert failures(server, "timeout") == before + 2
        assert server.readiness()["status"] == "ready"
    finally:
        redis.process.send_signal(signal.SIGCONT)
    for user in USERS:
        written(redis, user, {**profiles()[user], "age": 33})
        found = eventually(lambda: in_time(in_redis.ask(user)))  # noqa: B023
        same(found, in_redis.expected(user, features={"age": 33}))
    fill_profiles(settings_of(redis), profiles().items(), len(USERS))


def test_a_wrong_password_is_in_no_log(redis: RunningRedis, tmp_path: Path) -> None:
    wrong = settings_of(redis)
    wrong = msgspec.structs.replace(wrong, url=redis.url.replace(PASSWORD, "hunter2"))
    for store in serving(tmp_path, wrong):
        assert store.ask(USERS[1])["degraded"] == ["profile_store:no_answer", *MISSING]
        assert failures(store.server, "connection") == 1
    log = (tmp_path / "log").read_text()
    assert "serving" in log
    assert "hunter2" not in log


@pytest.mark.parametrize("url", ["http://:secret@h", "127.0.0.1:6379"])
def test_a_url_of_something_else_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="begins with redis://") as refused:
        ProfileSettings(url=url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://:se#cret@host:6379/0", "redis://:se/cret@h:6379"])
def test_a_password_that_must_be_encoded_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="percent-encode") as refused:
        ProfileSettings(url=url)
    assert "cret" not in str(refused.value)


def test_an_option_of_the_client_that_is_wrong_is_one_clear_error() -> None:
    pytest.importorskip("redis", reason="redis is not installed")
    wrong = ProfileSettings(store="redis", url="redis://:secret@127.0.0.1:1/0?socket_timeout=abc")
    with pytest.raises(ConfigError, match=r"serving\.profiles\.url") as refused:
        fill_profiles(wrong, [], 0)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"serving\.profiles\.url"):
        open_profiles(wrong)


def test_a_feature_that_the_import_has_not_is_named() -> None:
    data = cast(ImportedData, SimpleNamespace(users=lambda: pl.DataFrame({"user_id": [7]})))
    with pytest.raises(NotReady, match="expected the feature 'joined' of users in the import"):
        imported_profiles(data, {"joined": FeatureSettings(kind="numeric")})


def test_nobody_there_takes_no_profiles() -> None:
    pytest.importorskip("redis", reason="redis is not installed")
    nobody = ProfileSettings(store="redis", url="redis://:secret@127.0.0.1:1/0")
    with pytest.raises(NotReady, match="0 of 12 are written") as refused:
        fill_profiles(nobody, profiles().items(), len(USERS))
    assert "secret" not in str(refused.value)


@pytest.fixture
def own_log(redis: RunningRedis, tmp_path: Path) -> Path:
    """An imported project whose profiles are in Redis."""
    shutil.copytree(OWN_LOG, tmp_path, ignore=IGNORED, dirs_exist_ok=True)
    config = tmp_path / "twotower.toml"
    with config.open("a") as file:
        file.write(f'\n[serving.profiles]\nstore = "redis"\nurl = "{redis.url}"\nprefix = "log:"\n')
    call(tmp_path, "import")
    return tmp_path


def test_fill_writes_what_training_encodes(redis: RunningRedis, own_log: Path) -> None:
    """Twice the same; foreign keys stay; every profile encodes to what the column encodes to."""
    redis.client.set("log:somebody-else", "{}")
    users = ImportedData.open(own_log / "twotower-data").users()
    project = load_project(own_log / "twotower.toml")
    assert users is not None
    assert project.users is not None
    assert call_json(own_log, "profiles", "fill") == {"written": len(users)}
    keys = sorted(redis.client.keys("log:*"))
    assert f"{len(users)} profiles written" in call(own_log, "profiles", "fill")
    assert sorted(redis.client.keys("log:*")) == keys
    assert len(keys) == len(users) + 1
    spec = FeatureSpec.fit(project.users.features, users)
    encoded = spec.encode(users, CUT_MS)
    for row, user in enumerate(users["user_id"]):
        stored = json.loads(redis.client.get(f"log:{user}"))
        assert None not in stored.values()
        one = spec.encode_one(stored, CUT_MS)[0]
        for mine, column in zip(one, encoded, strict=True):
            np.testing.assert_array_equal(mine[0], column[row])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso"])
def test_times_are_written_in_the_unit_that_a_request_has(unit: TimeUnit) -> None:
    feature = FeatureSettings(kind="timestamp", unit=unit)
    times = pl.Series("joined", [CUT_MS - 123, None]).cast(pl.Datetime("ms", "UTC"))
    users = pl.DataFrame({"user_id": [7, 8], "joined": times})
    given = dict(readable_profiles(users, {"joined": feature}))
    assert given[8] == {}
    field = FeatureSpec.fit({"joined": feature}, times.to_frame()).fields[0]
    assert field.measure(json.loads(json.dumps(given[7]))["joined"]) == pytest.approx(
        CUT_MS - 123, rel=1e-12
    )


def test_fill_needs_redis_as_the_store(own_log: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected serving.profiles.store = \"redis\""):
        call(own_log, "--set", "serving.profiles.store=generation", "profiles", "fill")


def test_settings_are_shown_without_the_password(own_log: Path) -> None:
    for text in (call(own_log, "config", "show"), str(call_json(own_log, "config", "show"))):
        assert PASSWORD not in text
        assert re.search(r"redis://:\*\*\*@127.0.0.1:\d+/0", text)


def test_retrieve_on_the_command_line_looks_in_redis(redis: RunningRedis, tmp_path: Path) -> None:
    user = USERS[1]
    store = ModelStore(tmp_path / "twotower-data")
    store.activate(publish_marked(store, 1))
    lines = f'[serving.profiles]\nstore = "redis"\nurl = "{redis.url}"\nprefix = "cli:"\n'
    (tmp_path / "twotower.toml").write_text(PROJECT + lines)
    redis.client.set(f"cli:{user}", b'{"city": "Atlantis", "age": 3, "tags": "a", "joined": 0}')
    found = call_json(tmp_path, "retrieve", "--user", str(user))
    assert found["degraded"] == ["feature:city=unseen"]


def test_the_doctor_asks_redis(own_log: Path) -> None:
    def profile_store(*words: str) -> Any:
        checks = call_json(own_log, *words, "doctor")
        found = checks if isinstance(checks, list) else checks["findings"]
        return next(one for one in found if one["check"] == "profile store")

    assert profile_store()["found"].startswith("redis: answered in")
    nobody = "serving.profiles.url=redis://:hunter2@127.0.0.1:1/0"
    found = profile_store("--set", nobody)
    assert (found["verdict"], found["found"]) == ("warning", "profile_store:no_answer")
    assert "hunter2" not in str(found)
    assert profile_store("--set", "serving.profiles.store=generation")["found"] == "generation"
