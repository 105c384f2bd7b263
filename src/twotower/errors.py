"""The exception tree.

TwoTowerError                 exit code 1: the command failed
├── ConfigError               2: the configuration or the command line is wrong
├── DataError                 1: a source file does not hold what the configuration says
├── LineageError              1: a day would be trained twice, skipped or out of order
├── GateRefused               3: a measured condition refused the activation
├── CorruptArtifact           4: a published file is torn, altered, foreign or missing
└── NotReady                  5: nothing is published yet, or a part is not there
    ├── Busy                  5: another process does not end what keeps others out
    └── MissingExtra          5: an optional package is not installed

Every message says what was expected, what was found, what is still true, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "Busy",
    "ConfigError",
    "CorruptArtifact",
    "DataError",
    "GateRefused",
    "LineageError",
    "MissingExtra",
    "NotReady",
    "TwoTowerError",
    "suggestion",
]


class TwoTowerError(Exception):
    """Anything that this package refuses, with a message made for its user."""

    exit_code: ClassVar[int] = 1


class ConfigError(TwoTowerError):
    """The configuration or the command line is wrong; nothing was read or written."""

    exit_code = 2


class DataError(TwoTowerError):
    """A source file does not hold what the configuration says; nothing was written."""


class LineageError(TwoTowerError):
    """A day would be trained twice, skipped or out of order; nothing was trained."""


class GateRefused(TwoTowerError):
    """A measured condition refused the activation; the live generation is unchanged."""

    exit_code = 3


class CorruptArtifact(TwoTowerError):
    """A published file is torn, altered, foreign or missing; it was not loaded."""

    exit_code = 4


class NotReady(TwoTowerError):
    """Nothing is published yet, or a part that was asked for is not there."""

    exit_code = 5


class Busy(NotReady):
    """Another process does not end what keeps others out; nothing was changed."""


class MissingExtra(NotReady):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'twotower[{extra}]'"
        )


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the known name nearest to `name`, or nothing."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""
