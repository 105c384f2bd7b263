"""What changes the thing that is served: generations and the items of the day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from urllib.parse import urlencode

from twotower.client.call import Call, Id, call_of
from twotower.publishing.activation import Activation
from twotower.publishing.listing import GenerationList, ShownGeneration
from twotower.serving.admin_messages import (
    ActivateRequest,
    AddedItems,
    AddItemsRequest,
    ItemList,
    NewItem,
    NoFields,
    PinRequest,
    Pins,
    RestoreRequest,
    RollBackRequest,
    WithdrawnItems,
)

__all__ = [
    "activate",
    "add_items",
    "list_generations",
    "list_items",
    "pin",
    "restore_items",
    "roll_back",
    "show_generation",
    "unpin",
    "withdraw_item",
]


def list_generations() -> Call[GenerationList]:
    """Return every published generation, oldest first, and what is live."""
    return call_of("list_generations", GenerationList)


def show_generation(generation: str) -> Call[ShownGeneration]:
    """Return everything that a generation's manifest says."""
    return call_of("show_generation", ShownGeneration, generation=generation)


def activate(
    generation: str,
    *,
    reason: str = "",
    force: bool = False,
    dry_run: bool = False,
    only_after: int | None = None,
) -> Call[Activation]:
    """Verify a generation and make it live. Never sent twice.

    Args:
        generation: Its name.
        reason: Why, for the audit.
        force: Although gates refused it; the audit names them.
        dry_run: Check everything, change nothing.
        only_after: The sequence that must be the current one, 0 before the first.
    """
    request = ActivateRequest(reason=reason, force=force, dry_run=dry_run, only_after=only_after)
    return call_of("activate", Activation, request, once=True, generation=generation)


def roll_back(generation: str, *, reason: str = "", dry_run: bool = False) -> Call[Activation]:
    """Make the generation live again that was live before `generation`. Never sent twice."""
    request = RollBackRequest(reason=reason, dry_run=dry_run)
    return call_of("roll_back", Activation, request, once=True, generation=generation)


def pin(generation: str, *, reason: str = "") -> Call[Pins]:
    """Keep a generation through every prune; return all that are kept so, and why."""
    return call_of("pin", Pins, PinRequest(reason=reason), generation=generation)


def unpin(generation: str) -> Call[Pins]:
    """Let a generation go with a later prune; return those that are still kept."""
    return call_of("unpin", Pins, NoFields(), generation=generation)


def list_items() -> Call[ItemList]:
    """Return what the day added and withdrew."""
    return call_of("list_items", ItemList)


def add_items(items: Iterable[NewItem]) -> Call[AddedItems]:
    """Let users have items that came today, or replace their features; all or none."""
    return call_of("add_items", AddedItems, AddItemsRequest(items=list(items)))


def withdraw_item(item_id: Id, *, reason: str = "") -> Call[WithdrawnItems]:
    """Keep an item from everybody, in all workers within a second, until it is restored."""
    call = call_of("withdraw_item", WithdrawnItems, item_id=item_id)
    query = f"?{urlencode({'reason': reason})}" if reason else ""
    return replace(call, path=call.path + query)


def restore_items(item_ids: Sequence[Id]) -> Call[WithdrawnItems]:
    """Let everybody have withdrawn items again; return those that are withdrawn still."""
    return call_of("restore_items", WithdrawnItems, RestoreRequest(item_ids=list(item_ids)))
