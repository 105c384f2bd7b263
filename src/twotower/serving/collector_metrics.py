"""What the collector counts of itself; one process, so plain numbers in its memory.

What became of the rows is counted in the log's own files, which the server's `/metrics` reads, so
that it is true across restarts; here are the requests, and how late events arrive.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from twotower.data.events import Event

__all__ = ["CONTENT_TYPE_LATEST", "CollectorMetrics"]

_LAGS_S: Final = np.array([0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600])
_SECONDS: Final = np.array([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])


class CollectorMetrics:
    """Counts requests and lags. Safe for threads."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.waiting_bytes = 0
        """Bodies that were read and are not stored yet."""
        self._requests: Counter[tuple[str, str]] = Counter()
        self._shed: Counter[str] = Counter()
        self._seconds = _Histogram(_SECONDS)
        self._lags_s = _Histogram(_LAGS_S)
        self._counting = threading.Lock()

    def request_ended(self, route: str, code: int, seconds: float) -> None:
        """Count an answer; only those to events are timed."""
        with self._counting:
            self._requests[route, str(code)] += 1
            if route == "/v1/events":
                self._seconds.add(np.array([seconds]))

    def request_shed(self, reason: str) -> None:
        """Count a request that was refused without doing its work."""
        with self._counting:
            self._shed[reason] += 1

    def events_arrived(self, events: Sequence[Event], received_ms: int) -> None:
        """Count how much later than it happened each event arrived; never less than 0."""
        times = np.fromiter((event.event_time_ms for event in events), np.int64, len(events))
        with self._counting:
            self._lags_s.add(np.maximum(received_ms - times, 0) / 1000)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        registry.register(ProcessCollector(pid=os.getpid, registry=None))
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Return every metric."""
        requests = CounterMetricFamily(
            "twotower_http_requests_total", "Requests answered.", labels=["route", "code"]
        )
        shed = CounterMetricFamily(
            "twotower_shed_requests_total", "Requests refused unanswered.", labels=["reason"]
        )
        with self._counting:
            for labels, number in self._requests.items():
                requests.add_metric(labels, number)
            for reason, number in self._shed.items():
                shed.add_metric([reason], number)
            seconds, lags_s = self._seconds.family_parts(), self._lags_s.family_parts()
        yield from (requests, shed)
        duration = HistogramMetricFamily(
            "twotower_http_request_duration_seconds", "Time of a request.", labels=["route"]
        )
        duration.add_metric(["/v1/events"], *seconds)
        lag = HistogramMetricFamily(
            "twotower_event_lag_seconds", "From an event's time to its arrival.", labels=[]
        )
        lag.add_metric([], *lags_s)
        yield from (duration, lag)
        yield GaugeMetricFamily(
            "twotower_collector_waiting_bytes",
            "Bodies that were read and are not stored yet.",
            value=self.waiting_bytes,
        )


class _Histogram:
    """Numbers by bucket; thousands at a time cost little more than one."""

    def __init__(self, limits: npt.NDArray[np.float64]) -> None:
        self._limits = limits
        self._counts = np.zeros(len(limits) + 1, np.int64)
        self._sum = 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count each value in the first bucket whose limit it does not exceed."""
        places = np.searchsorted(self._limits, values)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())

    def family_parts(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets and the sum."""
        limits = [*map(str, self._limits.tolist()), "+Inf"]
        totals = np.cumsum(self._counts).tolist()
        return list(zip(limits, map(float, totals), strict=True)), self._sum
