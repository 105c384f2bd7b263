"""The route table: every path is found, named for metrics, and asks for a scope."""

from __future__ import annotations

import pytest

from twotower.serving.app import make_app
from twotower.serving.problems import RefusedRequest
from twotower.serving.route_table import RouteTable
from twotower.serving.routes import ROUTES, Route
from twotower.serving.shared_memory import SharedMemory

TABLE = RouteTable()
PLACES = RouteTable(
    (
        Route("list", "GET", "/v1/things", "admin", ""),
        Route("show", "GET", "/v1/things/{thing}", "admin", ""),
        Route("drop", "DELETE", "/v1/things/{thing}", "admin", ""),
        Route("name", "PUT", "/v1/names/{name}", "admin", ""),
        Route("use", "POST", "/v1/things/{thing}:use", "admin", ""),
    )
)


def test_every_route_is_found_by_its_path() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    for route in ROUTES:
        path = route.path.replace("{", "").replace("}", "")
        match = TABLE.find(route.method, path, path.encode())
        assert (match.route, match.label) == (route, route.path)
        assert len(match.values) == route.path.count("{")


def test_only_health_and_documents_are_open() -> None:
    open_routes = {route.name for route in ROUTES if route.scope == "open"}
    health = {"healthz", "readyz", "startupz", "v2_live", "v2_ready"}
    assert open_routes == health | {"openapi", "docs", "docs_style"}


def test_the_framework_answers_no_path_that_the_table_lacks() -> None:
    app = make_app(SharedMemory(1))
    behind = {route.path for route in ROUTES if route.is_behind}
    assert {getattr(route, "path", "") for route in app.routes} == behind


@pytest.mark.parametrize(
    ("method", "raw", "name", "values"),
    [
        ("GET", "/v1/things", "list", {}),
        ("GET", "/v1/things/a", "show", {"thing": "a"}),
        ("DELETE", "/v1/things/a%2Fb%20%C3%A9", "drop", {"thing": "a/b é"}),
        ("POST", "/v1/things/a:use", "use", {"thing": "a"}),
        ("PUT", "/v1/names/a:b", "name", {"name": "a:b"}),
        ("GET", "/v1/things/%2e%2e", "show", {"thing": ".."}),
    ],
)
def test_places_are_decoded_once_they_are_found(
    method: str, raw: str, name: str, values: dict[str, str]
) -> None:
    match = PLACES.find(method, raw, raw.encode())
    assert match.route is not None
    assert (match.route.name, match.values) == (name, values)


@pytest.mark.parametrize(
    ("method", "raw", "label", "allowed"),
    [
        ("POST", "/v1/things", "/v1/things", "GET"),
        ("PUT", "/v1/things/a", "/v1/things/{thing}", "DELETE, GET"),
        ("PUT", "/v1/things/a:use", "/v1/things/{thing}:use", "POST"),
        ("GET", "/v1/things/a:use", "/v1/things/{thing}:use", "POST"),
        ("GET", "/v1/things/a:b", "other", ""),
        ("GET", "/v1/things/a/b", "other", ""),
        ("GET", "/v1/things/", "other", ""),
        ("GET", "/v1/thing", "other", ""),
    ],
)
def test_what_is_not_there_is_told_from_what_is_not_allowed(
    method: str, raw: str, label: str, allowed: str
) -> None:
    match = PLACES.find(method, raw, raw.encode())
    assert (match.route, match.label, match.allowed) == (None, label, allowed)


def test_a_value_that_is_no_text_is_refused() -> None:
    with pytest.raises(RefusedRequest) as refused:
        PLACES.find("GET", "/v1/things/\ufffd", b"/v1/things/%ff")
    assert refused.value.status == 400
