"""`POST /v1/retrieve` and `:batch`: bytes in, bytes out, nothing of a framework in between.

The search runs inside the event loop: a thread pool costs a fifth of the throughput on one core
and worsens the tail, so a server grows by workers. Between reading `served` and the last byte of
an answer nothing else is asked, so tower, tables and index are of one generation. A batch reads
it once for all its requests, and lets others be answered between two of them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from twotower.errors import ConfigError, DataError, suggestion
from twotower.serving.answer import Found
from twotower.serving.answer_json import encode, made_by, raw_json, retrieve_json
from twotower.serving.decoding import BodyDecoder
from twotower.serving.exchange import Call, Reply
from twotower.serving.messages import MAX_BATCH, RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.overload import Overload
from twotower.serving.problems import Fault, RefusedRequest, problem_body
from twotower.serving.profiles import StoredProfile
from twotower.serving.refusals import AGAIN, invalid
from twotower.serving.reload import Follower
from twotower.serving.served import Served, find
from twotower.serving.tracing import Traces

__all__ = ["RetrieveRoute", "generation_header", "served_now"]


class _RawBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose requests are decoded one by one."""

    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


_REQUEST: Final = BodyDecoder(RetrieveRequest)
_BATCH: Final = BodyDecoder(_RawBatch)


def served_now(follower: Follower) -> Served:
    """Return what is served.

    Raises:
        RefusedRequest: nothing is, yet.
    """
    served = follower.served
    if served is None:
        problem = follower.problem or "no generation is loaded yet"
        raise RefusedRequest(503, problem, headers=AGAIN)
    return served


class _Answered(NamedTuple):
    content: bytes
    found: Found


class RetrieveRoute:
    """Answers one request after the other from what the follower serves."""

    def __init__(
        self,
        follower: Follower,
        metrics: Metrics,
        overload: Overload,
        traces: Traces | None = None,
    ) -> None:
        """`traces` are told of every answer but those of batches."""
        self._follower = follower
        self._traces = traces
        self._overload = overload
        self._metrics = metrics

    def retrieve(self, call: Call) -> Reply:
        """Answer one request."""
        served = served_now(self._follower)
        began_s = time.perf_counter()
        content, found = self._answer(served, call.body, call)
        if self._traces is not None:
            self._traces.retrieved(call, served.activation.generation, found, began_s)
        timing = f"tower;dur={found.tower_s * 1e3:.3f}, ann;dur={found.ann_s * 1e3:.3f}"
        headers = (*generation_header(served), (b"server-timing", timing.encode()))
        return Reply(200, content, headers=headers)

    async def batch(self, call: Call) -> Reply:
        """Answer several requests from one generation, each with its answer or its problem."""
        requests = _BATCH.decode(call.body).requests
        served = served_now(self._follower)
        results: list[dict[str, Any]] = []
        for raw in requests:
            results.append(self._result(served, raw, call))
            await asyncio.sleep(0)  # whoever waits is answered before the next one
        content = encode(made_by(served, call.request_id) | {"results": results})
        return Reply(200, content, headers=generation_header(served))

    def _result(self, served: Served, raw: msgspec.Raw, call: Call) -> dict[str, Any]:
        try:
            if call.is_late:
                self._metrics.request_shed("deadline")
                raise RefusedRequest(504, "the time that the client gave passed before the search")
            return {"answer": raw_json(self._answer(served, raw, call).content)}
        except RefusedRequest as refused:
            problem = problem_body(refused.status, refused.detail, call.request_id, refused.faults)
            return {"problem": raw_json(problem)}

    def _answer(self, served: Served, body: bytes | msgspec.Raw, call: Call) -> _Answered:
        began = time.perf_counter()
        request = _REQUEST.decode(body)
        self._follower.recent_requests.append(request)
        decoded = time.perf_counter()
        retriever, request, reasons = self._overload.lighten(served.retriever, request)
        stored = call.stored(request.user_id)
        found = _find(served._replace(retriever=retriever), request, stored)
        found.degraded.extend(reasons)
        searched = time.perf_counter()
        content = retrieve_json(served, request, found, call.request_id)
        self._count(found, decoded - began, time.perf_counter() - searched)
        return _Answered(content, found)

    def _count(self, found: Found, decode_s: float, encode_s: float) -> None:
        metrics = self._metrics
        metrics.stage("decode", decode_s)
        metrics.stage("tower", found.tower_s)
        metrics.stage("filter", found.filter_s)
        metrics.stage("ann", found.ann_s)
        metrics.stage("encode", encode_s)
        num_found = len(found.scores)
        metrics.answered(num_found, float(found.scores[0]) if num_found else None, found.degraded)


def generation_header(served: Served) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header that names what answered."""
    return ((b"x-generation", served.activation.generation.encode()),)


def _find(served: Served, request: RetrieveRequest, stored: StoredProfile) -> Found:
    try:
        return find(served.retriever, request, stored)
    except (ConfigError, DataError) as error:
        fault = _feature_fault(served, request)
        if fault is None:
            raise invalid(error) from None
        raise RefusedRequest(422, str(error), faults=[fault]) from None


def _feature_fault(served: Served, request: RetrieveRequest) -> Fault | None:
    """Return which given feature is none of the model's."""
    known = [field.name for field in served.retriever.encoder.user_features.fields]
    for name in request.features:
        if name not in known:
            detail = f"unknown feature '{name}'; known: {', '.join(known)}{suggestion(name, known)}"
            return Fault(f"$.features.{name}", detail)
    return None
