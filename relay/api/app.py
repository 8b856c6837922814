"""The ASGI application: finds the route, asks who is there, reads the body, calls the handler, answers.

Called by uvicorn for every request. The one function that turns an error into an answer, and an unforeseen
exception into a 500 with a correlation id.
"""

from __future__ import annotations

import re

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
from mep_wire.limits import DATA_PIECE_BYTES
from relay.api import http, raw
from relay.api.context import ApiContext
from relay.api.http import Receive, Request, Scope, Send, check_scope
from relay.api.result_stream import serve_stream
from relay.api.routes import ROUTES, Route, Router
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
        self._router = Router()
        for route in ROUTES:
            self._router.add(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or stream."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await serve_stream(self._service, scope, receive, send, known=scope["path"] == STREAM_PATH)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        packed = http.is_packed(http.header(scope, b"accept") or http.header(scope, b"content-type"))
        close, media, wait_s = False, http.media_type(packed=packed), 0
        try:
            found = self._find(scope)
            if found[0].raw:
                await raw.send_raw(send, await self._raw(scope, receive, *found))
                return
            if found[0].gives_bytes:
                await self._give(scope, send, *found)
                return
            route, body = await self._answer(scope, receive, *found, packed=packed)
            status, media = route.status, http.TEXT if route.text else media
        except MepError as error:
            status, body = error.http_status, http.encode(http.error_answer(error), packed=packed)
            if isinstance(error, RateLimited):
                wait_s = int(str(error.fields["wait_s"]))
            # The rest of the body is not read: the connection cannot be reused.
            close = isinstance(error, _BEFORE_THE_BODY) and scope["method"] in ("POST", "PUT")
            if status >= 500:
                self._limited_log.warning(
                    "http: a request failed",
                    method=scope["method"],
                    path=scope["path"],
                    reason=error,
                    detail=error.detail,
                )
            else:  # a person quotes its correlation id
                self._tell_endpoint(scope["path"], error)
                peer_log.info(
                    "http: a request was refused",
                    code=error.code,
                    method=scope["method"],
                    path=scope["path"][:200],
                    reason=error,
                )
        except Exception as unforeseen:  # noqa: BLE001 - the outermost loop of a request
            wrapped = MepError(detail=repr(unforeseen))
            self._limited_log.exception(
                "http: a request failed",
                method=scope["method"],
                path=scope["path"],
                correlation_id=wrapped.correlation_id,
            )
            status, body = 500, http.encode(http.error_answer(wrapped), packed=packed)
        await http.answer(send, status, body, media=media, close=close, wait_s=wait_s)

    def _tell_endpoint(self, path: str, error: MepError) -> None:
        """Let the administrator of the endpoint that tasks were for find the refusal."""
        found = _SUBMISSION.fullmatch(path)
        if found is not None and not isinstance(error, _OF_ANYBODY):
            self._service.dispatcher.live.stories.refused(found.group(1).lower(), error)

    def _find(self, scope: Scope) -> tuple[Route, tuple[str, ...]]:
        """Return the route and the values of its variables. Raises RouteNotFound."""
        found = self._router.find(scope["method"], scope["path"])
        if found is None:
            raise RouteNotFound(method=scope["method"], path=scope["path"][:200])
        return found

    async def _raw(self, scope: Scope, receive: Receive, route: Route, values: tuple[str, ...]) -> raw.RawAnswer:
        """Return the answer of a route that anybody may ask with a form."""
        if http.is_passed_on(scope):
            self._limited_log.warning(
                "http: a proxy passes requests on and is not in trusted_proxies: limits by address take all for one"
            )
        self._service.strangers.spend(http.network(scope))
        _key(scope, route)
        answer: raw.RawAnswer = await route.handler(self._service, await raw.read(scope, receive, values))
        return answer

    async def _caller(self, scope: Scope, route: Route) -> Caller:
        """Return who asks. Raises TokenUnknown, ScopeMissing, RateLimited and the errors of a provider's tokens."""
        if route.open:
            return _NOBODY
        caller = await self._service.people.caller(http.header(scope, b"authorization"), http.network(scope))
        self._service.requests.spend(caller.account_id)
        check_scope(caller, route.scope)
        return caller

    async def _give(self, scope: Scope, send: Send, route: Route, values: tuple[str, ...]) -> None:
        """Send a piece of data, which counts as a body until the client has it."""
        caller = await self._caller(scope, route)
        request = Request(caller, tuple(map(_id, values)), http.query(scope), None, packed=False)
        with self._service.bodies.room(caller.account_id, DATA_PIECE_BYTES):
            await http.send_bytes(send, await route.handler(self._service, request))

    async def _take(self, scope: Scope, receive: Receive, route: Route, request: Request) -> object:
        """Return the answer to a piece of data."""
        size = http.declared_size(scope, DATA_PIECE_BYTES)
        with self._service.bodies.room(request.caller.account_id, DATA_PIECE_BYTES if size is None else size):
            request.body = await http.read_body(scope, receive, DATA_PIECE_BYTES)
            return await route.handler(self._service, request)

    async def _answer(
        self, scope: Scope, receive: Receive, route: Route, values: tuple[str, ...], *, packed: bool
    ) -> tuple[Route, bytes]:
        caller = await self._caller(scope, route)
        key = _key(scope, route)
        request = Request(caller, tuple(map(_id, values)), http.query(scope), None, packed, key)
        if route.text:
            return route, (await route.handler(self._service, request)).encode()
        if route.takes_bytes:
            return route, http.encode(await self._take(scope, receive, route, request), packed=packed)
        if route.body is None:
            return route, http.encode(await route.handler(self._service, request), packed=packed)
        with self._service.bodies.room(caller.account_id, http.declared_size(scope)):
            data = await http.read_body(scope, receive)
            request.body = http.decode(data, route.body, packed=http.is_packed(http.header(scope, b"content-type")))
            del data
            return route, http.encode(await route.handler(self._service, request), packed=packed)


def _key(scope: Scope, route: Route) -> str:
    """Return the request's idempotency key. Raises BodyInvalid where a repeated request would make a thing twice."""
    key = http.idempotency_key(scope)
    if key and route.method == "POST" and not route.repeatable:
        raise BodyInvalid(reason=f"the header Idempotency-Key: {route.method} {route.path} does not take it; {NO_KEY}")
    return key


NO_KEY = "leave it out, and look whether the thing was made before you ask again"
_SUBMISSION = re.compile(r"/v[23]/endpoints/([0-9a-fA-F-]{36})/submit")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _id(value: str) -> str:
    """Return the stored form of an id in a path. Invalid UUIDs match nothing and are clipped in the answer."""
    return value.lower() if _UUID.fullmatch(value) else value[:64]
