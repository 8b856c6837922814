"""The relay's HTTP API on Starlette: asks who is there, reads the body, calls the route's handler, answers.

Called by uvicorn for every request. The one function that turns an error into an answer, and an unforeseen
exception into a 500 with a correlation id.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.routing import Router, WebSocketRoute
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from mep_wire.errors import (
    BodyInvalid,
    EndpointNotFound,
    MepError,
    PayloadTooLarge,
    RateLimited,
    RelayBusy,
    RouteNotFound,
    ScopeMissing,
    TokenUnknown,
)
from mep_wire.limits import DATA_PIECE_BYTES, MAX_BODY_BYTES
from relay.api import http, raw
from relay.api.context import ApiContext
from relay.api.http import Request, check_scope
from relay.api.result_stream import serve_stream
from relay.api.routes import ROUTES, Route
from relay.log import RateLimitedLog, peer_log
from relay.store.records import Caller

STREAM_PATH = "/v3/stream"
_BEFORE_THE_BODY = (PayloadTooLarge, TokenUnknown, RelayBusy, RateLimited, ScopeMissing)
"""Errors with which a request is answered before its body is read."""
_OF_ANYBODY = (TokenUnknown, RateLimited, RelayBusy, EndpointNotFound)
"""Refusals that are no matter of an endpoint's, or that unauthenticated peers can cause."""
_NOBODY = Caller(account_id="", identity_id="")


class App:
    """The relay's HTTP API over one `ApiContext`."""

    def __init__(self, service: ApiContext) -> None:
        self._service = service
        self._limited_log = RateLimitedLog()
        routes = [HttpRoute(one.path, partial(self._answer, one), methods=[one.method]) for one in ROUTES]
        stream = WebSocketRoute(STREAM_PATH, partial(serve_stream, service))
        self._router = Router([*routes, stream], redirect_slashes=False, default=_nowhere)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        scope["app"] = self  # Starlette raises HTTPException then for a path with other methods
        try:
            await self._router(scope, receive, send)
        except ClientDisconnected:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request
            await self._refuse(HTTPConnection(scope), error)(scope, receive, send)

    def _refuse(self, asked: HTTPConnection, error: Exception) -> Response:
        """Return the answer to a request or stream that failed."""
        method, path = asked.scope.get("method", "WebSocket"), asked.scope["path"]
        if isinstance(error, HTTPException):
            error = RouteNotFound(method=method, path=path[:200])
        if not isinstance(error, MepError):
            error = MepError(detail=repr(error))
            self._limited_log.exception(
                "http: a request failed", method=method, path=path, correlation_id=error.correlation_id
            )
        elif error.http_status >= 500:
            self._limited_log.warning(
                "http: a request failed", method=method, path=path, reason=error, detail=error.detail
            )
        else:  # a person quotes its correlation id
            self._tell_endpoint(path, error)
            peer_log.info("http: a request was refused", code=error.code, method=method, path=path[:200], reason=error)
        headers = {}
        if isinstance(error, RateLimited):
            headers["retry-after"] = str(error.fields["wait_s"])
        if error.http_status == 401:
            headers["www-authenticate"] = "Bearer"
        if isinstance(error, _BEFORE_THE_BODY) and method in ("POST", "PUT"):
            headers["connection"] = "close"  # the rest of the body is not read
        packed = http.wants_packed(asked)
        return http.answer(http.error_answer(error), error.http_status, packed=packed, headers=headers)

    def _tell_endpoint(self, path: str, error: MepError) -> None:
        """Let the administrator of the endpoint that tasks were for find the refusal."""
        found = _SUBMISSION.fullmatch(path)
        if found is not None and not isinstance(error, _OF_ANYBODY):
            self._service.dispatcher.live.stories.refused(found.group(1).lower(), error)

    async def _answer(self, route: Route, asked: HttpRequest) -> Response:
        """Return the answer to one request. Raises MepError."""
        if route.raw:
            return await self._raw(route, asked)
        caller, key = await self._caller(route, asked), _key(route, asked)
        values = tuple(map(_id, asked.path_params.values()))
        query = {name: given[0] for name in route.query if (given := asked.query_params.getlist(name))}
        request = Request(caller, values, query, None, http.wants_packed(asked), key)
        if route.text:
            return Response(await route.handler(self._service, request), media_type=http.TEXT)
        if route.gives_bytes:  # counts as a body until the client has it
            with ExitStack() as held:
                held.enter_context(self._service.bodies.room(caller.account_id, DATA_PIECE_BYTES))
                return http.BytesResponse(await route.handler(self._service, request), held.pop_all())
        if route.body is None and not route.takes_bytes:
            return http.answer(await route.handler(self._service, request), route.status, packed=request.packed)
        limit = DATA_PIECE_BYTES if route.takes_bytes else MAX_BODY_BYTES
        size = http.declared_size(asked, limit)
        with self._service.bodies.room(caller.account_id, limit if size is None else size):
            request.body = await http.read_body(asked, limit)
            if route.body is not None:
                packed = http.is_packed(http.header(asked, b"content-type"))
                request.body = http.decode(request.body, route.body, packed=packed)
            return http.answer(await route.handler(self._service, request), route.status, packed=request.packed)

    async def _raw(self, route: Route, asked: HttpRequest) -> Response:
        """Return the answer of a route that anybody may ask with a form."""
        if http.is_passed_on(asked):
            self._limited_log.warning(
                "http: a proxy passes requests on and is not in trusted_proxies: limits by address take all for one"
            )
        self._service.strangers.spend(http.network(asked))
        _key(route, asked)
        answer: Response = await route.handler(self._service, await raw.read(asked))
        answer.headers["x-content-type-options"] = "nosniff"
        return answer

    async def _caller(self, route: Route, asked: HttpRequest) -> Caller:
        """Return who asks. Raises TokenUnknown, ScopeMissing, RateLimited and the errors of a provider's tokens."""
        if route.open:
            return _NOBODY
        caller = await self._service.people.caller(http.header(asked, b"authorization"), http.network(asked))
        self._service.requests.spend(caller.account_id)
        check_scope(caller, route.scope)
        return caller


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a path that no route has. Raises HTTPException."""
    raise HTTPException(404)


def _key(route: Route, asked: HttpRequest) -> str:
    """Return the request's idempotency key. Raises BodyInvalid where a repeated request would make a thing twice."""
    key = http.idempotency_key(asked)
    if key and route.method == "POST" and not route.repeatable:
        raise BodyInvalid(reason=f"the header Idempotency-Key: {route.method} {route.path} does not take it; {NO_KEY}")
    return key


NO_KEY = "leave it out, and look whether the thing was made before you ask again"
_SUBMISSION = re.compile(r"/v[23]/endpoints/([0-9a-fA-F-]{36})/submit")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _id(value: str) -> str:
    """Return the stored form of an id in a path. Invalid UUIDs match nothing and are clipped in the answer."""
    return value.lower() if _UUID.fullmatch(value) else value[:64]
