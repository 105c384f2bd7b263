"""What the code below the routes refuses, as the problem that its client gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from twotower.errors import (
    Busy,
    ConfigError,
    CorruptArtifact,
    DataError,
    GateRefused,
    LineageError,
    NotReady,
)
from twotower.serving.item_filter import WrongCondition
from twotower.serving.problems import Fault, RefusedRequest

__all__ = ["AGAIN", "as_problems", "invalid"]

AGAIN: Final = ((b"retry-after", b"1"),)
"""The header that asks to come again in a second."""


@contextlib.contextmanager
def as_problems() -> Iterator[None]:
    """Turn what the block refuses into a problem: 422, 409, or 503 where waiting helps."""
    try:
        yield
    except Busy as error:
        raise RefusedRequest(503, str(error), headers=AGAIN) from None
    except (ConfigError, DataError) as error:
        raise invalid(error) from None
    except (CorruptArtifact, GateRefused, LineageError, NotReady) as error:
        raise RefusedRequest(409, str(error)) from None


def invalid(error: ConfigError | DataError, path: str = "$") -> RefusedRequest:
    """Return the problem of a request that asks for what there is not."""
    place = f"$.filter{error.place}" if isinstance(error, WrongCondition) else path
    return RefusedRequest(422, str(error), faults=[Fault(place, str(error))])
