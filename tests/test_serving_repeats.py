"""Receipts that are remembered: who waits, who is refused, what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from twotower.serving.exchange import Reply
from twotower.serving.problems import RefusedRequest
from twotower.serving.repeats import Repeats


class Disk:
    """Stores when it is let, and counts."""

    def __init__(self, body: bytes = b"receipt") -> None:
        self.may_go = asyncio.Event()
        self.num_stored = 0
        self.body = body

    async def store(self) -> Reply:
        await self.may_go.wait()
        self.num_stored += 1
        return Reply(202, self.body)


def stored_by(disk: Disk) -> Callable[[], Awaitable[Reply]]:
    disk.may_go.set()
    return disk.store


def test_one_that_comes_meanwhile_waits_for_the_first() -> None:
    async def run() -> None:
        repeats, disk = Repeats(10), Disk()
        both = [asyncio.ensure_future(repeats.once("a", b"k", b"x", disk.store)) for _ in range(2)]
        await asyncio.sleep(0)
        disk.may_go.set()
        first, second = await asyncio.gather(*both)
        assert (first.body, second.body, disk.num_stored) == (b"receipt", b"receipt", 1)
        assert (first.headers, second.headers) == ((), ((b"idempotent-replayed", b"true"),))

    asyncio.run(run())


def test_who_waits_for_one_that_is_given_up_is_told_to_come_again() -> None:
    async def run() -> None:
        repeats, disk = Repeats(10), Disk()
        first, second = (
            asyncio.ensure_future(repeats.once("a", b"k", b"x", disk.store)) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(RefusedRequest, match="given up") as refused:
            await second
        assert refused.value.status == 503
        assert (await repeats.once("a", b"k", b"x", stored_by(disk))).headers == ()

    asyncio.run(run())


def test_each_api_key_has_its_own() -> None:
    async def run() -> None:
        repeats, disk = Repeats(10), Disk()
        for owner in ("a", "b", None):
            await repeats.once(owner, b"k", owner.encode() if owner else b"", stored_by(disk))
        assert disk.num_stored == 3

    asyncio.run(run())


@pytest.mark.parametrize(("num_keys", "size"), [(2, 1), (10_000, 6_000_000)])
def test_the_oldest_are_forgotten(num_keys: int, size: int) -> None:
    async def run() -> None:
        repeats, disk = Repeats(num_keys), Disk(b"r" * size)
        for key in (b"1", b"2", b"3", b"3", b"2", b"1"):
            await repeats.once(None, key, b"x", stored_by(disk))
        assert disk.num_stored == 4  # of the two that are kept, neither again

    asyncio.run(run())
