"""What one worker counts, in its own block of shared memory.

`twotower.serving.metrics_page` reads the blocks of all workers.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable

from twotower.serving.metric_definitions import (
    ANN_FOUND,
    ANN_WANTED,
    IN_FLIGHT,
    ITEMS,
    LOST_PROFILES,
    LOST_SEARCHES,
    OVERLOAD,
    PUBLISH_SECONDS,
    PUBLISHES,
    REQUEST_SECONDS,
    REQUESTS,
    SHED,
    STAGE_SECONDS,
    TOP_SCORE,
    UNKNOWN_USERS,
    UNSEEN_VALUES,
    Definition,
    counter_name,
)
from twotower.serving.shared_memory import CounterBlock

__all__ = ["Metrics"]


class Metrics:
    """What one worker counts. Each metric is written by one thread only, but for publishes."""

    def __init__(self, block: CounterBlock) -> None:
        """Go on with the numbers in `block`; what is in flight starts at 0."""
        self._block = block
        self._publishing = threading.Lock()
        self._places: dict[tuple[str, ...], int] = {}
        self._lost = ("", 0)
        self._rows: dict[tuple[str, ...], list[int]] = {}
        self._in_flight = block.place(counter_name(IN_FLIGHT.name, (), ""))
        block.values[self._in_flight] = 0.0

    def request_began(self) -> None:
        """Count a request as in flight."""
        self._block.values[self._in_flight] += 1

    def request_ended(self, route: str, code: int, seconds: float) -> None:
        """Count an answer that was sent."""
        self._block.values[self._in_flight] -= 1
        self._add(REQUESTS, route, str(code))
        self._observe(REQUEST_SECONDS, seconds, route)

    def request_refused(self, route: str, code: int) -> None:
        """Count an answer that was sent the moment a request's head was read."""
        self._add(REQUESTS, route, str(code))

    def request_shed(self, reason: str) -> None:
        """Count a request that was refused without doing its work."""
        self._add(SHED, reason)

    def overload_degraded(self, step: str) -> None:
        """Count an answer that overload made cheaper."""
        self._add(OVERLOAD, step)

    def stage(self, stage: str, seconds: float) -> None:
        """Count the time of one stage: decode, tower, filter, ann or encode."""
        self._observe(STAGE_SECONDS, seconds, stage)

    def answered(self, num_items: int, top_score: float | None, degraded: Iterable[str]) -> None:
        """Count what an answer holds."""
        self._observe(ITEMS, num_items)
        if top_score is not None:
            self._observe(TOP_SCORE, top_score)
        for reason in degraded:
            if reason == "unknown_user":
                self._add(UNKNOWN_USERS)
            elif reason.startswith("feature:") and reason.endswith("=unseen"):
                self._add(UNSEEN_VALUES, reason[len("feature:") : -len("=unseen")])

    def searches_lost(self, generation: str, num_lost: int) -> None:
        """Count what an index lost since it was last told; a new generation's begins at 0."""
        known = self._lost[1] if self._lost[0] == generation else 0
        self._lost = (generation, num_lost)
        if num_lost > known:
            self._add(LOST_SEARCHES, by=num_lost - known)

    def profile_lost(self, reason: str) -> None:
        """Count a look-up of stored profiles that gave none."""
        self._add(LOST_PROFILES, reason)

    def recall_sampled(self, num_right: int, num_exact: int) -> None:
        """Count how many items of an exact search the index found, too."""
        self._add(ANN_FOUND, by=num_right)
        self._add(ANN_WANTED, by=num_exact)

    def publish_ended(self, kind: str, result: str) -> None:
        """Count an activation or a delta that was taken over or refused."""
        with self._publishing:
            self._add(PUBLISHES, kind, result)

    def publish_phase(self, kind: str, phase: str, seconds: float) -> None:
        """Count the time of one phase of taking over: load or warm."""
        with self._publishing:
            self._observe(PUBLISH_SECONDS, seconds, kind, phase)

    def _add(self, definition: Definition, *labels: str, by: int = 1) -> None:
        place = self._places.get((definition.name, *labels))
        if place is None:
            place = self._block.place(counter_name(definition.name, labels, ""))
            self._places[(definition.name, *labels)] = place
        self._block.values[place] += by

    def _observe(self, definition: Definition, value: float, *labels: str) -> None:
        row = self._rows.get((definition.name, *labels))
        if row is None:
            parts = ["sum", *map(str, definition.buckets), "+Inf"]
            row = [self._block.place(counter_name(definition.name, labels, part)) for part in parts]
            self._rows[(definition.name, *labels)] = row
        values = self._block.values
        values[row[1 + bisect_left(definition.buckets, value)]] += 1
        values[row[0]] += value
