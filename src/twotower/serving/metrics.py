"""What the server measures of itself, under the names of its contract, over all workers.

Every worker adds to its own block of shared memory; whoever is asked for `/metrics` reads them
all. Numbers are summed over the workers, except those of publishes, which every worker sees: of
them the worker counts that saw the most. Nothing here is labelled by user.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from twotower.serving.shared_memory import CounterBlock, SharedMemory, read_counters
from twotower.serving.status import WorkerStatus

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "render_metrics"]

Kind = Literal["counter", "gauge", "histogram"]

_DURATIONS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
_STAGES: Final = (0.00001, 0.00005, *_DURATIONS[:-2])
_SCORES: Final = tuple(step / 10 for step in range(-10, 11, 2))
_COUNTS: Final = (0.0, 1.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_LOADS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Definition(NamedTuple):
    """One metric; `name` is how it is exported."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_seen_by_all: bool = False
    """Every worker counts the same things, so the largest number is the true one."""


REQUESTS: Final = _Definition(
    "twotower_http_requests_total", "counter", "Requests answered.", ("route", "code")
)
REQUEST_SECONDS: Final = _Definition(
    "twotower_http_request_duration_seconds", "histogram",
    "From a request's head to its last byte.", ("route",), _DURATIONS,
)  # fmt: skip
STAGE_SECONDS: Final = _Definition(
    "twotower_retrieve_stage_duration_seconds", "histogram",
    "Time of one stage of retrieving.", ("stage",), _STAGES,
)  # fmt: skip
ITEMS: Final = _Definition(
    "twotower_retrieve_items_returned", "histogram", "Items an answer has.", (), _COUNTS
)
TOP_SCORE: Final = _Definition(
    "twotower_score", "histogram", "Score of the best item of an answer.", (), _SCORES
)
IN_FLIGHT: Final = _Definition("twotower_inflight_requests", "gauge", "Requests being answered.")
SHED: Final = _Definition(
    "twotower_shed_requests_total", "counter", "Requests refused unanswered.", ("reason",)
)
UNKNOWN_USERS: Final = _Definition(
    "twotower_unknown_users_total", "counter", "Answers for users that the generation lacks."
)
UNSEEN_VALUES: Final = _Definition(
    "twotower_feature_oov_total", "counter", "Feature values never seen in training.", ("feature",)
)
PUBLISHES: Final = _Definition(
    "twotower_publish_total", "counter",
    "Activations and deltas that the server followed, or refused.", ("kind", "result"), (), True,
)  # fmt: skip
PUBLISH_SECONDS: Final = _Definition(
    "twotower_publish_duration_seconds", "histogram",
    "Time to take over an activation.", ("kind", "phase"), _LOADS, True,
)  # fmt: skip
_DEFINITIONS: Final = {
    definition.name: definition
    for definition in (
        *(REQUESTS, REQUEST_SECONDS, STAGE_SECONDS, ITEMS, TOP_SCORE, IN_FLIGHT, SHED),
        *(UNKNOWN_USERS, UNSEEN_VALUES, PUBLISHES, PUBLISH_SECONDS),
    )
}


class Metrics:
    """What one worker counts. Each metric is written by one thread only, but for publishes."""

    def __init__(self, block: CounterBlock) -> None:
        """Go on with the numbers in `block`; what is in flight starts at 0."""
        self._block = block
        self._publishing = threading.Lock()
        self._places: dict[tuple[str, ...], int] = {}
        self._rows: dict[tuple[str, ...], list[int]] = {}
        self._in_flight = block.place(_name(IN_FLIGHT.name, (), ""))
        block.values[self._in_flight] = 0.0

    def request_began(self) -> None:
        """Count a request as in flight."""
        self._block.values[self._in_flight] += 1

    def request_ended(self, route: str, code: int, seconds: float) -> None:
        """Count an answer that was sent."""
        self._block.values[self._in_flight] -= 1
        self._add(REQUESTS, route, str(code))
        self._observe(REQUEST_SECONDS, seconds, route)

    def request_shed(self, reason: str) -> None:
        """Count a request that was refused without doing its work."""
        self._add(SHED, reason)

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

    def publish_ended(self, kind: str, result: str) -> None:
        """Count an activation or a delta that was taken over or refused."""
        with self._publishing:
            self._add(PUBLISHES, kind, result)

    def publish_phase(self, kind: str, phase: str, seconds: float) -> None:
        """Count the time of one phase of taking over: load or warm."""
        with self._publishing:
            self._observe(PUBLISH_SECONDS, seconds, kind, phase)

    def _add(self, definition: _Definition, *labels: str) -> None:
        place = self._places.get((definition.name, *labels))
        if place is None:
            place = self._block.place(_name(definition.name, labels, ""))
            self._places[(definition.name, *labels)] = place
        self._block.values[place] += 1

    def _observe(self, definition: _Definition, value: float, *labels: str) -> None:
        row = self._rows.get((definition.name, *labels))
        if row is None:
            parts = ["sum", *map(str, definition.buckets), "+Inf"]
            row = [self._block.place(_name(definition.name, labels, part)) for part in parts]
            self._rows[(definition.name, *labels)] = row
        values = self._block.values
        values[row[1 + bisect_left(definition.buckets, value)]] += 1
        values[row[0]] += value


def _name(metric: str, labels: tuple[str, ...], part: str) -> str:
    """Return the counter's name in the block; `part` is a bucket's limit, or `sum`."""
    return msgspec.json.encode([metric, list(labels), part]).decode()


