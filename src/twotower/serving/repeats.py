"""`Idempotency-Key`: a body that is sent again under its key gets the receipt of the first time.

Events are stored once anyway, by their `event_id`; the key is for the receipt, which would call
them duplicates. Receipts live in the collector's memory, the newest within a number of keys and of
bytes: where one is forgotten, or the collector was started again, the body is judged anew. Only
what was stored is remembered: after a refusal the same key may try again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from twotower.serving.exchange import Reply
from twotower.serving.problems import RefusedRequest

__all__ = ["HEADER", "Repeats"]

HEADER: Final = b"idempotency-key"
_REPLAYED: Final = ((b"idempotent-replayed", b"true"),)
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_MAX_BYTES: Final = 16_000_000

_Named = tuple[str | None, bytes]
"""The API key and what it calls the request: nobody reads the receipts of others."""


class _Kept(NamedTuple):
    digest: bytes
    """Of the body."""
    reply: asyncio.Future[Reply]


class Repeats:
    """Receipts by key. All of it belongs to the thread of one event loop."""

    def __init__(self, num_keys: int) -> None:
        """Keep at most so many receipts; 0 keeps none."""
        self._num_keys = num_keys
        self._kept: OrderedDict[_Named, _Kept] = OrderedDict()
        self._num_bytes = 0

    async def once(
        self,
        owner: str | None,
        key: bytes | None,
        body: bytes,
        store: Callable[[], Awaitable[Reply]],
    ) -> Reply:
        """Return what `store` makes of the body, or made of it before under the same key.

        One that comes while the first is being stored waits for it.

        Raises:
            RefusedRequest: the key is malformed (400), or it came with another body (409).
        """
        if key is None:
            return await store()
        if not _KEY.fullmatch(key):
            raise RefusedRequest(
                400,
                "expected 1 to 255 visible ASCII characters as the Idempotency-Key, found others; "
                "nothing was stored: send the body again under such a key",
            )
        if not self._num_keys:
            return await store()
        named, digest = (owner, key), hashlib.sha256(body).digest()
        kept = self._kept.get(named)
        if kept is None:
            return await self._first(named, digest, store)
        if kept.digest != digest:
            detail = (
                "expected the body that this Idempotency-Key came with before, found another; "
                "nothing was stored: send it under a key of its own"
            )
            raise RefusedRequest(409, detail)
        reply = await asyncio.shield(kept.reply)
        return reply._replace(headers=(*reply.headers, *_REPLAYED))

    async def _first(
        self, named: _Named, digest: bytes, store: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        kept = _Kept(digest, asyncio.get_running_loop().create_future())
        self._kept[named] = kept
        try:
            reply = await store()
        except BaseException as error:
            del self._kept[named]
            _tell(kept.reply, error)
            raise
        kept.reply.set_result(reply)
        self._num_bytes += len(reply.body)
        self._forget()
        return reply

    def _forget(self) -> None:
        """Forget the oldest receipts beyond the limits; one that is being made stays."""
        too_many = len(self._kept) - self._num_keys
        too_long = self._num_bytes - _MAX_BYTES
        oldest: list[_Named] = []
        for named, kept in self._kept.items():
            if too_many <= len(oldest) and too_long <= 0:
                break
            if kept.reply.done():
                oldest.append(named)
                too_long -= len(kept.reply.result().body)
        for named in oldest:
            self._num_bytes -= len(self._kept.pop(named).reply.result().body)


def _tell(waiting: asyncio.Future[Reply], error: BaseException) -> None:
    """Let those who wait for the same receipt know why there is none."""
    if isinstance(error, asyncio.CancelledError):
        detail = "the first request with this Idempotency-Key was given up; send it again"
        error = RefusedRequest(503, detail, headers=((b"retry-after", b"1"),))
    waiting.set_exception(error)
    waiting.exception()  # there may be nobody, which is no fault
