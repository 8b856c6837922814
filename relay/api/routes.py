"""The route table: every operation of the relay's HTTP API, declared once.

Path, body, answer, errors and handler of an operation stand together. `relay.api.app` serves from the table and
`relay.api.openapi` writes the specification from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from mep_wire import PROTOCOL_VERSION, api
from mep_wire import errors as e
from relay.api import actions, data, endpoints, functions, health, oauth, own_lists, people, sharing, tasks
from relay.api import people_bodies as pb
from relay.api.context import ApiContext
from relay.api.http import ANY_TOKEN, OPEN, Request
from relay.api.openapi import specification
from relay.auth.policies import Policy
from relay.auth.settings import SCOPES

VERSION = "0.1.0"


_FOR_TOKENS = (e.TokenUnknown, e.RateLimited, e.RelayBusy, e.ProviderUnavailable, e.IdentityUnusable)
"""Errors of finding out who asks."""


Needs = Literal["submit", "read", "manage_endpoints", "manage_tokens", "admin", "open", "any token"]
"""A scope, OPEN or ANY_TOKEN."""


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
    scope: Needs = field(kw_only=True)
    """What a token must allow; each route says so."""
    text: bool = False
    """Whether its answer is plain text."""
    repeatable: bool = False
    """Whether a POST with an `Idempotency-Key` makes nothing twice: such a header is refused elsewhere."""
    takes_bytes: bool = False
    """Whether its body is bytes as they are: a piece of data."""
    gives_bytes: bool = False
    """Whether its answer is."""
    raw: bool = False
    """Whether it is for browsers and OAuth clients: forms, pages, redirects. It takes no token."""

    @property
    def open(self) -> bool:
        """Whether it answers without a token."""
        return self.scope == OPEN

    @property
    def all_errors(self) -> tuple[type[e.MepError], ...]:
        """Every error that this operation may answer with."""
        if self.raw:
            return (e.RateLimited, *((e.BodyInvalid, e.PayloadTooLarge) if self.method == "POST" else (e.BodyInvalid,)))
        common: tuple[type[e.MepError], ...] = () if self.open else _FOR_TOKENS
        if self.scope in SCOPES:
            common += (e.ScopeMissing,)
        has_body = self.body is not None or self.takes_bytes
        return common + ((e.BodyInvalid, e.PayloadTooLarge, e.RelayBusy) if has_body else ()) + self.errors


async def version(service: ApiContext, request: Request) -> str | dict[str, Any]:
    """GET /v2/version: the API's version; with `service=all` by part."""
    if request.query.get("service") != "all":
        return VERSION
    return {"api": VERSION, "protocol": PROTOCOL_VERSION, "min_sdk_version": "0.1.0", "min_ep_version": "0.1.0"}


async def openapi(service: ApiContext, request: Request) -> dict[str, Any]:
    """GET /openapi.json."""
    return _specification()


@cache
def _specification() -> dict[str, Any]:
    """Return the specification: it takes 60 ms to make, and anybody may ask for it."""
    return specification(ROUTES, VERSION)


_REGISTER_ERRORS = (e.IdConflict, e.PolicyNotFound)
_USE_ERRORS = (
    e.EndpointForbidden,
    e.EndpointNotShared,
    e.EndpointLocked,
    e.EndpointNotFound,
    e.LoginRequired,
    e.PolicyRefused,
)
_READ_ERRORS = (e.EndpointForbidden, e.EndpointNotShared, e.LoginRequired, e.PolicyRefused)
_SEE_ERRORS = (e.EndpointForbidden, e.EndpointNotShared, e.EndpointNotFound)
_FUNCTION_ERRORS = (*_USE_ERRORS, e.GroupNotFound, e.ClientForbidden, e.IdConflict, e.StorageFull)
_SUBMIT_ERRORS = (
    *_USE_ERRORS,
    e.FunctionForbidden,
    e.FunctionNotAllowed,
    e.ClientForbidden,
    e.HighAssurance,
    e.FunctionNotFound,
    e.IdConflict,
    e.UserConfigInvalid,
    e.UserConfigReserved,
    e.TooManyTasks,
    e.StorageFull,
    e.DataExpired,
    e.DataNotOffered,
)


