"""One OpenAPI document: the routes of the table, and those of the framework behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from twotower.serving.admin_messages import MAX_REASON
from twotower.serving.inference_messages import MODEL
from twotower.serving.problems import Problem
from twotower.serving.routes import ROUTES, Route
from twotower.serving.status import Readiness, Startup

__all__ = ["merged_document"]

_PROBLEMS: Final = {
    400: "The body is no JSON, or a header or the path is malformed.",
    401: "There is no API key, or none that is good.",
    403: "The API key lacks the scope.",
    404: "There is nothing of this name.",
    405: "The path does not take this method.",
    408: "The body did not arrive in time.",
    409: "What is there does not allow it; nothing was changed.",
    413: "The body is too large.",
    415: "The body is not declared as JSON, or it is compressed.",
    422: "A field is unknown, missing or wrong; `errors` says which.",
    429: "More is asked than is allowed or waits already; `Retry-After` says when to come again.",
    500: "The server failed.",
    503: "It cannot be answered now; `Retry-After` says when to come again.",
    504: "The deadline had passed; nothing was done.",
}
_LINES: Final = {"type": "string", "description": "One JSON object a line."}
_NAME: Final = {"type": "string", "pattern": "^g-[0-9]{6,12}$"}
_PLACES: Final[dict[str, dict[str, Any]]] = {
    "generation": _NAME,
    "version": _NAME,
    "model": {"type": "string", "enum": [MODEL]},
    "item_id": {"type": "string", "minLength": 1, "maxLength": 512},
}
_QUERIES: Final = {"reason": {"type": "string", "maxLength": MAX_REASON}}
_OF_ALL: Final = (400, 405, 500, 504)
_OF_KEYS: Final = (401, 403, 429)
_OF_BODIES: Final = (408, 413, 415, 422)
_SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_REQUEST_HEADERS: Final = (
    (
        "X-Request-Timeout-Ms",
        {"type": "integer", "minimum": 0, "maximum": 3_600_000},
        "Milliseconds after which the answer is of no use: 504 without doing the work.",
    ),
    ("X-Request-Id", {"type": "string"}, "Comes back, or a new one."),
    ("traceparent", {"type": "string"}, "Of a W3C trace; comes back."),
)
_IDEMPOTENCY_KEY: Final = (
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "The same body again under its key gets the same answer; another body gets 409.",
)
_ANSWER_HEADERS: Final = {
    "X-Request-Id": {"description": "Of this request.", "schema": {"type": "string"}},
}
_RETRIEVE_HEADERS: Final = {
    "X-Generation": {
        "description": "The generation that answered.",
        "schema": {"type": "string"},
    },
}


def merged_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the framework's document with the routes and schemas that stand in front of it."""
    front = [route for route in ROUTES if not route.is_behind]
    kinds = [kind for route in front for kind in (route.request, route.answer) if kind is not None]
    schemas, components_of_kinds = msgspec.json.schema_components(
        [*kinds, Problem, Readiness, Startup], ref_template="#/components/schemas/{name}"
    )
    of_kind = dict(zip(map(repr, kinds), schemas, strict=False))
    components = dict(document.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), **components_of_kinds}
    paths: dict[str, dict[str, Any]] = {}
    for route in front:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, of_kind)
    components["securitySchemes"] = _SECURITY_SCHEMES
    paths |= document["paths"]
    for route in ROUTES:
        if route.scope != "open":
            _ask_for_key(paths[route.path][route.method.lower()], route.scope)
    return {**document, "paths": paths, "components": components}


def _ask_for_key(operation: dict[str, Any], scope: str) -> None:
    """Add what a route says that asks for a key; a project without keys asks for none."""
    operation["security"] = [{}, {"bearer": []}, {"header": []}]
    operation["responses"] |= {str(code): _problem(_PROBLEMS[code]) for code in _OF_KEYS}
    text = f"A key needs the scope `{scope}`."
    operation["description"] = f"{operation.get('description', '')} {text}".strip()


def _operation(route: Route, of_kind: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": route.description,
        "parameters": [*_parameters(route)],
        "responses": {
            str(route.status): _answer(route, of_kind[repr(route.answer)]),
            **{str(code): _problem(_PROBLEMS[code]) for code in _codes(route)},
        },
    }
    if route.request is not None:
        schema = of_kind[repr(route.request)]
        content = {
            kind: {"schema": schema if kind == "application/json" else _LINES}
            for kind in route.media_types
        }
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _codes(route: Route) -> Iterable[int]:
    of_bodies = () if route.request is None else _OF_BODIES
    return sorted({*_OF_ALL, *of_bodies, *route.problems})


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        yield _parameter("path", name, _PLACES[name], "", required=True)
    for name, description in route.query:
        yield _parameter("query", name, _QUERIES[name], description)
    of_route = (_IDEMPOTENCY_KEY,) if route.takes_key else ()
    for name, schema, description in (*_REQUEST_HEADERS, *of_route):
        yield _parameter("header", name, schema, description)


def _parameter(
    place: str, name: str, schema: Mapping[str, Any], description: str, *, required: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": description,
        "schema": dict(schema),
    }


def _answer(route: Route, schema: Mapping[str, Any]) -> dict[str, Any]:
    headers = _ANSWER_HEADERS | (_RETRIEVE_HEADERS if route.scope == "retrieve" else {})
    return {
        "description": "The answer.",
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": description, "content": content}
