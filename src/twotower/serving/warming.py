"""Requests that a generation must answer before anybody else asks it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from twotower.errors import ConfigError, CorruptArtifact, DataError
from twotower.serving.answer import Found
from twotower.serving.messages import MAX_K, RetrieveRequest
from twotower.serving.retriever import Retriever

__all__ = ["warm"]

_NUM_PROBES: Final = 10
_PROBE_K: Final = 100


def warm(
    retriever: Retriever,
    recent: Iterable[RetrieveRequest],
    ask: Callable[[Retriever, RetrieveRequest], Found],
) -> Iterator[None]:
    """Answer known users, an unknown one, and recent requests by calls of `ask`, one a step.

    Raises:
        CorruptArtifact: an answer is not whole.
    """
    for request in _probes(retriever):
        _check_answer(retriever, request, ask(retriever, request))
        yield
    for request in recent:
        # a feature of the old model may be none of the new one's
        with contextlib.suppress(ConfigError, DataError):
            ask(retriever, request)
        yield


def _probes(retriever: Retriever) -> Iterator[RetrieveRequest]:
    """Yield requests of users spread over all known ones, and of one who is not known."""
    users = retriever.encoder.users
    num_known = len(users)
    places = np.unique(np.linspace(0, max(num_known - 1, 0), _NUM_PROBES).astype(np.int64))
    known = users.decode(places) if num_known else []
    stranger = -(2**63) if users.kind == "int" else "\x01nobody"
    for user in (*known, stranger):
        yield RetrieveRequest(user_id=user, k=min(_PROBE_K, MAX_K), include_seen=True)


def _check_answer(retriever: Retriever, request: RetrieveRequest, found: Found) -> None:
    """Refuse an answer that is short or not finite: nobody should be the first to see it."""
    expected = min(request.k, len(retriever.index))
    is_whole = len(found.positions) == expected and np.isfinite(found.scores).all()
    if not is_whole:
        raise CorruptArtifact(
            f"generation '{retriever.generation}' gave {len(found.positions)} items with scores "
            f"{found.scores[:3].tolist()} … where {expected} finite ones were expected; "
            "it was not served"
        )