def _resource(
    plural: str, single: str, module: Any, answer: Any, body: type[Any], missing: type[e.MepError]
) -> tuple[Route, ...]:
    """Return the five routes of one kind of thing that people make, read, change and delete."""
    one = f"/v3/{plural}/{{{single}_id}}"
    scope: Needs = "manage_endpoints"
    put, drop = getattr(module, f"update_{single}"), getattr(module, f"delete_{single}")
    changes = (e.NotOwner, missing)
    return (
        Route(
            "GET", f"/v3/{plural}", getattr(module, f"list_{plural}"), list[answer], f"One's own {plural}", scope="read"
        ),
        Route(
            "POST",
            f"/v3/{plural}",
            getattr(module, f"add_{single}"),
            answer,
            f"Make a {single}",
            body,
            scope=scope,
            repeatable=True,
        ),
        Route(
            "GET",
            one,
            getattr(module, f"look_up_{single}"),
            answer,
            f"Look a {single} up",
            errors=(missing,),
            scope="read",
        ),
        Route("PUT", one, put, answer, f"Change a {single}", body, errors=changes, scope=scope),
        Route("DELETE", one, drop, endpoints.Deleted, f"Delete a {single}", errors=changes, scope=scope),
    )


def _login(method: str, path: str, handler: Callable[..., Awaitable[Any]], summary: str) -> Route:
    return Route(method, path, handler, Any, summary, raw=True, scope=OPEN)


_LOGIN_ROUTES = (
    _login("GET", "/.well-known/oauth-authorization-server", oauth.metadata, "The authorization server's metadata"),
    _login("GET", "/oauth/authorize", oauth.authorize, "Begin a login in a browser"),
    _login("POST", "/oauth/token", oauth.token, "Exchange a code or another grant for tokens"),
    _login("POST", "/oauth/device", oauth.device_start, "Begin a login for a device"),
    _login("POST", "/oauth/revoke", oauth.revoke, "Revoke a token and its login"),
    _login("GET", "/oauth/callback/{provider}", oauth.from_provider, "A browser comes back from a provider"),
    _login("GET", "/login", oauth.choose, "The ways to log in"),
    _login("GET", "/login/to", oauth.to_provider, "Go to a provider"),
    _login("GET", "/login/password", oauth.password_form, "The form for a password"),
    _login("POST", "/login/password", oauth.password, "Log in with a password"),
    _login("GET", "/login/consent", oauth.consent_form, "The form for consent"),
    _login("POST", "/login/consent", oauth.consent, "Give or refuse consent"),
    _login("GET", "/device", oauth.device_form, "The form for a device's code"),
    _login("POST", "/device", oauth.device, "Go on with a device's code"),
)
_ACTION = "/automate/compute/{action_id}"
_SUBMIT = "/v3/endpoints/{endpoint_id}/submit"
_STATUS = "/v2/endpoints/{endpoint_id}/status"

_ACTION_ROUTES = (
    Route(
        "GET",
        "/automate/compute",
        actions.introspect,
        actions.ProviderDescription,
        "The action provider, for Globus Flows' action interface",
        scope=OPEN,
    ),
    Route(
        "GET",
        "/automate/compute/",
        actions.introspect,
        actions.ProviderDescription,
        "The same, as flows ask for it",
        scope=OPEN,
    ),
    Route(
        "POST",
        "/automate/compute/run",
        actions.run,
        actions.ActionStatus,
        "Begin an action: calls of functions at one endpoint",
        body=pb.RunBody,
        errors=_SUBMIT_ERRORS,
        status=202,
        repeatable=True,
        scope="submit",
    ),
    Route(
        "GET",
        f"{_ACTION}/status",
        actions.status,
        actions.ActionStatus,
        "The state of an action",
        errors=(e.ActionNotFound,),
        scope="read",
    ),
    Route(
        "POST",
        f"{_ACTION}/cancel",
        actions.cancel,
        actions.ActionStatus,
        "Cancel an action",
        errors=(e.ActionNotFound,),
        repeatable=True,
        scope="submit",
    ),
    Route(
        "POST",
        f"{_ACTION}/release",
        actions.release,
        actions.ActionStatus,
        "Forget an action that has ended",
        errors=(e.ActionNotFound, e.ActionNotFinished),
        repeatable=True,
        scope="submit",
    ),
)

