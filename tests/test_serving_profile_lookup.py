"""A request that waits for a profile is in the queue all the time: overload must see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Iterator, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twotower.data.ids import Id
from twotower.serving.exchange import Call, Limits, Reply, answer_call
from twotower.serving.profile_lookup import ProfileLookup
from twotower.serving.profiles import OF_GENERATION, ProfileStore, StoredProfile
from twotower.serving.reload import Follower

NOBODY_SERVES = cast(Follower, SimpleNamespace(served=None))


class Elsewhere(ProfileStore):
    """A store that has to be waited for."""

    def __init__(self) -> None:
        self.asked: list[Id] = []

    @property
    def is_at_hand(self) -> bool:
        return False

    async def look_up(self, users: Sequence[Id], within_s: float) -> list[StoredProfile]:
        await asyncio.sleep(0)
        self.asked += users
        return [OF_GENERATION] * len(users)

    async def close(self) -> None:
        pass


class Watched:
    """What overload is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        self.told.append("elsewhere")
        yield

    def worked(self, seconds: float) -> None:
        self.told.append("worked")

    def request_shed(self, reason: str) -> None:
        self.told.append(reason)


def told_by(name: str, handler: Any) -> list[str]:
    watched = Watched()
    handlers = ProfileLookup(Elsewhere(), NOBODY_SERVES, watched).before({name: handler})

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b'{"user_id": 1}'}

    async def ask() -> Reply:
        headers = [(b"content-type", b"application/json")]
        scope = {"headers": headers, "state": {"request_id": "r"}}
        limits = Limits(1000, 5.0)
        return await answer_call(handlers[name], limits, watched, scope, {}, receive)

    assert asyncio.run(ask()).status == 200
    return watched.told


def answer(call: Call) -> Reply:
    return Reply(200, b"{}")


def answer_later(call: Call) -> Awaitable[Reply]:
    async def later() -> Reply:
        return answer(call)

    return later()


def test_a_search_after_the_look_up_counts_as_work_of_the_loop() -> None:
    assert told_by("retrieve", answer) == ["worked"]


def test_what_waits_for_a_thread_is_elsewhere_meanwhile() -> None:
    assert told_by("explain", answer_later) == ["elsewhere"]


def test_what_names_no_users_is_as_it_was() -> None:
    assert told_by("similar", answer) == ["worked"]


@pytest.mark.parametrize(
    ("inputs", "users"),
    [
        ([["user_id", [[712], [713]]]], [712, 713]),
        ([["user_id", [1]], ["country", [2]], ["user_id", ["a", True]]], ["a", True]),
        ([["user_id", list(range(1000))]], list(range(256))),
        ([["country", [2]]], []),
    ],
)
def test_the_users_of_an_inference_are_those_that_the_route_reads(
    inputs: list[tuple[str, list[Any]]], users: list[Id]
) -> None:
    store = Elsewhere()
    encoder = SimpleNamespace(users=SimpleNamespace(normal=lambda user: user))
    served = SimpleNamespace(retriever=SimpleNamespace(encoder=encoder))
    follower = cast(Follower, SimpleNamespace(served=served))
    handlers = ProfileLookup(store, follower, Watched()).before({"v2_infer": answer})
    body = json.dumps({"inputs": [{"name": name, "data": data} for name, data in inputs]}).encode()
    call = Call(body, "r", {}, time.perf_counter() + 60, {})

    async def ask() -> Reply:
        return await cast(Awaitable[Reply], handlers["v2_infer"](call))

    assert asyncio.run(ask()).status == 200
    assert store.asked == users
