"""A page that shows the OpenAPI document, without scripts and without anything from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any, Final

__all__ = ["CONTENT_SECURITY_POLICY", "docs_page", "stylesheet"]

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_EXAMPLE: Final = """curl -s http://127.0.0.1:8080/v1/retrieve \\
  -H 'Content-Type: application/json' -d '{"user_id": 712, "k": 5}'"""


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
