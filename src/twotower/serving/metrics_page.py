"""The text of `/metrics`, over all workers.

Numbers are summed over the workers, except those of publishes, which every worker sees: of them
the worker counts that saw the most. Whoever is asked reads all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from twotower.serving.metric_definitions import (
    ANN_FOUND,
    ANN_WANTED,
    DEFINITIONS,
    ITEMS,
    UNKNOWN_USERS,
    Definition,
)
from twotower.serving.project_metrics import ProjectMetrics
from twotower.serving.shared_memory import SharedMemory, read_counters
from twotower.serving.status import WorkerStatus

__all__ = ["CONTENT_TYPE_LATEST", "render_metrics"]

Merged = dict[str, dict[tuple[str, ...], dict[str, float]]]
"""Metric -> labels -> part -> number."""


def render_metrics(
    memory: SharedMemory, now_s: float, project: ProjectMetrics | None = None
) -> bytes:
    """Return the text that Prometheus scrapes, over all workers of the server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Workers(memory, now_s))
    if project is not None:
        registry.register(project)
    return generate_latest(registry)


class _Workers:
    """Collects from every worker's block and status."""

    def __init__(self, memory: SharedMemory, now_s: float) -> None:
        self._memory = memory
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """Return every metric that has a number."""
        merged = self._merged()
        for definition in DEFINITIONS.values():
            rows = merged.get(definition.name)
            if rows is None and definition.kind == "counter" and not definition.labels:
                rows = {(): {"": 0.0}}  # else the first time it counts would be no increase
            if rows:
                yield _family(definition, rows)
        statuses = [status for status in self._memory.statuses(WorkerStatus) if status]
        yield from _unknown_ratio(merged)
        yield from _recall_ratio(merged)
        yield from _generation_metrics(statuses, self._now_s)
        yield from _process_metrics({status.pid for status in statuses if status.is_alive})

    def _merged(self) -> Merged:
        """Return the numbers of all workers together."""
        merged: Merged = {}
        for slot in range(self._memory.num_workers):
            for name, value in read_counters(self._memory.counters(slot)).items():
                metric, labels, part = msgspec.json.decode(name)
                parts = merged.setdefault(metric, {}).setdefault(tuple(labels), {})
                seen_by_all = DEFINITIONS[metric].is_seen_by_all
                known = parts.get(part, 0.0)
                parts[part] = max(known, value) if seen_by_all else known + value
        return merged


def _family(
    definition: Definition, rows: dict[tuple[str, ...], dict[str, float]]
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


def _recall_ratio(merged: Merged) -> Iterator[GaugeMetricFamily]:
    found, wanted = (
        merged.get(name, {}).get((), {}).get("", 0.0) for name in (ANN_FOUND.name, ANN_WANTED.name)
    )
    if wanted:
        yield GaugeMetricFamily(
            "twotower_ann_recall_ratio",
            "Share of exact answers that the index found, since the server started.",
            value=found / wanted,
        )


def _unknown_ratio(merged: Merged) -> Iterator[GaugeMetricFamily]:
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
