"""Every route of the service in one table: path, method, who may ask, what goes in and comes out.

The front door finds requests' routes here, the OpenAPI document and its page are made from it, and
keys are checked against it. Free of the handlers, which `twotower.serving.handlers` adds by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from twotower.serving.keys import KeyScope
from twotower.serving.messages import (
    MAX_BATCH,
    MAX_K,
    BatchAnswer,
    BatchRequest,
    RetrieveAnswer,
    RetrieveRequest,
)
from twotower.serving.problems import RefusedRequest

__all__ = ["ROUTES", "Match", "Route", "RouteScope", "RouteTable"]

RouteScope = KeyScope | Literal["open"]
Method = Literal["GET", "POST", "PUT", "DELETE"]


class Route(NamedTuple):
    """One path under one method."""

    name: str
    """Of its handler, and its `operationId`."""
    method: Method
    path: str
    """With places such as `{generation}`, each a part between two slashes."""
    scope: RouteScope
    """What a key must allow; `open` asks for none."""
    summary: str
    description: str = ""
    request: Any = None
    """The type of its body, None where it takes none."""
    answer: Any = None
    """The type of its answer, None where the framework behind answers."""
    status: int = 200
    problems: tuple[int, ...] = ()
    """Those it has besides the ones that every route like it has."""
    media_types: tuple[str, ...] = ("application/json",)
    """Of its body."""
    query: tuple[tuple[str, str], ...] = ()
    """Names of the texts that its query may hold, and what they are."""

    @property
    def is_behind(self) -> bool:
        """Whether the framework behind the front door answers."""
        return self.answer is None


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "retrieve", "POST", "/v1/retrieve", "retrieve", "The items for a user",
        f"At most {MAX_K} items, the best first, from one generation.",
        RetrieveRequest, RetrieveAnswer, problems=(503,),
    ),
    Route(
        "retrieve_batch", "POST", "/v1/retrieve:batch", "retrieve", "The items for several users",
        f"At most {MAX_BATCH} requests, all answered from one generation, each with its answer or "
        "its problem. Others are answered in between; what the deadline leaves over is refused.",
        BatchRequest, BatchAnswer, problems=(503,),
    ),
    Route("healthz", "GET", "/healthz", "open", "Whether the process answers"),
    Route("readyz", "GET", "/readyz", "open", "Whether to send requests here"),
    Route("metrics", "GET", "/metrics", "metrics", "Numbers for Prometheus, over all workers"),
    Route("openapi", "GET", "/openapi.json", "open", "This document"),
    Route("docs", "GET", "/docs", "open", "A page made from it, without scripts"),
    Route("docs_style", "GET", "/docs/style.css", "open", "The page's style"),
)  # fmt: skip


class Match(NamedTuple):
    """What a request asks for."""

    route: Route | None
    """None where the path is unknown, or does not take the method."""
    values: Mapping[str, str]
    """Of the places of its path."""
    label: str
    """The path as metrics name it: a bounded number of them, whatever is asked for."""
    allowed: str
    """The methods that the path takes, empty where it is unknown."""


_UNKNOWN: Final = Match(None, {}, "other", "")


class _Pattern(NamedTuple):
    path: str
    whole: re.Pattern[str]
    by_method: Mapping[str, Match]


class RouteTable:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route] = ROUTES) -> None:
        by_path: dict[str, dict[str, Match]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = Match(route, {}, route.path, "")
        self._exact = {path: entry for path, entry in by_path.items() if "{" not in path}
        self._patterns = [
            _Pattern(path, _pattern(path), by_path[path])
            for path in sorted(by_path, key=lambda path: ("{" in path, -path.count(":"), path))
            if "{" in path
        ]

    def find(self, method: str, path: str, raw_path: bytes) -> Match:
        """Return what is asked for.

        Args:
            method: In capitals.
            path: Decoded.
            raw_path: As it was sent: a value may hold a slash that was written as `%2F`.

        Raises:
            RefusedRequest: a value of the path is no UTF-8.
        """
        entry = self._exact.get(path)
        if entry is not None:
            return entry.get(method) or _not_allowed(entry, path)
        text, refused = raw_path.decode("latin-1"), _UNKNOWN
        for pattern in self._patterns:
            if found := pattern.whole.fullmatch(text):
                match = pattern.by_method.get(method)
                if match is not None:
                    return match._replace(values=_decoded(found.groupdict()))
                refused = _not_allowed(pattern.by_method, pattern.path)
        return refused


def _not_allowed(entry: Mapping[str, Match], path: str) -> Match:
    return Match(None, {}, path, ", ".join(sorted(entry)))


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(
            f"(?P<{part}>[^/]+)" if number % 2 else re.escape(part)
            for number, part in enumerate(parts)
        )
    )


def _decoded(values: Mapping[str, str]) -> dict[str, str]:
    try:
        return {name: unquote_to_bytes(value).decode() for name, value in values.items()}
    except UnicodeDecodeError:
        raise RefusedRequest(400, "expected a path in UTF-8") from None
