"""Stored profiles that are elsewhere are fetched before a request is answered.

The routes answer in one go from one generation; waiting in the middle would mix what they read. So
the users that a body names are looked up first, all of them at once, and the call carries what was
found. A body that cannot be read names nobody: its route says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from twotower.data.ids import Id
from twotower.errors import DataError
from twotower.serving.exchange import Admission, Call, Handler, Queued, Reply
from twotower.serving.inference_messages import flat
from twotower.serving.messages import MAX_BATCH, ItemId
from twotower.serving.problems import RefusedRequest
from twotower.serving.profiles import ProfileStore
from twotower.serving.reload import Follower

__all__ = ["ProfileLookup"]


class _Asks(msgspec.Struct):
    user_id: ItemId


class _Batch(msgspec.Struct):
    requests: list[msgspec.Raw]


class _Tensor(msgspec.Struct):
    name: str
    data: list[Any] = []


class _Inference(msgspec.Struct):
    inputs: list[_Tensor]


_ASKS: Final = msgspec.json.Decoder(_Asks)
_BATCH: Final = msgspec.json.Decoder(_Batch)
_INFERENCE: Final = msgspec.json.Decoder(_Inference)


def _one(body: bytes | msgspec.Raw) -> list[Id]:
    try:
        return [_ASKS.decode(body).user_id]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _several(body: bytes) -> list[Id]:
    return [user for raw in _BATCH.decode(body).requests[:MAX_BATCH] for user in _one(raw)]


def _of_tensor(body: bytes) -> list[Id]:
    named = [t.data for t in _INFERENCE.decode(body).inputs if t.name == "user_id"]
    users = islice(flat(named[-1]) if named else (), MAX_BATCH)  # as the route reads them
    return [value for value in users if isinstance(value, int | str)]


_READERS: Final[Mapping[str, Callable[[bytes], list[Id]]]] = {
    "retrieve": _one,
    "explain": _one,
    "retrieve_batch": _several,
    "v2_infer": _of_tensor,
    "v2_infer_version": _of_tensor,
}
"""Which users a body names, of every route that answers about users."""


class ProfileLookup:
    """Puts the look-up before the routes that need it."""

    def __init__(self, store: ProfileStore, follower: Follower, admission: Admission) -> None:
        self._store = store
        self._follower = follower
        self._admission = admission

    def before(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return the handlers, with the look-up before those about users where it has to wait."""
        if self._store.is_at_hand:
            return dict(handlers)
        return {
            name: self._with(handler, _READERS[name]) if name in _READERS else handler
            for name, handler in handlers.items()
        }

    def _with(self, handler: Handler, users_of: Callable[[bytes], list[Id]]) -> Handler:
        return lambda call: Queued(self._answer(handler, users_of, call))

    async def _answer(
        self, handler: Handler, users_of: Callable[[bytes], list[Id]], call: Call
    ) -> Reply:
        call = await self._looked_up(users_of, call)
        began_s = time.perf_counter()
        reply = handler(call)
        if isinstance(reply, Reply):
            self._admission.worked(time.perf_counter() - began_s)
            return reply
        with self._admission.elsewhere():
            return await reply

    async def _looked_up(self, users_of: Callable[[bytes], list[Id]], call: Call) -> Call:
        """Return the call with the profiles of its users.

        Raises:
            RefusedRequest: its time passed meanwhile.
        """
        given = self._stored_form(users_of, call.body)
        if not given:
            return call
        within_s = call.deadline_s - time.perf_counter()
        found = await self._store.look_up(list(given.values()), within_s)
        if call.is_late:
            self._admission.request_shed("deadline")
            raise RefusedRequest(504, "the time that the client gave passed before the search")
        return call._replace(profiles=dict(zip(given, found, strict=True)))

    def _stored_form(self, users_of: Callable[[bytes], list[Id]], body: bytes) -> dict[Id, Id]:
        """Return the users of a body as given and as the log has them, none that cannot be one."""
        served, known = self._follower.served, dict[Id, Id]()
        if served is None:
            return known
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            for user in users_of(body):
                with contextlib.suppress(DataError):
                    known[user] = served.retriever.encoder.users.normal(user)
        return known
