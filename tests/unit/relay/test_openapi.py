"""The specification matches the server: made from one table, and complete."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mep_wire.errors import by_code
from relay.api.app import App
from relay.api.openapi import specification
from relay.api.routes import ROUTES, Route, openapi
from relay.auth.settings import SCOPES

SPEC: dict[str, Any] = json.loads(json.dumps(specification(ROUTES, "1")))

REQUIRED = [
    "GET /v2/version",
    "POST /v3/endpoints",
    "PUT /v3/endpoints/{}",
    "GET /v2/endpoints",
    "GET /v2/endpoints/{}",
    "GET /v2/endpoints/{}/status",
    "DELETE /v2/endpoints/{}",
    "POST /v3/functions",
    "GET /v2/functions/{}",
    "DELETE /v2/functions/{}",
    "POST /v3/endpoints/{}/submit",
    "GET /v2/tasks/{}",
    "POST /v2/batch_status",
    "GET /v2/taskgroup/{}",
    "POST /v3/tasks/cancel",
    "GET /openapi.json",
]


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs(inner)


def test_the_routes_are_those_that_the_api_has_to_have() -> None:
    served = {f"{route.method} {re.sub(r'{[^}]*}', '{}', route.path)}" for route in ROUTES}
    assert set(REQUIRED) <= served


def test_the_specification_has_exactly_the_served_routes() -> None:
    specified = {(method.upper(), path) for path, methods in SPEC["paths"].items() for method in methods}
    assert specified == {(route.method, route.path) for route in ROUTES}


def test_every_reference_resolves() -> None:
    for ref in refs(SPEC):
        assert ref.removeprefix("#/components/schemas/") in SPEC["components"]["schemas"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_says_its_body_answer_and_errors(route: Route) -> None:
    operation = SPEC["paths"][route.path][route.method.lower()]
    assert ("requestBody" in operation) == (
        route.body is not None or route.takes_bytes or (route.raw and route.method == "POST")
    )
    assert str(route.status) in operation["responses"]
    for error in route.all_errors:
        assert error.code in by_code()
        assert error.code in operation["responses"][str(error.http_status)]["description"]
    variables = re.findall(r"{(\w+)}", route.path)
    assert [one["name"] for one in operation["parameters"] if one["in"] == "path"] == variables
    told = [{"token": [route.scope] if route.scope in SCOPES else []}]
    assert operation["security"] == ([] if route.open else told)


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for methods in SPEC["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


async def served(method: str, path: str) -> Any:
    """Return the route that a request reaches and its variables, or the status of its answer."""
    service, found = SimpleNamespace(), []

    async def asked(self: App, route: Route, request: HttpRequest) -> Response:
        found.append((route, tuple(request.path_params.values())))
        return Response()

    async def send(message: Any) -> None:
        found.extend([message["status"]] if "status" in message else [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(App, "_answer", asked)
        app = App(cast("Any", service))
    await app({"type": "http", "method": method, "path": path, "headers": []}, cast("Any", None), send)
    return found[0]


def test_a_request_reaches_its_own_route_of_the_table_and_others_none() -> None:
    for route in ROUTES:
        path = re.sub(r"{\w+}", "some-id", route.path)
        found = asyncio.run(served(route.method, path))
        assert found[0] is route
        assert set(found[1]) <= {"some-id"}
        assert asyncio.run(served(route.method, path + "/and/more/than/that")) == 404
    for asked in ("PATCH /v2/endpoints", "GET /v2/tasks/", "GET /v2/tasks/a/b", "GET /healthz/", "GET /v3/stream"):
        assert asyncio.run(served(*asked.split())) == 404
    assert asyncio.run(served("HEAD", "/healthz"))[0].method == "GET"


def test_the_first_of_two_values_of_a_query_counts() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v2/version", "headers": []}
    asyncio.run(App(cast("Any", None))(scope | {"query_string": b"service=all&service=x"}, cast("Any", None), send))
    assert b"min_sdk_version" in sent[1]["body"]


def test_the_specification_is_made_once() -> None:
    """It takes 60 ms, in which the relay does nothing else, and anybody may ask for it without a token."""
    ask: Any = openapi
    assert asyncio.run(ask(None, None)) is asyncio.run(ask(None, None))
