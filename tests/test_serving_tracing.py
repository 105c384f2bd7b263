"""Spans of retrievals: what they are, whose trace they go on with, and where they go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from serving_project import USERS, eventually, publish_marked, running_server, write_project
from twotower.errors import MissingExtra
from twotower.publishing.store import ModelStore
from twotower.serving import tracing
from twotower.serving.answer import Found
from twotower.serving.exchange import Call
from twotower.serving.tracing import Traces, check_tracing, make_traces

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter", reason="the extra otel is not installed")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECRET = "user-4711"


def call(sampled: bool | None) -> Call:
    """A request of a user with a trace, or without one."""
    given = (
        []
        if sampled is None
        else [(b"traceparent", f"00-{TRACE}-{PARENT}-0{int(sampled)}".encode())]
    )
    scope = {"headers": [(b"host", b"x"), *given]}
    return Call(f'{{"user_id": "{SECRET}"}}'.encode(), "r-1", {}, 0.0, scope)


FOUND = Found(
    positions=np.arange(3),
    scores=np.ones(3, np.float32),
    clicks=np.arange(0),
    degraded=[],
    tower_s=0.010,
    filter_s=0.001,
    ann_s=0.020,
)


def test_an_answer_is_a_span_with_its_stages_in_the_clients_trace() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    for share, sampled, number in (
        *((0.0, True, 4), (0.0, False, 0), (0.0, None, 0)),
        *((1.0, True, 4), (1.0, False, 0), (1.0, None, 4)),
    ):
        exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        Traces(provider).retrieved(call(sampled), "g-000007", FOUND, time.perf_counter() - 0.04)
        spans = {span.name: span for span in exporter.get_finished_spans()}
        assert len(spans) == number
        if not spans:
            continue
        whole = spans["retrieve"]
        assert spans.keys() == {"retrieve", "tower", "filter", "ann"}
        assert (f"{whole.context.trace_id:032x}" == TRACE) == (sampled is not None)
        assert whole.parent is None or f"{whole.parent.span_id:016x}" == PARENT
        assert dict(whole.attributes or {}) == {
            "twotower.generation": "g-000007",
            "twotower.request_id": "r-1",
            "twotower.items": 3,
        }
        assert round((whole.end_time - whole.start_time) / 1e6) >= 40
        for name, milliseconds in (("tower", 10), ("filter", 1), ("ann", 20)):
            stage = spans[name]
            assert stage.parent.span_id == whole.context.span_id
            assert stage.end_time - stage.start_time == milliseconds * 1_000_000
            assert whole.start_time <= stage.start_time <= stage.end_time <= whole.end_time
        assert SECRET not in "".join(span.to_json() for span in spans.values())


def test_without_the_extra_it_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "_PACKAGES", ("opentelemetry.missing",))
    with pytest.raises(MissingExtra, match=r"twotower\[otel\]"):
        check_tracing(0.5)
    check_tracing(0.0)
    assert make_traces(0.0) is None


@pytest.fixture
def collected() -> Iterator[tuple[str, list[bytes]]]:
    """Where spans may be sent, and what came."""
    bodies: list[bytes] = []

    class Collecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Collecting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_a_server_sends_its_spans_also_those_of_its_last_answers(
    tmp_path: Path, collected: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, bodies = collected
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    store = ModelStore(tmp_path / "twotower-data")
    store.activate(publish_marked(store, 1), force=True)
    with running_server(write_project(tmp_path, more="trace_share = 1.0")) as server:
        trace = f"00-{TRACE}-{PARENT}-01"
        body = {"user_id": USERS[0], "k": 2}
        assert server.ask("POST", "/v1/retrieve", body, traceparent=trace).status == 200
        assert server.stop() == 0
    sent = b"".join(eventually(lambda: list(bodies)))
    assert bytes.fromhex(TRACE) in sent
    for name in (b"retrieve", b"tower", b"filter", b"ann", b"g-000001"):
        assert name in sent
