"""Every route of the service in one table: path, method, who may ask, what goes in and comes out.

Requests find their routes here (`twotower.serving.route_table`), the OpenAPI document and its page
are made from it, and keys are checked against it. Free of the handlers, which
`twotower.serving.handlers` adds by name.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from twotower.data.event_log.receipt import Receipt
from twotower.data.events import Event
from twotower.publishing.activation import Activation
from twotower.publishing.listing import GenerationList, ShownGeneration
from twotower.serving.admin_messages import (
    ActivateRequest,
    AddedItems,
    AddItemsRequest,
    ItemFields,
    ItemList,
    NoFields,
    PinRequest,
    Pins,
    RestoreRequest,
    RollBackRequest,
    WithdrawnItems,
)
from twotower.serving.inference_messages import (
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from twotower.serving.keys import KeyScope
from twotower.serving.messages import (
    MAX_BATCH,
    MAX_K,
    BatchAnswer,
    BatchRequest,
    ExplainAnswer,
    ExplainRequest,
    RetrieveAnswer,
    RetrieveRequest,
    SimilarAnswer,
    SimilarRequest,
)

__all__ = ["ROUTES", "Route", "RouteScope"]

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
    takes_key: bool = False
    """Whether `Idempotency-Key` gives a body that is sent again the answer of the first time."""
    """Those it has besides the ones that every route like it has."""
    media_types: tuple[str, ...] = ("application/json",)
    """Of its body."""
    query: tuple[tuple[str, str], ...] = ()
    """Names of the texts that its query may hold, and what they are."""

    @property
    def is_behind(self) -> bool:
        """Whether the framework behind the front door answers."""
        return self.answer is None


_MODEL: Final = "/v2/models/{model}"
_GENERATION: Final = "/v1/generations/{generation}"

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
    Route(
        "similar", "POST", "/v1/similar", "retrieve", "Items like these",
        "The items whose vectors are nearest, by cosine, to the mean direction of those given.",
        SimilarRequest, SimilarAnswer, problems=(404, 503),
    ),
    Route(
        "explain", "POST", "/v1/explain", "retrieve", "Why a user gets an item",
        "Score, rank, the nearest of the user's clicks, and by how much the score falls when one "
        "thing is left out. The towers are not linear: contributions do not add up to the score.",
        ExplainRequest, ExplainAnswer, problems=(404, 503),
    ),
    Route(
        "events", "POST", "/v1/events", "events", "What users were shown and did",
        "A JSON array, or one object a line. Answered by the collector, which is a process of its "
        "own: every accepted row is on the disk, a bad row costs its neighbours nothing, and an "
        "event that is sent again under its event_id is stored once.",
        list[Event], Receipt, 202, problems=(409, 429, 503), takes_key=True,
        media_types=("application/json", "application/x-ndjson"),
    ),
    Route(
        "list_generations", "GET", "/v1/generations", "admin", "Every generation, oldest first",
        answer=GenerationList, problems=(409,),
    ),
    Route(
        "show_generation", "GET", _GENERATION, "admin", "What one generation's manifest says",
        answer=ShownGeneration, problems=(404, 409),
    ),
    Route(
        "activate", "POST", f"{_GENERATION}:activate", "admin", "Verify it and make it live",
        "Nothing happens if it is live already. The workers follow within the time that they need "
        "to load it; the sequence grows.",
        ActivateRequest, Activation, problems=(404, 409, 503),
    ),
    Route(
        "roll_back", "POST", f"{_GENERATION}:roll-back", "admin", "Return to the one before it",
        "Refused unless the generation that is named is live: who asks twice rolls back once. The "
        "sequence grows.",
        RollBackRequest, Activation, problems=(404, 409, 503),
    ),
    Route(
        "pin", "POST", f"{_GENERATION}:pin", "admin", "Keep it through every prune",
        request=PinRequest, answer=Pins, problems=(404, 409, 503),
    ),
    Route(
        "unpin", "POST", f"{_GENERATION}:unpin", "admin", "Let it go with a later prune",
        request=NoFields, answer=Pins, problems=(404, 409, 503),
    ),
    Route(
        "list_items", "GET", "/v1/items", "admin", "What the day added and withdrew",
        answer=ItemList, problems=(409,),
    ),
    Route(
        "add_items", "POST", "/v1/items", "admin", "Let users have items that came today",
        "Encoded from their features by the live generation; all or none.",
        AddItemsRequest, AddedItems, problems=(409, 503),
    ),
    Route(
        "put_item", "PUT", "/v1/items/{item_id}", "admin", "Add one item, or its new features",
        request=ItemFields, answer=AddedItems, problems=(409, 503),
    ),
    Route(
        "withdraw_item", "DELETE", "/v1/items/{item_id}", "admin", "Keep an item from everybody",
        "In all workers within a second, and in every later generation until it is restored.",
        answer=WithdrawnItems, problems=(409, 422, 503),
        query=(("reason", "Why, for whoever lists them; at most 1000 letters."),),
    ),
    Route(
        "restore_items", "POST", "/v1/items:restore", "admin", "Let everybody have items again",
        request=RestoreRequest, answer=WithdrawnItems, problems=(409, 503),
    ),
    Route(
        "v2_live", "GET", "/v2/health/live", "open", "Whether the process answers", answer=Live
    ),
    Route(
        "v2_ready", "GET", "/v2/health/ready", "open", "Whether to send requests here",
        answer=Ready, problems=(503,),
    ),
    Route("v2_server", "GET", "/v2", "retrieve", "What answers", answer=ServerMetadata),
    *(
        route
        for version, path in (("", _MODEL), ("_version", f"{_MODEL}/versions/{{version}}"))
        for route in (
            Route(
                f"v2_model{version}", "GET", path, "retrieve", "What the model takes and gives",
                answer=ModelMetadata, problems=(404, 503),
            ),
            Route(
                f"v2_model{version}_ready", "GET", f"{path}/ready", "retrieve",
                "Whether it is loaded", answer=ModelReady, problems=(404, 503),
            ),
            Route(
                f"v2_infer{version}", "POST", f"{path}/infer", "retrieve",
                "The items of each user, by the Open Inference Protocol",
                request=InferRequest, answer=InferResponse, problems=(404, 503),
            ),
        )
    ),
    Route("healthz", "GET", "/healthz", "open", "Whether the process answers"),
    Route("startupz", "GET", "/startupz", "open", "Whether every worker has begun"),
    Route("readyz", "GET", "/readyz", "open", "Whether to send requests here"),
    Route("metrics", "GET", "/metrics", "metrics", "Numbers for Prometheus, over all workers"),
    Route("openapi", "GET", "/openapi.json", "open", "This document"),
    Route("docs", "GET", "/docs", "open", "A page made from it, without scripts"),
    Route("docs_style", "GET", "/docs/style.css", "open", "The page's style"),
)  # fmt: skip
