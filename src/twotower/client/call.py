"""A call as data: what to send, and what its answer is.

Method, path and status come from the server's own table of routes, so the two cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from urllib.parse import quote

import msgspec

from twotower.serving.routes import ROUTES

__all__ = ["Call", "Id", "call_of"]

T = TypeVar("T")
Id = int | str
_ROUTES: Final = {route.name: route for route in ROUTES}


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
    takes_key: bool = False
    """Whether every attempt carries the same `Idempotency-Key`."""
    answers_with: frozenset[int] = frozenset({200})
    """Statuses that carry `answer`; any other one is an error."""


def call_of(
    name: str, answer: type[T], request: object = None, /, *, once: bool = False, **places: Id
) -> Call[T]:
    """Return the call of a route; `places` are the values in its path."""
    route = _ROUTES[name]
    quoted = {place: quote(str(value), safe="") for place, value in places.items()}
    return Call(
        method=route.method,
        path=route.path.format_map(quoted),
        answer=answer,
        body=None if request is None else msgspec.json.encode(request),
        is_idempotent=not once,
        takes_key=route.takes_key,
        answers_with=frozenset({route.status}),
    )