# The first that fits is taken, so that those asked for most come first.
ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        _SUBMIT,
        tasks.submit,
        api.SubmitAnswer,
        "Submit tasks; answered once they are on disk",
        body=api.SubmitBody,
        errors=_SUBMIT_ERRORS,
        scope="submit",
    ),
    Route(
        "GET",
        "/v2/tasks/{task_id}",
        tasks.look_up,
        api.TaskStatus,
        "A task's state and result",
        errors=(e.TaskNotFound, *_READ_ERRORS),
        scope="read",
    ),
    Route(
        "POST",
        "/v2/batch_status",
        tasks.batch_status,
        api.BatchStatusAnswer,
        "The states and results of many tasks",
        body=api.BatchStatusBody,
        repeatable=True,
        scope="read",
    ),
    Route(
        "GET",
        _STATUS,
        endpoints.status,
        endpoints.EndpointStatus,
        "Whether an endpoint is online",
        errors=_SEE_ERRORS,
        scope="read",
    ),
    Route("GET", "/v2/version", version, Any, "The API's version", query=("service",), scope=OPEN),
    Route("GET", "/openapi.json", openapi, Any, "This specification", scope=OPEN),
    Route("GET", "/healthz", health.healthz, health.Health, "Whether the relay runs", scope=OPEN),
    Route(
        "GET",
        "/readyz",
        health.readyz,
        health.Health,
        "Whether the relay can store tasks",
        errors=(e.RelayUnavailable,),
        scope=OPEN,
    ),
    Route(
        "GET",
        "/metrics",
        health.metrics,
        str,
        "The relay's figures for Prometheus",
        text=True,
        scope="read",
    ),
    Route(
        "POST",
        "/v3/endpoints",
        endpoints.register,
        api.RegisterAnswer,
        "Register an endpoint",
        body=api.RegisterBody,
        errors=_REGISTER_ERRORS,
        scope="manage_endpoints",
    ),
    Route(
        "PUT",
        "/v3/endpoints/{endpoint_id}",
        endpoints.update,
        api.RegisterAnswer,
        "Change an endpoint's registration; a link with an old key is cut",
        body=api.RegisterBody,
        errors=(e.NotOwner, e.EndpointNotFound, *_REGISTER_ERRORS),
        scope="manage_endpoints",
    ),
    Route(
        "GET",
        "/v2/endpoints",
        endpoints.listing,
        list[endpoints.EndpointSummary],
        "List one's endpoints (role=any: public ones too), without schema, metadata and allowed functions",
        query=("role",),
        scope="read",
    ),
    Route(
        "GET",
        "/v3/endpoints/find",
        own_lists.find_endpoints,
        list[endpoints.EndpointSummary],
        "Find endpoints by alias or OWNER/NAME, one's own by NAME alone",
        errors=(e.BodyInvalid, e.EndpointNotFound),
        query=("name",),
        scope="read",
    ),
    Route(
        "GET",
        "/v2/endpoints/{endpoint_id}",
        endpoints.look_up,
        endpoints.EndpointInfo,
        "Look an endpoint up",
        errors=_SEE_ERRORS,
        scope="read",
    ),
    Route(
        "DELETE",
        "/v2/endpoints/{endpoint_id}",
        endpoints.delete,
        endpoints.Deleted,
        "Delete an endpoint; tasks that wait for it fail",
        errors=(e.NotOwner, e.EndpointNotFound),
        scope="manage_endpoints",
    ),
    Route(
        "POST",
        "/v3/endpoints/{endpoint_id}/stop",
        endpoints.stop,
        endpoints.Deleted,
        "Stop an endpoint, wherever it runs",
        errors=(e.NotOwner, e.EndpointNotFound, e.EndpointOffline),
        repeatable=True,
        scope="manage_endpoints",
    ),
    Route(
        "POST",
        "/v3/functions",
        functions.register,
        api.FunctionAnswer,
        "Register a function",
        body=api.FunctionBody,
        errors=_FUNCTION_ERRORS,
        repeatable=True,
        scope="submit",
    ),
    Route(
        "POST",
        "/v2/functions",
        functions.register,
        api.FunctionAnswer,
        "Register a function",
        body=api.FunctionBody,
        errors=_FUNCTION_ERRORS,
        repeatable=True,
        scope="submit",
    ),
    Route(
        "POST",
        "/v3/functions/digests",
        functions.digests,
        api.FunctionDigestsAnswer,
        "Look up the SHA-256 of functions' code",
        body=api.FunctionDigestsBody,
        repeatable=True,
        scope="read",
    ),
    Route(
        "GET",
        "/v2/functions/{function_id}",
        functions.look_up,
        functions.FunctionInfo,
        "Look a function up",
        errors=(e.FunctionForbidden, e.FunctionNotFound),
        scope="read",
    ),
    Route(
        "DELETE",
        "/v2/functions/{function_id}",
        functions.delete,
        endpoints.Deleted,
        "Delete a function",
        errors=(e.NotOwner, e.FunctionNotFound, e.ClientForbidden),
        scope="submit",
    ),
    Route(
        "GET",
        "/v2/taskgroup/{task_group_id}",
        tasks.group,
        api.TaskGroupAnswer,
        "The tasks of a group",
        errors=(e.TaskGroupNotFound,),
        scope="read",
    ),
    Route(
        "GET",
        "/v3/taskgroups",
        own_lists.groups,
        api.OwnGroupsAnswer,
        "One's own task groups, the newest first",
        errors=(e.BodyInvalid,),
        query=("limit", "before"),
        scope="read",
    ),
    Route(
        "GET",
        "/v3/tasks",
        own_lists.tasks,
        api.OwnTasksAnswer,
        "One's own tasks: by state (words with commas; pending, ended) and since a time",
        errors=(e.BodyInvalid,),
        query=("state", "since", "limit", "after"),
        scope="read",
    ),
    Route(
        "POST",
        "/v3/tasks/cancel",
        tasks.cancel,
        api.CancelAnswer,
        "Cancel tasks",
        body=api.CancelBody,
        repeatable=True,
        scope="submit",
    ),
    Route(
        "PUT",
        "/v3/functions/{function_id}",
        functions.update,
        functions.Updated,
        "Change a function's description and sharing",
        body=pb.FunctionUpdateBody,
        errors=(e.NotOwner, e.FunctionNotFound, e.GroupNotFound, e.ClientForbidden, e.StorageFull),
        scope="submit",
    ),
    Route(
        "GET",
        "/v3/endpoints/{endpoint_id}/access",
        sharing.look_up_access,
        pb.AccessBody,
        "Who may use an endpoint",
        errors=(e.NotOwner, e.EndpointNotFound),
        scope="manage_endpoints",
    ),
    Route(
        "PUT",
        "/v3/endpoints/{endpoint_id}/access",
        sharing.put_access,
        pb.AccessBody,
        "Share, lock or name an endpoint",
        body=pb.AccessBody,
        errors=(e.NotOwner, e.EndpointNotFound, e.IdConflict, e.NameReserved),
        scope="manage_endpoints",
    ),
    *_resource("policies", "policy", sharing, Policy, pb.PolicyBody, e.PolicyNotFound),
    *_resource("groups", "group", sharing, pb.GroupInfo, pb.GroupBody, e.GroupNotFound),
    Route("GET", "/oauth/userinfo", people.userinfo, pb.Userinfo, "Who the token speaks for", scope=ANY_TOKEN),
    Route("GET", "/v3/tokens", people.tokens, pb.TokensAnswer, "One's own tokens", scope="manage_tokens"),
    Route(
        "POST",
        "/v3/tokens",
        people.add_token,
        pb.NewTokenAnswer,
        "Make a token",
        body=pb.TokenBody,
        errors=(e.ClientForbidden,),
        scope="manage_tokens",
    ),
    Route(
        "DELETE",
        "/v3/tokens/{token_id}",
        people.remove_token,
        endpoints.Deleted,
        "Revoke one of one's own tokens",
        errors=(e.TokenNotFound,),
        scope="manage_tokens",
    ),
    Route("GET", "/v3/clients", people.clients, list[pb.ClientInfo], "Services and gateways", scope="admin"),
    Route(
        "POST",
        "/v3/clients",
        people.add_client,
        pb.NewClientAnswer,
        "Make a service or gateway",
        body=pb.ClientBody,
        scope="admin",
    ),
    Route(
        "DELETE",
        "/v3/clients/{client_id}",
        people.remove_client,
        endpoints.Deleted,
        "Delete a service or gateway",
        errors=(e.ClientNotFound,),
        scope="admin",
    ),
    Route("GET", "/v3/data", data.limits, api.DataLimits, "Whether and how data goes by reference", scope="any token"),
    Route(
        "POST",
        "/v3/data/missing",
        data.missing,
        api.PiecesAnswer,
        "Which pieces of data are to be uploaded; the others are kept on",
        body=api.PiecesBody,
        scope="submit",
    ),
    Route(
        "PUT",
        "/v3/data/{digest}",
        data.store,
        api.PieceAnswer,
        "Upload a piece of data: its body is the bytes",
        errors=(e.DataNotOffered, e.DataMismatch, e.StorageFull, e.RelayUnavailable),
        takes_bytes=True,
        scope="submit",
    ),
    Route(
        "GET",
        "/v3/data/{digest}",
        data.read,
        bytes,
        "Download a piece of data of one's own: the answer is the bytes",
        errors=(e.DataNotFound, e.PayloadLost, e.RelayBusy, e.RelayUnavailable),
        gives_bytes=True,
        scope="read",
    ),
    *_ACTION_ROUTES,
    *_LOGIN_ROUTES,
)
