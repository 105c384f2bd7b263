"""Why a request gets no answer: RFC 9457, `application/problem+json`, the same on every route."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

__all__ = ["CLOSE", "PROBLEMS", "Fault", "Header", "Problem", "RefusedRequest", "problem_body"]

Header = tuple[bytes, bytes]

CLOSE: Final = ((b"connection", b"close"),)
"""The header that ends a connection whose body was not read to its end."""
PROBLEMS: Final = {
    400: ("bad-request", "The request cannot be read"),
    401: ("unauthorized", "The request has no valid key"),
    403: ("forbidden", "The key does not allow this"),
    404: ("not-found", "There is nothing at this path"),
    405: ("method-not-allowed", "The path does not take this method"),
    408: ("request-timeout", "The body did not arrive in time"),
    409: ("conflict", "What is there does not allow this"),
    413: ("body-too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is not declared as JSON"),
    422: ("invalid-request", "The request is not valid"),
    429: ("too-many-requests", "More is asked than can be done now"),
    431: ("headers-too-large", "The headers are too large"),
    500: ("internal-error", "The server failed"),
    503: ("not-ready", "The server cannot answer yet"),
    504: ("deadline-expired", "The deadline of the request has passed"),
}
"""The last part of a problem's type, and its title, by status."""


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
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults or []
        self.headers = headers


def problem_body(status: int, detail: str, request_id: str, faults: Iterable[Fault] = ()) -> bytes:
    """Return a problem as RFC 9457 writes it."""
    name, title = PROBLEMS.get(status, ("refused", "The request was refused"))
    return msgspec.json.encode(
        Problem(
            type=f"urn:twotower:problem:{name}",
            title=title,
            status=status,
            detail=detail,
            request_id=request_id,
            errors=list(faults),
        )
    )
