"""Writes the OpenAPI 3.1 specification from the route table and the structs that the table names."""
# ruff: noqa: D102 - relay.api.routes.Route has the text of every field

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from mep_wire.api import JSON, MSGPACK, ErrorAnswer
from mep_wire.errors import MepError
from relay.api.http import ANY_TOKEN, BYTES, OPEN


class Operation(Protocol):
    """What the specification tells of a route (see relay.api.routes.Route)."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def scope(self) -> str: ...
    @property
    def text(self) -> bool: ...
    @property
    def raw(self) -> bool: ...
    @property
    def takes_bytes(self) -> bool: ...
    @property
    def gives_bytes(self) -> bool: ...
    @property
    def query(self) -> tuple[str, ...]: ...
    @property
    def body(self) -> type[Any] | None: ...
    @property
    def answer(self) -> Any: ...
    @property
    def all_errors(self) -> tuple[type[MepError], ...]: ...


_FORM = "application/x-www-form-urlencoded"
_REF = "#/components/schemas/{name}"


def specification(routes: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the specification as a JSON-serializable object."""
    types: list[Any] = [ErrorAnswer]
    for route in routes:
        types += [kind for kind in (route.body, route.answer) if kind is not None and kind is not Any]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MEP relay", "version": version, "description": inspect.cleandoc(__doc__ or "")},
        "paths": dict(paths),
        "components": {
            "schemas": dict(components),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": {
            **_done(route, by_type),
            **_errors(route, by_type),
        },
        "security": [] if route.scope == OPEN else [{"token": [route.scope] if route.scope != ANY_TOKEN else []}],
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, **_content(by_type[str(route.body)], "")}
        del operation["requestBody"]["description"]
    if route.takes_bytes:
        operation["requestBody"] = {"required": True, "content": _bytes()}
    if route.raw and route.method == "POST":
        operation["requestBody"] = {"required": True, "content": {_FORM: {"schema": {"type": "object"}}}}
    return operation


def _operation_id(route: Operation) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.lower()).strip("_")
    return f"{route.method.lower()}_{words}{'_slash' if route.path.endswith('/') else ''}"


def _done(route: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    if route.raw:
        page = {"description": "A page, or JSON as docs/relay-login.md says"}
        return {"200": page, "303": {"description": "The browser goes on elsewhere"}, "4XX": page, "503": page}
    if route.gives_bytes:
        return {"200": {"description": "The bytes", "content": _bytes()}}
    return {str(route.status): _text() if route.text else _content(by_type.get(str(route.answer), {}), "Done")}


def _parameters(route: Operation) -> list[dict[str, Any]]:
    inside = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    return inside + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]


def _content(schema: Any, description: str) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema} for media in (JSON, MSGPACK)}}


def _bytes() -> dict[str, Any]:
    return {BYTES: {"schema": {"type": "string", "format": "binary"}}}


def _text() -> dict[str, Any]:
    return {"description": "Done", "content": {"text/plain": {"schema": {"type": "string"}}}}


def _errors(route: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    by_status: defaultdict[int, list[type[MepError]]] = defaultdict(list)
    for error in route.all_errors:
        by_status[error.http_status].append(error)
    return {
        str(status): _content(
            by_type[str(ErrorAnswer)],
            "; ".join(f"{error.code}: {inspect.cleandoc(error.__doc__ or '')}" for error in errors),
        )
        for status, errors in sorted(by_status.items())
    }
