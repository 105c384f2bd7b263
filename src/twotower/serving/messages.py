"""What goes over the wire when somebody retrieves: structs that decode and document.

The OpenAPI document is made from these structs and requests are decoded by them, so the two
cannot differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from twotower.serving.problems import Problem

__all__ = [
    "MAX_BATCH",
    "MAX_K",
    "BatchAnswer",
    "BatchRequest",
    "BatchResult",
    "Condition",
    "ExplainAnswer",
    "ExplainRequest",
    "ItemContributions",
    "MadeBy",
    "NearClick",
    "RetrieveAnswer",
    "RetrieveRequest",
    "RetrievedItem",
    "SimilarAnswer",
    "SimilarRequest",
    "UserContributions",
]

MAX_K: Final = 1000
MAX_BATCH: Final = 256
_MAX_IDS: Final = 10_000
_MAX_FEATURES: Final = 256
_MAX_CONDITIONS: Final = 32
_MAX_VALUES: Final = 1000

ItemId = (
    Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    | Annotated[str, Meta(min_length=1, max_length=512)]
)
Plain = bool | int | float | str | None
FeatureValue = Plain | list[Plain]
Degraded = Annotated[
    list[str] | None,
    Meta(
        description="Why the answer is less than it could be, such as `unknown_user` or "
        "`feature:city=unseen`; null where it is not."
    ),
]


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a feature of an item must be; with nothing but its name, that it is known.

    Everything that is given must hold. `null` among the values is an item without one.
    """

    feature: Annotated[str, Meta(min_length=1, max_length=256)]
    any_of: Annotated[
        Annotated[list[Plain], Meta(max_length=_MAX_VALUES)] | None,
        Meta(description="It has one of these values; of a multi-valued feature, at least one."),
    ] = None
    none_of: Annotated[
        Annotated[list[Plain], Meta(max_length=_MAX_VALUES)] | None,
        Meta(description="It has none of these values."),
    ] = None
    at_least: Annotated[float | str | None, Meta(description="Of a number, or of a time.")] = None
    at_most: Annotated[float | str | None, Meta(description="Of a number, or of a time.")] = None


Filter = Annotated[
    list[Condition],
    Meta(max_length=_MAX_CONDITIONS, description="Conditions that every item returned meets."),
]


class RetrieveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which user, and how many items."""

    user_id: Annotated[ItemId, Meta(description="The log's ID; one never seen is no error.")]
    k: Annotated[int, Meta(ge=1, le=MAX_K, description="How many items.")] = 20
    features: Annotated[
        dict[str, FeatureValue],
        Meta(
            max_length=_MAX_FEATURES,
            description="Profile of the user: wins over the stored one, name by name.",
        ),
    ] = {}
    exclude: Annotated[
        list[ItemId], Meta(max_length=_MAX_IDS, description="Items not to return.")
    ] = []
    filter: Filter = []
    recent: Annotated[
        Annotated[list[ItemId], Meta(max_length=_MAX_IDS)] | None,
        Meta(description="Newest clicks, oldest first, instead of the stored ones."),
    ] = None
    include_seen: Annotated[bool, Meta(description="Return items that the user has seen, too.")] = (
        False
    )
    display: Annotated[
        bool, Meta(description="Add each item's display fields, such as its title.")
    ] = False


class RetrievedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of an answer."""

    item_id: int | str
    score: Annotated[
        float,
        Meta(description="The cosine, a float32; with a popularity coordinate, inner product."),
    ]
    rank: Annotated[int, Meta(ge=1, description="1 is the best.")]
    display: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class MadeBy(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer was made from."""

    generation: Annotated[str, Meta(description="Of the tower, the tables and the index.")]
    sequence: Annotated[int, Meta(ge=1, description="Of its activation; only grows.")]
    delta: Annotated[
        int | None,
        Meta(description="The last one applied over it; null: the generation as published."),
    ]
    items_number: Annotated[
        int | None,
        Meta(description="The last change of the day's items in it; null before the first."),
    ]
    user_state_offset: Annotated[
        int | None,
        Meta(
            description="Of the event log: what users did before it counts; null: what the "
            "generation knows."
        ),
    ]
    request_id: str


class RetrieveAnswer(MadeBy, frozen=True, kw_only=True):
    """What a user gets, and what made it."""

    degraded: Degraded
    candidates: list[RetrievedItem]


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Several requests; one that is wrong costs the others nothing."""

    requests: Annotated[
        list[RetrieveRequest],
        Meta(min_length=1, max_length=MAX_BATCH, description="As for `/v1/retrieve`."),
    ]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One request's result: an answer or a problem."""

    answer: RetrieveAnswer | msgspec.UnsetType = msgspec.UNSET
    problem: Problem | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(MadeBy, frozen=True, kw_only=True):
    """The results, in the order of the requests, all from what is named here."""

    results: list[BatchResult]


class SimilarRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Items, and how many that are like them."""

    item_ids: Annotated[
        list[ItemId],
        Meta(min_length=1, max_length=100, description="Of several, their mean direction."),
    ]
    k: Annotated[int, Meta(ge=1, le=MAX_K, description="How many items.")] = 20
    exclude: Annotated[
        list[ItemId], Meta(max_length=_MAX_IDS, description="Items not to return.")
    ] = []
    filter: Filter = []
    display: bool = False


class SimilarAnswer(MadeBy, frozen=True, kw_only=True):
    """Items like those that were named, which are not among them; scores are cosines."""

    degraded: Degraded
    candidates: list[RetrievedItem]


class ExplainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which user, and which item."""

    user_id: ItemId
    item_id: ItemId
    features: Annotated[dict[str, FeatureValue], Meta(max_length=_MAX_FEATURES)] = {}
    recent: Annotated[list[ItemId], Meta(max_length=_MAX_IDS)] | None = None
    num_clicks: Annotated[int, Meta(ge=0, le=100, description="How many near clicks.")] = 10
    display: bool = False


class NearClick(msgspec.Struct, frozen=True, kw_only=True):
    """One of the user's recent clicks."""

    item_id: int | str
    cosine: Annotated[float, Meta(description="Of its vector and the item's.")]
    display: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class UserContributions(msgspec.Struct, frozen=True, kw_only=True):
    """By how much the score falls without one thing that is known of the user."""

    id: Annotated[float, Meta(description="The row of the user ID, against that of unknown IDs.")]
    recent: Annotated[float, Meta(description="All recent clicks.")]
    features: dict[str, float]


class ItemContributions(msgspec.Struct, frozen=True, kw_only=True):
    """By how much the score falls without one thing that is known of the item."""

    id: Annotated[float, Meta(description="The row of the item ID, against that of unknown IDs.")]
    popularity: Annotated[float, Meta(description="0 where scores have no popularity.")]
    features: dict[str, float]


class ExplainAnswer(MadeBy, frozen=True, kw_only=True):
    """Why this user gets this item, or does not."""

    degraded: Degraded
    score: float
    rank: Annotated[
        int | None, Meta(description="Among all items that can be found; null below 1000.")
    ]
    hidden_because: Annotated[
        list[Literal["seen", "withdrawn", "not_in_corpus"]],
        Meta(description="Why no answer to this user holds it, whatever its score."),
    ]
    nearest_clicks: Annotated[list[NearClick], Meta(description="The nearest first.")]
    user: UserContributions
    item: ItemContributions
