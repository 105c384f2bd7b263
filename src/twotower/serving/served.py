"""One generation in service, and what a request gets from it."""

from __future__ import annotations

from typing import NamedTuple

from twotower.publishing.activation import Activation
from twotower.publishing.manifest import Manifest
from twotower.serving.day import DayFollower
from twotower.serving.messages import RetrieveRequest
from twotower.serving.profiles import OF_GENERATION, StoredProfile
from twotower.serving.retriever import Found, Retriever

__all__ = ["Served", "find"]


class Served(NamedTuple):
    """One generation in service, and the activation that made it live."""

    retriever: Retriever
    manifest: Manifest
    activation: Activation
    day: DayFollower
    """Brings `retriever` up to date."""


def find(
    retriever: Retriever, request: RetrieveRequest, stored: StoredProfile = OF_GENERATION
) -> Found:
    """Return what a request gets; raises what `Retriever.find` raises."""
    return retriever.find(
        request.user_id,
        request.k,
        features=request.features,
        recent=request.recent,
        exclude=request.exclude,
        conditions=request.filter,
        include_seen=request.include_seen,
        stored=stored,
    )
