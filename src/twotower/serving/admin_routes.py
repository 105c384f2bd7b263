"""`/v1/generations` and `/v1/items`: what the commands of the same names do, over HTTP.

The work runs in threads of its own, because it reads and fsyncs files; the workers follow as they
follow the commands. Every change is logged, and what an activation is recorded with names the
request, and the key where there is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import msgspec

from twotower.publishing.activation import Activation
from twotower.publishing.day_items import add_items, restore_items, withdraw_items
from twotower.publishing.item_register import DayItem, ItemRegister, read_register
from twotower.publishing.listing import list_generations, show
from twotower.publishing.manifest import is_name
from twotower.publishing.retention import pin, pins, unpin
from twotower.publishing.store import ModelStore
from twotower.serving.admin_messages import (
    MAX_REASON,
    ActivateRequest,
    AddedItems,
    AddItemsRequest,
    ItemFields,
    ItemList,
    NoFields,
    PinRequest,
    Pins,
    RestoreRequest,
    RollBackRequest,
    WithdrawnItems,
)
from twotower.serving.decoding import BodyDecoder
from twotower.serving.exchange import Call, Reply
from twotower.serving.problems import Fault, RefusedRequest
from twotower.serving.refusals import as_problems
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import served_now

__all__ = ["GenerationRoutes", "ItemRoutes"]

_LOGGER: Final = logging.getLogger("twotower")
_ACTIVATE: Final = BodyDecoder(ActivateRequest)
_ROLL_BACK: Final = BodyDecoder(RollBackRequest)
_PIN: Final = BodyDecoder(PinRequest)
_UNPIN: Final = BodyDecoder(NoFields)
_ADD: Final = BodyDecoder(AddItemsRequest)
_PUT: Final = BodyDecoder(ItemFields)
_RESTORE: Final = BodyDecoder(RestoreRequest)


async def _aside(threads: Executor, work: Callable[[], Any]) -> Reply:
    """Return what the work returns as JSON; what it refuses becomes a problem."""

    def done() -> bytes:
        with as_problems():
            return msgspec.json.encode(work())

    return Reply(200, await asyncio.get_running_loop().run_in_executor(threads, done))


def _who(call: Call) -> str:
    """Return who changes something, for the audit."""
    key = call.scope["state"].get("key")
    return f"uid {os.getuid()}, request {call.request_id}{f', key {key}' if key else ''}"


def _log(call: Call, action: str, what: object) -> None:
    _LOGGER.info("admin action=%s of=%r by=%r", action, what, _who(call))


class GenerationRoutes:
    """Lists, shows, activates, rolls back and pins generations of one store."""

    def __init__(
        self, store: ModelStore, threads: Executor, announce: Callable[[Activation], object]
    ) -> None:
        """`announce` tells others what became live; see `twotower.serving.project`."""
        self._store = store
        self._threads = threads
        self._announce = announce

    async def list_all(self, call: Call) -> Reply:
        """Return every generation."""
        return await _aside(self._threads, lambda: list_generations(self._store, pins(self._store)))

    async def show(self, call: Call) -> Reply:
        """Return one."""
        name = self._named(call)
        return await _aside(self._threads, lambda: show(self._store, name, pins(self._store)))

    async def activate(self, call: Call) -> Reply:
        """Verify one and make it live."""
        name, how = self._named(call), _ACTIVATE.decode(call.body)

        def work() -> Activation:
            return self._store.activate(
                name,
                force=how.force,
                reason=how.reason,
                dry_run=how.dry_run,
                only_after=how.only_after,
                by=_who(call),
            )

        return await self._change(call, "activate", name, work, how.dry_run)

    async def roll_back(self, call: Call) -> Reply:
        """Return from the one that is named, if it is live, to the one before it."""
        name, how = self._named(call), _ROLL_BACK.decode(call.body)

        def work() -> Activation:
            return self._store.roll_back(
                reason=how.reason, dry_run=how.dry_run, only_from=name, by=_who(call)
            )

        return await self._change(call, "roll_back", name, work, how.dry_run)

    async def _change(
        self, call: Call, action: str, name: str, work: Callable[[], Activation], dry_run: bool
    ) -> Reply:
        def changed() -> Activation:
            activation = work()
            if not dry_run:
                _log(call, action, name)
                self._announce(activation)
            return activation

        return await _aside(self._threads, changed)

    async def pin(self, call: Call) -> Reply:
        """Keep one through every prune."""
        name, reason = self._named(call), _PIN.decode(call.body).reason

        def work() -> Pins:
            pin(self._store, name, reason)
            _log(call, "pin", name)
            return Pins(pinned=pins(self._store))

        return await _aside(self._threads, work)

    async def unpin(self, call: Call) -> Reply:
        """Let one go with a later prune."""
        name = self._named(call)
        _UNPIN.decode(call.body)

        def work() -> Pins:
            unpin(self._store, name)
            _log(call, "unpin", name)
            return Pins(pinned=pins(self._store))

        return await _aside(self._threads, work)

    def _named(self, call: Call) -> str:
        """Return the generation that the path names; a name becomes a path, so it must be plain."""
        name = call.values["generation"]
        if not is_name(name) or not os.path.lexists(self._store.root / name):
            raise RefusedRequest(404, f"there is no generation {name[:80]!r}")
        return name


class ItemRoutes:
    """Adds, withdraws, restores and lists items within the day."""

    def __init__(self, data_path: Path, follower: Follower, threads: Executor) -> None:
        self._data_path = data_path
        self._follower = follower
        self._threads = threads

    async def list_all(self, call: Call) -> Reply:
        """Return what the day added and withdrew."""

        def work() -> ItemList:
            found = read_register(self._data_path)
            return ItemList(number=found.number, added=found.added, withdrawn=found.withdrawn)

        return await _aside(self._threads, work)

    async def add(self, call: Call) -> Reply:
        """Add items with their features; all or none."""
        given = _ADD.decode(call.body).items
        return await self._add(call, [_day_item(new.item_id, new) for new in given])

    async def put(self, call: Call) -> Reply:
        """Add one item, or replace its features."""
        return await self._add(call, [_day_item(call.values["item_id"], _PUT.decode(call.body))])

    async def _add(self, call: Call, items: list[DayItem]) -> Reply:
        served = served_now(self._follower)

        def work() -> AddedItems:
            retriever = served.retriever
            found = add_items(self._data_path, retriever.base, retriever.encoder, items)
            _log(call, "add_items", len(found.added))
            return AddedItems(number=found.register.number, added=found.added, known=found.known)

        return await _aside(self._threads, work)

    async def withdraw(self, call: Call) -> Reply:
        """Keep one item from everybody."""
        item_id, reason = call.values["item_id"], _reason(call)
        encoder = served_now(self._follower).retriever.encoder

        def work() -> WithdrawnItems:
            changed = withdraw_items(self._data_path, encoder, [item_id], reason)
            _log(call, "withdraw", item_id)
            return _withdrawn(changed)

        return await _aside(self._threads, work)

    async def restore(self, call: Call) -> Reply:
        """Let everybody have items again."""
        item_ids = _RESTORE.decode(call.body).item_ids
        encoder = served_now(self._follower).retriever.encoder

        def work() -> WithdrawnItems:
            changed = restore_items(self._data_path, encoder, item_ids)
            _log(call, "restore", len(item_ids))
            return _withdrawn(changed)

        return await _aside(self._threads, work)


def _reason(call: Call) -> str:
    reason = call.query.get("reason", "")
    if len(reason) > MAX_REASON:
        detail = f"expected a reason of at most {MAX_REASON} letters"
        raise RefusedRequest(422, detail, faults=[Fault("?reason", detail)])
    return reason


def _day_item(item_id: int | str, fields: ItemFields) -> DayItem:
    return DayItem(item_id=item_id, features=fields.features, display=fields.display)


def _withdrawn(register: ItemRegister) -> WithdrawnItems:
    return WithdrawnItems(number=register.number, withdrawn=register.withdrawn)
