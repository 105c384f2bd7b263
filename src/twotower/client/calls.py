"""What can be asked of a server: each call is written here once, for both clients.

A call is data: what to send, and the struct that its answer is decoded into. The structs are
those of the server, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from twotower.data.event_log.receipt import Receipt
from twotower.data.events import Event
from twotower.serving.messages import (
    BatchAnswer,
    BatchRequest,
    Condition,
    FeatureValue,
    RetrieveAnswer,
    RetrieveRequest,
)
from twotower.serving.status import Readiness

__all__ = ["Alive", "Call", "events", "health", "readiness", "retrieve", "retrieve_batch"]

T = TypeVar("T")
_NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what its answer is."""

    method: str
    path: str
    answer: type[T]
    body: bytes | None = None
    content_type: str = "application/json"
    is_idempotent: bool = True
    """Whether sending it twice is as good as once, so that it may be tried again."""
    answers_with: frozenset[int] = frozenset({200})
    """Statuses that carry `answer`; any other one is an error."""


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


def retrieve(
    user_id: int | str,
    k: int = 20,
    *,
    features: Mapping[str, FeatureValue] | None = None,
    recent: Sequence[int | str] | None = None,
    exclude: Sequence[int | str] = (),
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
    return Call("POST", "/v1/retrieve", RetrieveAnswer, msgspec.json.encode(request))


def retrieve_batch(requests: Iterable[RetrieveRequest]) -> Call[BatchAnswer]:
    """Return the answers to several requests, in their order, all from one generation.

    A request that is wrong costs the others nothing: each result has an answer or a problem.

    Args:
        requests: 1 to 256.
    """
    body = msgspec.json.encode(BatchRequest(requests=list(requests)))
    return Call("POST", "/v1/retrieve:batch", BatchAnswer, body)


def events(events: Iterable[Event]) -> Call[Receipt]:
    """Send events; return what became of each row. An event that is sent twice is stored once.

    Args:
        events: As many as the collector's body limit allows, some ten thousand.
    """
    body = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    return Call("POST", "/v1/events", Receipt, body, _NDJSON, answers_with=frozenset({202}))


def health() -> Call[Alive]:
    """Return once the server's process answers."""
    return Call("GET", "/healthz", Alive)


def readiness() -> Call[Readiness]:
    """Return whether the server should get requests, and each reason; not ready is no error."""
    return Call("GET", "/readyz", Readiness, answers_with=frozenset({200, 503}))
