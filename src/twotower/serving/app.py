"""The HTTP surface: `/v1/retrieve` in front, everything else by FastAPI behind it.

The front door counts every request and gives it its ID, whatever answers it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from importlib.metadata import version
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from twotower.serving.metrics import CONTENT_TYPE_LATEST, Metrics, render_metrics
from twotower.serving.openapi import (
    CONTENT_SECURITY_POLICY,
    docs_page,
    merged_document,
    stylesheet,
)
from twotower.serving.retrieve_route import (
    Receive,
    RequestIds,
    RetrieveRoute,
    Scope,
    Send,
    problem_body,
    send_answer,
)
from twotower.serving.shared_memory import SharedMemory
from twotower.serving.status import Readiness, WorkerStatus, readiness

__all__ = ["FrontDoor", "make_app"]

_LOGGER: Final = logging.getLogger("twotower")
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_RETRIEVE: Final = "/v1/retrieve"
_READY: Final = {
    "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{Readiness.__name__}"}}}
}
_READINESS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The server gives whole answers.", **_READY},
    503: {"description": "It does not; `checks` says why.", **_READY},
}
_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Prometheus text.", "content": {"text/plain": {}}}
}


def make_app(memory: SharedMemory) -> FastAPI:
    """Return all routes that do not have to be fast, and the document of all that there are."""
    app = FastAPI(
        title="twotower",
        version=version("twotower"),
        description="Two-tower retrieval: the items for a user, from one generation.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    _add_health(app, memory)
    _add_documents(app)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _internal_problem)
    return app


def _add_health(app: FastAPI, memory: SharedMemory) -> None:
    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Whether to send requests here", responses=_READINESS)
    async def readyz() -> Response:
        found = readiness(memory.statuses(WorkerStatus))
        code = 200 if found.status == "ready" else 503
        return Response(msgspec.json.encode(found), code, media_type=_JSON)

    @app.get("/metrics", summary="Numbers for Prometheus, over all workers", responses=_TEXT)
    async def metrics() -> Response:
        return Response(render_metrics(memory, time.time()), media_type=CONTENT_TYPE_LATEST)


def _add_documents(app: FastAPI) -> None:
    document = merged_document(app.openapi())
    encoded = msgspec.json.encode(document)
    page, style = docs_page(document), stylesheet()
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
    }

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(encoded, media_type=_JSON)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    @app.get("/docs/style.css", include_in_schema=False)
    async def docs_style() -> Response:
        return Response(style, media_type="text/css", headers=headers)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = problem_body(error.status_code, str(error.detail), request.state.request_id)
    return Response(body, error.status_code, headers=error.headers, media_type=_PROBLEM)


async def _internal_problem(request: Request, error: Exception) -> Response:
    body = problem_body(500, "see the server's log", request.state.request_id)
    return Response(body, 500, media_type=_PROBLEM)


class FrontDoor:
    """The application of one worker."""

    def __init__(self, retrieve: RetrieveRoute, behind: FastAPI, metrics: Metrics) -> None:
        self.is_draining = False
        """Once set, every answer asks its client to open the next connection elsewhere."""
        self._retrieve = retrieve
        self._behind = behind
        self._metrics = metrics
        self._ids = RequestIds()
        self._routes = {_RETRIEVE, *(getattr(route, "path", "") for route in behind.routes)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a failure of ours is logged and becomes a problem."""
        if scope["type"] != "http":
            await self._behind(scope, receive, send)
            return
        path: str = scope["path"]
        route = path if path in self._routes else "other"
        reply = _Reply(send, self._metrics, route, self._ids.of(scope), self.is_draining)
        scope.setdefault("state", {})["request_id"] = reply.request_id
        try:
            answer = self._retrieve if path == _RETRIEVE else self._behind
            await answer(scope, receive, reply.send)
        except Exception as error:
            _LOGGER.error("request_failed request_id=%s", reply.request_id, exc_info=error)
            await reply.fail()
        finally:
            reply.finish()


class _Reply:
    """Passes an answer on with the headers that every answer has, and counts it once."""

    def __init__(
        self, send: Send, metrics: Metrics, route: str, request_id: str, is_last: bool
    ) -> None:
        self.request_id = request_id
        self._send = send
        self._metrics = metrics
        self._route = route
        self._is_last = is_last
        self._status = 0
        self._is_finished = False
        self._began_s = time.perf_counter()
        metrics.request_began()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            if self._is_last:
                message["headers"].append((b"connection", b"close"))
        elif not message.get("more_body"):
            self.finish()  # before the last byte: who has the answer finds it counted
        await self._send(message)

    def finish(self) -> None:
        """Count the request; one that was never answered as 500."""
        if not self._is_finished:
            self._is_finished = True
            seconds = time.perf_counter() - self._began_s
            self._metrics.request_ended(self._route, self._status or 500, seconds)

    async def fail(self) -> None:
        """Send a problem, unless an answer has begun."""
        if self._status == 0:
            body = problem_body(500, "see the server's log", self.request_id)
            await send_answer(self.send, 500, body, _PROBLEM.encode())
