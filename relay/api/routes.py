"""The route table: every operation of the relay's HTTP API, declared once, and the router that finds one.

Path, body, answer, errors and handler of an operation stand together. `relay.api.app` serves from the table and
`relay.api.openapi` writes the specification from it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mep_wire import PROTOCOL_VERSION, api
from mep_wire import errors as e
from relay.api import endpoints, functions, health, tasks
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.api.openapi import specification

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `path` has its variables in braces; `errors` are those beyond the common ones."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    answer: Any
    summary: str
    body: type[Any] | None = None
    errors: tuple[type[e.MepError], ...] = ()
    query: tuple[str, ...] = ()
    status: int = 200
    open: bool = False
    """Whether it answers without a token."""
    open_here: bool = False
    """Whether it answers without a token to this host's own programs."""
    text: bool = False
    """Whether its answer is plain text."""

    @property
    def all_errors(self) -> tuple[type[e.MepError], ...]:
        """Every error that this operation may answer with."""
        common: tuple[type[e.MepError], ...] = () if self.open else (e.TokenUnknown, e.RateLimited)
        return common + ((e.BodyInvalid, e.PayloadTooLarge, e.RelayBusy) if self.body else ()) + self.errors


@dataclass(slots=True)
class Router:
    """Finds the route of a request: fixed paths by one look-up, the others by pattern."""

    _fixed: dict[tuple[str, str], Route] = field(default_factory=dict)
    _patterns: list[tuple[str, re.Pattern[str], Route]] = field(default_factory=list)

    def add(self, route: Route) -> None:
        """Serve `route`."""
        if "{" not in route.path:
            self._fixed[route.method, route.path] = route
            return
        pattern = "/".join("([^/]+)" if part.startswith("{") else re.escape(part) for part in route.path.split("/"))
        self._patterns.append((route.method, re.compile(pattern), route))

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
        """Return the route and the values of its variables."""
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed, ()
        for wanted, pattern, route in self._patterns:
            if wanted == method and (match := pattern.fullmatch(path)):
                return route, match.groups()
        return None


async def version(service: ApiContext, request: Request) -> str | dict[str, Any]:
    """GET /v2/version: the API's version; with `service=all` by part."""
    if request.query.get("service") != "all":
        return VERSION
    return {"api": VERSION, "protocol": PROTOCOL_VERSION, "min_sdk_version": "0.1.0", "min_ep_version": "0.1.0"}


async def openapi(service: ApiContext, request: Request) -> dict[str, Any]:
    """GET /openapi.json."""
    return specification(ROUTES, VERSION)


_REGISTER_ERRORS = (e.IdConflict,)
_SUBMIT_ERRORS = (
    e.EndpointForbidden,
    e.FunctionForbidden,
    e.FunctionNotAllowed,
    e.EndpointNotFound,
    e.FunctionNotFound,
    e.IdConflict,
    e.UserConfigInvalid,
    e.UserConfigReserved,
    e.TooManyTasks,
    e.StorageFull,
)
_SUBMIT = "/v3/endpoints/{endpoint_id}/submit"
_STATUS = "/v2/endpoints/{endpoint_id}/status"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v2/version", version, Any, "The API's version", query=("service",), open=True),
    Route("GET", "/openapi.json", openapi, Any, "This specification", open=True),
    Route("GET", "/healthz", health.healthz, health.Health, "Whether the relay runs", open=True),
    Route(
        "GET",
        "/readyz",
        health.readyz,
        health.Health,
        "Whether the relay can store tasks",
        errors=(e.RelayUnavailable,),
        open=True,
    ),
    Route("GET", "/metrics", health.metrics, str, "The relay's figures for Prometheus", open_here=True, text=True),
    Route(
        "POST",
        "/v3/endpoints",
        endpoints.register,
        api.RegisterAnswer,
        "Register an endpoint",
        body=api.RegisterBody,
        errors=_REGISTER_ERRORS,
    ),
    Route(
        "PUT",
        "/v3/endpoints/{endpoint_id}",
        endpoints.update,
        api.RegisterAnswer,
        "Change an endpoint's registration; a link with an old key is cut",
        body=api.RegisterBody,
        errors=(e.NotOwner, e.EndpointNotFound, e.IdConflict),
    ),
    Route(
        "GET",
        "/v2/endpoints",
        endpoints.listing,
        list[endpoints.EndpointInfo],
        "List one's endpoints (role=any: public ones too)",
        query=("role",),
    ),
    Route(
        "GET",
        "/v2/endpoints/{endpoint_id}",
        endpoints.look_up,
        endpoints.EndpointInfo,
        "Look an endpoint up",
        errors=(e.EndpointForbidden, e.EndpointNotFound),
    ),
    Route(
        "GET",
        _STATUS,
        endpoints.status,
        endpoints.EndpointStatus,
        "Whether an endpoint is online",
        errors=(e.EndpointForbidden, e.EndpointNotFound),
    ),
    Route(
        "DELETE",
        "/v2/endpoints/{endpoint_id}",
        endpoints.delete,
        endpoints.Deleted,
        "Delete an endpoint; tasks that wait for it fail",
        errors=(e.NotOwner, e.EndpointNotFound),
    ),
    Route(
        "POST",
        "/v3/endpoints/{endpoint_id}/stop",
        endpoints.stop,
        endpoints.Deleted,
        "Stop an endpoint, wherever it runs",
        errors=(e.NotOwner, e.EndpointNotFound, e.EndpointOffline),
    ),
    Route(
        "POST",
        "/v3/functions",
        functions.register,
        api.FunctionAnswer,
        "Register a function",
        body=api.FunctionBody,
    ),
    Route(
        "POST",
        "/v2/functions",
        functions.register,
        api.FunctionAnswer,
        "Register a function",
        body=api.FunctionBody,
    ),
    Route(
        "POST",
        "/v3/functions/digests",
        functions.digests,
        api.FunctionDigestsAnswer,
        "Look up the SHA-256 of functions' code",
        body=api.FunctionDigestsBody,
    ),
    Route(
        "GET",
        "/v2/functions/{function_id}",
        functions.look_up,
        functions.FunctionInfo,
        "Look a function up",
        errors=(e.FunctionForbidden, e.FunctionNotFound),
    ),
    Route(
        "DELETE",
        "/v2/functions/{function_id}",
        functions.delete,
        endpoints.Deleted,
        "Delete a function",
        errors=(e.NotOwner, e.FunctionNotFound),
    ),
    Route(
        "POST",
        _SUBMIT,
        tasks.submit,
        api.SubmitAnswer,
        "Submit tasks; answered once they are on disk",
        body=api.SubmitBody,
        errors=_SUBMIT_ERRORS,
    ),
    Route(
        "GET",
        "/v2/tasks/{task_id}",
        tasks.look_up,
        api.TaskStatus,
        "A task's state and result",
        errors=(e.TaskNotFound,),
    ),
    Route(
        "POST",
        "/v2/batch_status",
        tasks.batch_status,
        api.BatchStatusAnswer,
        "The states and results of many tasks",
        body=api.BatchStatusBody,
    ),
    Route(
        "GET",
        "/v2/taskgroup/{task_group_id}",
        tasks.group,
        api.TaskGroupAnswer,
        "The tasks of a group",
        errors=(e.TaskGroupNotFound,),
    ),
    Route(
        "POST",
        "/v3/tasks/cancel",
        tasks.cancel,
        api.CancelAnswer,
        "Cancel tasks",
        body=api.CancelBody,
    ),
)
