"""One OpenAPI document for all routes, and a page that shows it without anything from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec

from twotower.serving.messages import MAX_K, Problem, RetrieveAnswer, RetrieveRequest
from twotower.serving.status import Readiness

__all__ = ["CONTENT_SECURITY_POLICY", "docs_page", "merged_document", "stylesheet"]

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_EXAMPLE: Final = """curl -s http://127.0.0.1:8080/v1/retrieve \\
  -H 'Content-Type: application/json' -d '{"user_id": 712, "k": 5}'"""
_PROBLEMS: Final = {
    "400": "The body is no JSON, or a header is malformed.",
    "405": "The path takes POST only.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "422": "A field is unknown, missing or wrong; `errors` says which.",
    "500": "The server failed.",
    "503": "No generation is loaded yet.",
    "504": "The deadline had passed; nothing was searched.",
}


def merged_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the framework's document with the routes and schemas that stand in front of it."""
    _, schemas = msgspec.json.schema_components(
        [RetrieveRequest, RetrieveAnswer, Problem, Readiness],
        ref_template="#/components/schemas/{name}",
    )
    components = dict(document.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    paths = {"/v1/retrieve": {"post": _retrieve_operation()}, **document["paths"]}
    return {**document, "paths": paths, "components": components}


def _retrieve_operation() -> dict[str, Any]:
    return {
        "operationId": "retrieve",
        "summary": "The items for a user",
        "description": f"At most {MAX_K} items, the best first, from one generation.",
        "parameters": [
            _header(
                "X-Request-Timeout-Ms",
                {"type": "integer", "minimum": 0, "maximum": 3_600_000},
                "Milliseconds after which the answer is of no use: 504 without a search.",
            ),
            _header("X-Request-Id", {"type": "string"}, "Comes back, or a new one."),
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _reference("RetrieveRequest")}},
        },
        "responses": {
            "200": _answer(),
            **{code: _problem(text) for code, text in _PROBLEMS.items()},
        },
    }


def _header(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": dict(schema),
    }


def _answer() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    return {
        "description": "The items, and what made them.",
        "headers": {
            "X-Generation": {"description": "The generation that answered.", **text},
            "X-Request-Id": {"description": "Of this request.", **text},
            "Server-Timing": {"description": "Milliseconds of tower and ann.", **text},
        },
        "content": {"application/json": {"schema": _reference("RetrieveAnswer")}},
    }


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _reference("Problem")}}
    return {"description": description, "content": content}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def stylesheet() -> bytes:
    """Return the page's only asset, from the package."""
    return files("twotower.serving").joinpath("docs.css").read_bytes()


def docs_page(document: Mapping[str, Any]) -> str:
    """Return the document as a page without scripts."""
    title = escape(document["info"]["title"])
    operations = "".join(
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(map(_schema, *zip(*document["components"]["schemas"].items(), strict=True)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="/docs/style.css"></head><body><h1>{title}</h1>'
        f"<p>{escape(document['info']['description'])} "
        '<a href="/openapi.json">OpenAPI document</a></p>'
        f"<pre>{escape(_EXAMPLE)}</pre>{operations}{schemas}</body></html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(code)}</td><td>{escape(response['description'])}</td></tr>"
        for code, response in operation["responses"].items()
    )
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
        f"<table><tr><th>status</th><th>meaning</th></tr>{rows}</table>"
    )


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(_type(inner))}</td>"
        f"<td>{'required' if field in required else ''}</td>"
        f"<td>{escape(inner.get('description', ''))}</td></tr>"
        for field, inner in schema.get("properties", {}).items()
    )
    heading = "<tr><th>field</th><th>type</th><th></th><th>meaning</th></tr>"
    return (
        f"<h2>{escape(name)}</h2><p>{escape(schema.get('description', ''))}</p>"
        f"<table>{heading}{rows}</table>"
    )


def _type(schema: Mapping[str, Any]) -> str:
    """Return a schema's type in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = ", ".join(_limits(schema))
    return f"{schema.get('type', 'any')}{f' ({limits})' if limits else ''}"


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    for name in ("minimum", "maximum", "maxLength", "default"):
        if name in schema:
            yield f"{name} {schema[name]}"
