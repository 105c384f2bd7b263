"""Spans of retrievals for OpenTelemetry: `retrieve` and in it `tower`, `filter` and `ann`.

They are made after the answer, from the times that it was measured with anyway, so that a request
which is not sampled costs one comparison. Where they go is said by OpenTelemetry's own variables,
such as `OTEL_EXPORTER_OTLP_ENDPOINT`. Nothing of what a user sent is in a span.
"""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from twotower.errors import MissingExtra
from twotower.serving.answer import Found
from twotower.serving.exchange import Call, header

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Traces", "check_tracing", "make_traces"]

_NS: Final = 1_000_000_000
_CLOSE_S: Final = 2.0
_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Traces:
    """Makes the spans of one worker."""

    def __init__(self, provider: TracerProvider) -> None:
        """`provider` decides what is sampled and where it goes."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("twotower")
        self._kind = SpanKind.SERVER
        self._inside = set_span_in_context
        self._propagator = TraceContextTextMapPropagator()

    def retrieved(self, call: Call, generation: str, found: Found, began_s: float) -> None:
        """Make the spans of an answer.

        Args:
            call: The request; it goes on with the trace in its `traceparent`.
            generation: What answered.
            found: With the time of each stage.
            began_s: When its work began, by `time.perf_counter`.
        """
        trace = header(call.scope, b"traceparent")
        carrier = {} if trace is None else {"traceparent": trace.decode("latin-1")}
        now_ns = time.time_ns()
        start_ns = now_ns - round((time.perf_counter() - began_s) * _NS)
        span = self._tracer.start_span(
            "retrieve", self._propagator.extract(carrier), self._kind, start_time=start_ns
        )
        if span.is_recording():
            span.set_attribute("twotower.generation", generation)
            span.set_attribute("twotower.request_id", call.request_id)
            span.set_attribute("twotower.items", len(found.scores))
            self._add_stages(self._inside(span), found, now_ns)
        span.end(now_ns)

    def _add_stages(self, inside: Any, found: Found, end_ns: int) -> None:
        """Add the stages, the last of which ended before the answer was written."""
        stages = {"tower": found.tower_s, "filter": found.filter_s, "ann": found.ann_s}
        at_ns = end_ns - round(sum(stages.values()) * _NS)
        for name, seconds in stages.items():
            stage = self._tracer.start_span(name, inside, start_time=at_ns)
            at_ns += round(seconds * _NS)
            stage.end(at_ns)

    def close(self) -> None:
        """Send what was not sent yet, if that can be done soon."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_S)


def check_tracing(share: float) -> None:
    """Refuse to make spans that could go nowhere; imports nothing.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    if share == 0:
        return
    for package in _PACKAGES:
        try:
            found = find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise MissingExtra(package, "otel", "tracing (serving.trace_share)")


def make_traces(share: float) -> Traces | None:
    """Return what makes spans of a share of the requests; None for a share of 0.

    A request whose `traceparent` says that it is sampled is, whatever the share; one whose says
    that it is not is not. Starts a thread, which sends them; `check_tracing` comes before.
    """
    if share == 0:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(share),
        resource=Resource.create({"service.name": "twotower"}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
