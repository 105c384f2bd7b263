"""The HTTP surface: the routes of `/v1` in front, everything else by FastAPI behind them.

The front door counts every request and gives it its ID, whatever answers it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from twotower.serving.docs_page import CONTENT_SECURITY_POLICY, docs_page, stylesheet
from twotower.serving.exchange import (
    PROBLEM,
    Receive,
    Scope,
    Send,
    Unbounded,
    answer_call,
    send_reply,
)
from twotower.serving.guard import Guard
from twotower.serving.handlers import Mounted
from twotower.serving.metrics import Metrics
from twotower.serving.metrics_page import CONTENT_TYPE_LATEST, render_metrics
from twotower.serving.openapi import merged_document
from twotower.serving.outgoing import Echo, Outgoing, log_failure
from twotower.serving.overload import Overload
from twotower.serving.problems import RefusedRequest, problem_body
from twotower.serving.project_metrics import ProjectMetrics
from twotower.serving.route_table import Match, RouteTable
from twotower.serving.routes import ROUTES
from twotower.serving.shared_memory import SharedMemory
from twotower.serving.status import Readiness, Startup, WorkerStatus, readiness, startup

__all__ = ["FrontDoor", "make_app"]

_JSON: Final = "application/json"
_PROBLEM: Final = PROBLEM.decode()
_SUMMARIES: Final = {route.name: route.summary for route in ROUTES}
_READY: Final = {
    "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{Readiness.__name__}"}}}
}
_READINESS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The server gives whole answers.", **_READY},
    503: {"description": "It does not; `checks` says why.", **_READY},
}
_STARTED: Final = {
    "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{Startup.__name__}"}}}
}
_STARTUP: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Every worker has begun.", **_STARTED},
    503: {"description": "Some have not yet.", **_STARTED},
}
_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Prometheus text.", "content": {"text/plain": {}}}
}


def make_app(memory: SharedMemory, project: ProjectMetrics | None = None) -> FastAPI:
    """Return all routes that do not have to be fast, and the document of all that there are."""
    app = FastAPI(
        title="twotower",
        version=version("twotower"),
        description="Two-tower retrieval: the items for a user, from one generation.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_health(app, memory, project)
    _add_documents(app)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _internal_problem)
    return app


def _add_health(app: FastAPI, memory: SharedMemory, project: ProjectMetrics | None) -> None:
    @app.get("/healthz", summary=_SUMMARIES["healthz"])
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/startupz", summary=_SUMMARIES["startupz"], responses=_STARTUP)
    async def startupz() -> Response:
        found = startup(memory.statuses(WorkerStatus))
        code = 200 if found.status == "started" else 503
        return Response(msgspec.json.encode(found), code, media_type=_JSON)

    @app.get("/readyz", summary=_SUMMARIES["readyz"], responses=_READINESS)
    async def readyz() -> Response:
        found = readiness(memory.statuses(WorkerStatus))
        code = 200 if found.status == "ready" else 503
        return Response(msgspec.json.encode(found), code, media_type=_JSON)

    @app.get("/metrics", summary=_SUMMARIES["metrics"], responses=_TEXT)
    def metrics() -> Response:  # in a thread: it reads files
        text = render_metrics(memory, time.time(), project)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


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

    def __init__(
        self,
        handlers: Mapping[str, Mounted],
        behind: FastAPI,
        metrics: Metrics,
        guard: Guard,
        overload: Overload,
        echo: Echo | None = None,
    ) -> None:
        self._handlers = handlers
        self._behind = behind
        self._metrics = metrics
        self._guard = guard
        self._overload = overload
        self._unshed = Unbounded(metrics.request_shed)
        self._echo = echo or Echo()
        self._table = RouteTable()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a failure of ours is logged and becomes a problem."""
        if scope["type"] != "http":
            await self._behind(scope, receive, send)
            return
        request_id, headers = self._echo.of(scope["headers"])
        outgoing = Outgoing(send, self._metrics, request_id, headers)
        scope.setdefault("state", {})["request_id"] = request_id
        try:
            match = self._table.find(scope["method"], scope["path"], scope["raw_path"])
            outgoing.label = match.label
            if match.route is not None:
                found = self._guard.check(scope["headers"], match.route.scope)
                scope["state"]["key"] = found.key_id if found else None
            await self._answer(match, scope, receive, outgoing.send)
        except RefusedRequest as refused:
            await outgoing.refuse(refused)
        except Exception as error:
            log_failure("request_failed", request_id, error)
            await outgoing.refuse(RefusedRequest(500, "see the server's log"))
        finally:
            outgoing.finish()

    async def _answer(self, match: Match, scope: Scope, receive: Receive, send: Send) -> None:
        mounted = self._handlers.get(match.route.name) if match.route else None
        if mounted is not None:
            is_sheddable = match.route is not None and match.route.scope == "retrieve"
            if is_sheddable:
                reply = await answer_call(*mounted, self._overload, scope, match.values, receive)
            else:
                with self._overload.elsewhere():
                    reply = await answer_call(*mounted, self._unshed, scope, match.values, receive)
            await send_reply(send, reply)
        elif match.route is None and match.allowed:
            headers = ((b"allow", match.allowed.encode()),)
            raise RefusedRequest(405, f"expected {match.allowed}", headers=headers)
        else:
            await self._behind(scope, receive, send)
