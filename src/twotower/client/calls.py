"""What everybody asks a server: each call is written here once, for both clients.

Requests and answers are the structs of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from twotower.client.call import Call, Id, call_of
from twotower.data.event_log.receipt import Receipt
from twotower.data.events import Event
from twotower.serving.messages import (
    BatchAnswer,
    BatchRequest,
    Condition,
    ExplainAnswer,
    ExplainRequest,
    FeatureValue,
    RetrieveAnswer,
    RetrieveRequest,
    SimilarAnswer,
    SimilarRequest,
)
from twotower.serving.status import Readiness

__all__ = [
    "Alive",
    "events",
    "explain",
    "health",
    "readiness",
    "retrieve",
    "retrieve_batch",
    "similar",
]


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


def retrieve(
    user_id: Id,
    k: int = 20,
    *,
    features: Mapping[str, FeatureValue] | None = None,
    recent: Sequence[Id] | None = None,
    exclude: Sequence[Id] = (),
    filter: Sequence[Condition] = (),  # noqa: A002 -- the name of the field
    include_seen: bool = False,
    display: bool = False,
) -> Call[RetrieveAnswer]:
    """Return the `k` best items for a user; a user never seen is no error.

    Args:
        user_id: The log's ID.
        k: How many, 1 to 1000.
        features: Override the stored profile; what is not named keeps its stored value.
        recent: The user's newest clicks, oldest first, instead of those that are known.
        exclude: Items not to return.
        filter: Conditions that every item returned meets.
        include_seen: Return items too that the user has seen.
        display: Add each item's title or features.
    """
    request = RetrieveRequest(
        user_id=user_id,
        k=k,
        features=dict(features or {}),
        recent=None if recent is None else list(recent),
        exclude=list(exclude),
        filter=list(filter),
        include_seen=include_seen,
        display=display,
    )
    return call_of("retrieve", RetrieveAnswer, request)


def retrieve_batch(requests: Iterable[RetrieveRequest]) -> Call[BatchAnswer]:
    """Return the answers to several requests, in their order, all from one generation.

    A request that is wrong costs the others nothing: each result has an answer or a problem.

    Args:
        requests: 1 to 256.
    """
    return call_of("retrieve_batch", BatchAnswer, BatchRequest(requests=list(requests)))


def similar(
    item_ids: Sequence[Id],
    k: int = 20,
    *,
    exclude: Sequence[Id] = (),
    filter: Sequence[Condition] = (),  # noqa: A002 -- the name of the field
    display: bool = False,
) -> Call[SimilarAnswer]:
    """Return the `k` items most like these; of several, like their mean direction."""
    request = SimilarRequest(
        item_ids=list(item_ids), k=k, exclude=list(exclude), filter=list(filter), display=display
    )
    return call_of("similar", SimilarAnswer, request)


def explain(
    user_id: Id,
    item_id: Id,
    *,
    features: Mapping[str, FeatureValue] | None = None,
    recent: Sequence[Id] | None = None,
    num_clicks: int = 10,
    display: bool = False,
) -> Call[ExplainAnswer]:
    """Return why a user gets an item, or does not: score, rank, near clicks, contributions."""
    request = ExplainRequest(
        user_id=user_id,
        item_id=item_id,
        features=dict(features or {}),
        recent=None if recent is None else list(recent),
        num_clicks=num_clicks,
        display=display,
    )
    return call_of("explain", ExplainAnswer, request)


def events(events: Iterable[Event]) -> Call[Receipt]:
    """Send events; return what became of each row. An event that is sent twice is stored once.

    Args:
        events: As many as the collector's body limit allows, some ten thousand.
    """
    return call_of("events", Receipt, list(events))


def health() -> Call[Alive]:
    """Return once the server's process answers."""
    return call_of("healthz", Alive)


def readiness() -> Call[Readiness]:
    """Return whether the server should get requests, and each reason; not ready is no error."""
    return replace(call_of("readyz", Readiness), answers_with=frozenset({200, 503}))
