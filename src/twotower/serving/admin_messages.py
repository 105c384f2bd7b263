"""What goes over the wire when somebody changes what is served: generations and items."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from twotower.publishing.item_register import DayItem, Withdrawn
from twotower.serving.messages import ItemId

__all__ = [
    "MAX_REASON",
    "ActivateRequest",
    "AddItemsRequest",
    "AddedItems",
    "ItemFields",
    "ItemList",
    "NewItem",
    "NoFields",
    "PinRequest",
    "Pins",
    "RestoreRequest",
    "RollBackRequest",
    "WithdrawnItems",
]

MAX_REASON: Final = 1000
_MAX_ITEMS: Final = 10_000

Reason = Annotated[str, Meta(max_length=MAX_REASON, description="Why, for the audit.")]


class NoFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing more to say."""


class ActivateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to make a generation live."""

    reason: Reason = ""
    force: Annotated[bool, Meta(description="Although gates refused it; the audit names them.")] = (
        False
    )
    dry_run: Annotated[bool, Meta(description="Check everything, change nothing.")] = False
    only_after: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="The sequence that must be the current one, 0 before the first."),
    ] = None


class RollBackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to return to the generation that was live before."""

    reason: Reason = ""
    dry_run: Annotated[bool, Meta(description="Check everything, change nothing.")] = False


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a generation stays through every prune."""

    reason: Reason = ""


class Pins(msgspec.Struct, frozen=True, kw_only=True):
    """The generations that no prune removes, and why."""

    pinned: dict[str, str]


class ItemFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an item is."""

    features: dict[str, Any] = {}
    display: Annotated[
        dict[str, Any], Meta(description="Shown beside it; its features where it is empty.")
    ] = {}


class NewItem(ItemFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item that came today."""

    item_id: ItemId


class AddItemsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Items to add, or whose features to replace; all or none."""

    items: Annotated[list[NewItem], Meta(min_length=1, max_length=_MAX_ITEMS)]


class AddedItems(msgspec.Struct, frozen=True, kw_only=True):
    """What became of them."""

    number: Annotated[int, Meta(description="An answer whose `items_number` is as large has them.")]
    added: list[int | str]
    known: Annotated[
        list[int | str], Meta(description="The live generation returns them; left as they are.")
    ]


class WithdrawnItems(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody gets any more."""

    number: Annotated[int, Meta(description="The change of the items that this is.")]
    withdrawn: list[Withdrawn]


class RestoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Items that everybody may have again."""

    item_ids: Annotated[list[ItemId], Meta(min_length=1, max_length=_MAX_ITEMS)]


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """The items of the day."""

    number: int
    added: list[DayItem]
    withdrawn: list[Withdrawn]
