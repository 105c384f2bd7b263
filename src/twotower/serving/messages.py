"""What goes over the wire: requests, answers and problems, as structs that decode and document.

The OpenAPI document is made from these structs and requests are decoded by them, so the two
cannot differ. A problem follows RFC 9457.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from twotower.errors import suggestion

__all__ = [
    "MAX_K",
    "Degraded",
    "Fault",
    "Problem",
    "RefusedRequest",
    "RetrieveAnswer",
    "RetrieveRequest",
    "RetrievedItem",
    "decode_retrieve",
]

MAX_K: Final = 1000
_MAX_IDS: Final = 10_000
_MAX_FEATURES: Final = 256

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


class RetrieveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a user gets, and what made it."""

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
    degraded: Degraded
    candidates: list[RetrievedItem]


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request."""

    path: Annotated[str, Meta(description="Where: `$.features.city`.")]
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why there is no answer: RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Fault] = []


class RefusedRequest(Exception):
    """A request that gets a problem instead of an answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        faults: list[Fault] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults or []
        self.headers = headers


_DECODER: Final = msgspec.json.Decoder(RetrieveRequest)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_FIELDS: Final = list(RetrieveRequest.__struct_fields__)


def decode_retrieve(body: bytes) -> RetrieveRequest:
    """Return the request in `body`.

    Raises:
        RefusedRequest: it is no JSON (400), or not such a request (422, with the path).
    """
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        fault = _fault(str(error))
        raise RefusedRequest(422, f"{fault.detail} at {fault.path}", faults=[fault]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedRequest(400, f"expected a JSON object as the body: {error}") from None


def _fault(message: str) -> Fault:
    """Put msgspec's message into the house's form: where, expected, found."""
    text, _, place = message.partition(" - at ")
    path = place.strip("`") or "$"
    if unknown := _UNKNOWN.fullmatch(text):
        name = unknown[1]
        known = f"known: {', '.join(_FIELDS)}{suggestion(name, _FIELDS)}"
        return Fault(f"{path}.{name}", f"unknown field '{name}'; {known}")
    text = text.replace("`", "'").replace(", got ", ", found ")
    return Fault(path, f"{text[:1].lower()}{text[1:]}")
