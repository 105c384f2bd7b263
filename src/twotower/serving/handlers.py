"""Which code answers which route of the table, and how long a body it takes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, NamedTuple

from twotower.publishing.store import ModelStore
from twotower.serving.admin_routes import GenerationRoutes, ItemRoutes
from twotower.serving.collector_link import CollectorLink
from twotower.serving.exchange import EVENT_TYPES, Handler, Limits
from twotower.serving.inference_routes import InferenceRoutes
from twotower.serving.likeness_routes import LikenessRoutes
from twotower.serving.metrics import Metrics
from twotower.serving.overload import Overload
from twotower.serving.profile_lookup import ProfileLookup
from twotower.serving.profiles import ProfileStore
from twotower.serving.project import ServedProject
from twotower.serving.reload import Follower
from twotower.serving.retrieve_route import RetrieveRoute
from twotower.serving.routes import ROUTES
from twotower.serving.settings import ServingSettings
from twotower.serving.shared_memory import SharedMemory
from twotower.serving.status import WorkerStatus, readiness
from twotower.serving.tracing import Traces

__all__ = ["Mounted", "make_handlers"]

_SIDE_THREADS: Final = 2
"""For what would hold the event loop up; none runs before the first such request."""


class Mounted(NamedTuple):
    """A handler and the limits of what it is asked."""

    handler: Handler
    limits: Limits


def make_handlers(
    project: ServedProject,
    follower: Follower,
    settings: ServingSettings,
    metrics: Metrics,
    memory: SharedMemory,
    overload: Overload,
    profiles: ProfileStore,
    traces: Traces | None = None,
) -> Mapping[str, Mounted]:
    """Return the handlers of the routes in front of the framework, by the routes' names."""
    threads = ThreadPoolExecutor(_SIDE_THREADS, "side")
    handlers = {
        **_retrieval(RetrieveRoute(follower, metrics, overload, traces), follower, threads),
        **_admin(project, follower, threads),
        **_inference(follower, memory),
    }
    with_body = Limits(settings.body_limit_bytes, settings.body_timeout_s)
    without = with_body._replace(media_types=())
    has_body = {route.name: route.request is not None for route in ROUTES}
    mounted = {
        name: Mounted(handler, with_body if has_body[name] else without)
        for name, handler in ProfileLookup(profiles, follower, overload).before(handlers).items()
    }
    collector = project.collector
    of_events = Limits(collector.body_limit_bytes, collector.body_timeout_s, EVENT_TYPES)
    return mounted | {"events": Mounted(CollectorLink(collector).events, of_events)}


def _retrieval(
    retrieve: RetrieveRoute, follower: Follower, threads: Executor
) -> dict[str, Handler]:
    likeness = LikenessRoutes(follower, threads)
    return {
        "retrieve": retrieve.retrieve,
        "retrieve_batch": retrieve.batch,
        "similar": likeness.similar,
        "explain": likeness.explain,
    }


def _admin(project: ServedProject, follower: Follower, threads: Executor) -> dict[str, Handler]:
    generations = GenerationRoutes(ModelStore(project.data_path), threads, project.announce)
    items = ItemRoutes(project.data_path, follower, threads)
    return {
        "list_generations": generations.list_all,
        "show_generation": generations.show,
        "activate": generations.activate,
        "roll_back": generations.roll_back,
        "pin": generations.pin,
        "unpin": generations.unpin,
        "list_items": items.list_all,
        "add_items": items.add,
        "put_item": items.put,
        "withdraw_item": items.withdraw,
        "restore_items": items.restore,
    }


def _inference(follower: Follower, memory: SharedMemory) -> dict[str, Handler]:
    inference = InferenceRoutes(
        follower, lambda: readiness(memory.statuses(WorkerStatus)).status == "ready"
    )
    health: dict[str, Handler] = {
        "v2_live": inference.live,
        "v2_ready": inference.ready,
        "v2_server": inference.server,
    }
    for version in ("", "_version"):
        health |= {
            f"v2_model{version}": inference.model,
            f"v2_model{version}_ready": inference.model_ready,
            f"v2_infer{version}": inference.infer,
        }
    return health
