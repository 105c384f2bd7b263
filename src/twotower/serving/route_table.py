"""Finds the route of a request by its method and path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from twotower.serving.problems import RefusedRequest
from twotower.serving.routes import ROUTES, Route

__all__ = ["Match", "RouteTable"]


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
            _Pattern(path, _pattern(path, by_path), by_path[path])
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
        text, refused = raw_path.decode("latin-1"), None
        for pattern in self._patterns:
            if found := pattern.whole.fullmatch(text):
                match = pattern.by_method.get(method)
                if match is not None:
                    return match._replace(values=_decoded(found.groupdict()))
                refused = refused or _not_allowed(pattern.by_method, pattern.path)
        return refused or _UNKNOWN


def _not_allowed(entry: Mapping[str, Match], path: str) -> Match:
    return Match(None, {}, path, ", ".join(sorted(entry)))


def _pattern(path: str, paths: Iterable[str]) -> re.Pattern[str]:
    """Return what matches a path; a place that verbs may follow after a colon holds none."""
    parts, written, pattern = re.split(r"\{(\w+)\}", path), "", ""
    for number, part in enumerate(parts):
        if number % 2 == 0:
            written, pattern = written + part, pattern + re.escape(part)
            continue
        written += f"{{{part}}}"
        has_verbs = any(other.startswith(f"{written}:") for other in paths)
        pattern += f"(?P<{part}>[^/:]+)" if has_verbs else f"(?P<{part}>[^/]+)"
    return re.compile(pattern)


def _decoded(values: Mapping[str, str]) -> dict[str, str]:
    try:
        return {name: unquote_to_bytes(value).decode() for name, value in values.items()}
    except UnicodeDecodeError:
        raise RefusedRequest(400, "expected a path in UTF-8") from None