def render_metrics(memory: SharedMemory, now_s: float) -> bytes:
    """Return the text that Prometheus scrapes, over all workers of the server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Workers(memory, now_s))
    return generate_latest(registry)


class _Workers:
    """Collects from every worker's block and status."""

    def __init__(self, memory: SharedMemory, now_s: float) -> None:
        self._memory = memory
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """Return every metric that has a number."""
        merged = self._merged()
        for definition in _DEFINITIONS.values():
            if rows := merged.get(definition.name):
                yield _family(definition, rows)
        statuses = [status for status in self._memory.statuses(WorkerStatus) if status]
        yield from _unknown_ratio(merged)
        yield from _generation_metrics(statuses, self._now_s)
        yield from _process_metrics({status.pid for status in statuses if status.is_alive})

    def _merged(self) -> dict[str, dict[tuple[str, ...], dict[str, float]]]:
        """Return metric -> labels -> part -> number."""
        merged: dict[str, dict[tuple[str, ...], dict[str, float]]] = {}
        for slot in range(self._memory.num_workers):
            for name, value in read_counters(self._memory.counters(slot)).items():
                metric, labels, part = msgspec.json.decode(name)
                parts = merged.setdefault(metric, {}).setdefault(tuple(labels), {})
                seen_by_all = _DEFINITIONS[metric].is_seen_by_all
                known = parts.get(part, 0.0)
                parts[part] = max(known, value) if seen_by_all else known + value
        return merged


def _family(
    definition: _Definition, rows: dict[tuple[str, ...], dict[str, float]]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    labels = definition.labels
    if definition.kind == "histogram":
        histogram = HistogramMetricFamily(definition.name, definition.help, labels=labels)
        for values, parts in rows.items():
            limits = [*map(str, definition.buckets), "+Inf"]
            total, buckets = 0.0, []
            for limit in limits:
                total += parts.get(limit, 0.0)
                buckets.append((limit, total))
            histogram.add_metric(values, buckets, sum_value=parts.get("sum", 0.0))
        return histogram
    simple = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = simple(definition.name, definition.help, labels=labels)
    for values, parts in rows.items():
        family.add_metric(values, parts[""])
    return family


def _unknown_ratio(
    merged: dict[str, dict[tuple[str, ...], dict[str, float]]],
) -> Iterator[GaugeMetricFamily]:
    answers = sum(value for part, value in merged.get(ITEMS.name, {}).get((), {}).items()
                  if part != "sum")  # fmt: skip
    unknown = merged.get(UNKNOWN_USERS.name, {}).get((), {}).get("", 0.0)
    if answers:
        yield GaugeMetricFamily(
            "twotower_unknown_user_ratio",
            "Share of answers for unknown users since the server started.",
            value=unknown / answers,
        )


def _generation_metrics(statuses: list[WorkerStatus], now_s: float) -> Iterator[GaugeMetricFamily]:
    """Return what is served: of the worker that is furthest behind, where they differ."""
    served = [status for status in statuses if status.sequence is not None and status.is_alive]
    if not served:
        return
    live = min(served, key=lambda status: (status.sequence or 0, status.delta or 0))
    info = GaugeMetricFamily(
        "twotower_generation_info", "What is served.", labels=["generation", "delta", "sha"]
    )
    delta = "" if live.delta is None else str(live.delta)
    info.add_metric([live.generation or "", delta, live.manifest], 1)
    yield info
    yield from _day_metrics(served, now_s)
    figures = {
        "created_timestamp": ("When the generation was published.", live.created_s),
        "activated_timestamp": ("When it became live.", live.activated_s),
        "staleness": ("Now minus the newest event trained on.", now_s - live.cut_s),
    }
    for name, (text, value) in figures.items():
        yield GaugeMetricFamily(f"twotower_generation_{name}_seconds", text, value=value)


def _day_metrics(served: list[WorkerStatus], now_s: float) -> Iterator[GaugeMetricFamily]:
    """Return what the day brought, of the worker that is furthest behind in each."""
    newest_s = min(status.newest_event_s for status in served)
    figures = {
        "delta_sequence": (
            "The last delta applied over the generation, 0 for none.",
            min(status.delta or 0 for status in served),
        ),
        "freshness_seconds": (
            "Now minus the newest event that generation and delta have learned from.",
            now_s - newest_s,
        ),
        "user_state_offset": (
            "Of the event log: what users did before it counts.",
            min(status.user_state_offset or 0 for status in served),
        ),
    }
    for name, (text, value) in figures.items():
        yield GaugeMetricFamily(f"twotower_{name}", text, value=value)


def _process_metrics(pids: set[int]) -> Iterator[Metric]:
    """Return `process_*`, summed over the workers; the start is that of the oldest one.

    Resident memory counts pages that workers share once for each of them.
    """
    merged: dict[str, Metric] = {}
    for pid in sorted(pids):
        for family in _process(pid).collect():
            known = merged.setdefault(family.name, family)
            if known is not family:
                pick = min if family.name.endswith(("start_time_seconds", "max_fds")) else _sum
                known.samples = [
                    mine._replace(value=pick(mine.value, theirs.value))
                    for mine, theirs in zip(known.samples, family.samples, strict=True)
                ]
    yield from merged.values()


def _sum(one: float, other: float) -> float:
    return one + other


def _process(pid: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: pid, registry=None)
