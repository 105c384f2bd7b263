"""What the server counts: name, kind, labels and limits of every number, in one place.

The names are those of docs/operations.md. Nothing here is labelled by user.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

__all__ = [
    "ANN_FOUND",
    "ANN_WANTED",
    "DEFINITIONS",
    "IN_FLIGHT",
    "ITEMS",
    "LOST_PROFILES",
    "LOST_SEARCHES",
    "OVERLOAD",
    "PUBLISHES",
    "PUBLISH_SECONDS",
    "REQUESTS",
    "REQUEST_SECONDS",
    "SHED",
    "STAGE_SECONDS",
    "TOP_SCORE",
    "UNKNOWN_USERS",
    "UNSEEN_VALUES",
    "Definition",
    "counter_name",
]

_DURATIONS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
_STAGES: Final = (0.00001, 0.00005, *_DURATIONS[:-2])
_SCORES: Final = tuple(step / 10 for step in range(-10, 11, 2))
_COUNTS: Final = (0.0, 1.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_LOADS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Definition(NamedTuple):
    """One metric; `name` is how it is exported."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_seen_by_all: bool = False
    """Every worker counts the same things, so the largest number is the true one."""


REQUESTS: Final = Definition(
    "twotower_http_requests_total", "counter", "Requests answered.", ("route", "code")
)
REQUEST_SECONDS: Final = Definition(
    "twotower_http_request_duration_seconds", "histogram",
    "From a request's head to its last byte.", ("route",), _DURATIONS,
)  # fmt: skip
STAGE_SECONDS: Final = Definition(
    "twotower_retrieve_stage_duration_seconds", "histogram",
    "Time of one stage of retrieving.", ("stage",), _STAGES,
)  # fmt: skip
ITEMS: Final = Definition(
    "twotower_retrieve_items_returned", "histogram", "Items an answer has.", (), _COUNTS
)
TOP_SCORE: Final = Definition(
    "twotower_score", "histogram", "Score of the best item of an answer.", (), _SCORES
)
IN_FLIGHT: Final = Definition("twotower_inflight_requests", "gauge", "Requests being answered.")
SHED: Final = Definition(
    "twotower_shed_requests_total", "counter", "Requests refused unanswered.", ("reason",)
)
OVERLOAD: Final = Definition(
    "twotower_overload_degraded_total", "counter",
    "Answers that overload made cheaper, by how.", ("step",),
)  # fmt: skip
UNKNOWN_USERS: Final = Definition(
    "twotower_unknown_users_total", "counter", "Answers for users that the generation lacks."
)
UNSEEN_VALUES: Final = Definition(
    "twotower_feature_oov_total", "counter", "Feature values never seen in training.", ("feature",)
)
LOST_PROFILES: Final = Definition(
    "twotower_profile_store_failures_total", "counter",
    "Look-ups of stored profiles that gave none: timeout, connection or unreadable.", ("reason",),
)  # fmt: skip
LOST_SEARCHES: Final = Definition(
    "twotower_index_lost_searches_total", "counter",
    "Searches that an index elsewhere did not answer; all items were scanned instead.",
)  # fmt: skip
ANN_WANTED: Final = Definition(
    "twotower_ann_sampled_items_total", "counter", "Items of exact searches that were sampled."
)
ANN_FOUND: Final = Definition(
    "twotower_ann_found_items_total", "counter", "Those of them that the index found."
)
PUBLISHES: Final = Definition(
    "twotower_publish_total", "counter",
    "Activations and deltas that the server followed, or refused.", ("kind", "result"), (), True,
)  # fmt: skip
PUBLISH_SECONDS: Final = Definition(
    "twotower_publish_duration_seconds", "histogram",
    "Time to take over an activation.", ("kind", "phase"), _LOADS, True,
)  # fmt: skip
DEFINITIONS: Final = {
    definition.name: definition
    for definition in (
        *(REQUESTS, REQUEST_SECONDS, STAGE_SECONDS, ITEMS, TOP_SCORE, IN_FLIGHT, SHED),
        *(
            ANN_WANTED,
            ANN_FOUND,
            OVERLOAD,
            UNKNOWN_USERS,
            UNSEEN_VALUES,
            LOST_PROFILES,
            LOST_SEARCHES,
            PUBLISHES,
            PUBLISH_SECONDS,
        ),
    )
}


def counter_name(metric: str, labels: tuple[str, ...], part: str) -> str:
    """Return the counter's name in the block; `part` is a bucket's limit, or `sum`."""
    return msgspec.json.encode([metric, list(labels), part]).decode()
