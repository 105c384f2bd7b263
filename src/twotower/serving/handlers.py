"""Which code answers which route of the table, and how long a body it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from twotower.serving.exchange import Handler, Limits
from twotower.serving.metrics import Metrics
from twotower.serving.overload import Overload
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import RetrieveRoute
from twotower.serving.settings import ServingSettings

__all__ = ["Mounted", "make_handlers"]


class Mounted(NamedTuple):
    """A handler and the limits of what it is asked."""

    handler: Handler
    limits: Limits


def make_handlers(
    follower: Follower, settings: ServingSettings, metrics: Metrics, overload: Overload
) -> Mapping[str, Mounted]:
    """Return the handlers of the routes in front of the framework, by the routes' names."""
    retrieve = RetrieveRoute(follower, metrics, overload)
    limits = Limits(settings.body_limit_bytes, settings.body_timeout_s)
    handlers: dict[str, Handler] = {
        "retrieve": retrieve.retrieve,
        "retrieve_batch": retrieve.batch,
    }
    return {name: Mounted(handler, limits) for name, handler in handlers.items()}
