"""Between Starlette and the handlers: requests as typed values, answers and errors as bodies, JSON or MessagePack.

Trusts nothing that came in: sizes are checked before a body is read, bodies are decoded into declared
structs, and whatever goes wrong becomes an `ErrorAnswer`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mep_wire import api
from mep_wire.api import JSON, MSGPACK, ErrorAnswer
from mep_wire.errors import BodyInvalid, MepError, PayloadTooLarge, ScopeMissing
from mep_wire.limits import MAX_BODY_BYTES
from relay.api.people_bodies import BODIES as _PEOPLE_BODIES
from relay.rate_limit import network_of
from relay.store.records import Caller

T = TypeVar("T")
BYTES: Final = "application/octet-stream"
OPEN: Final = "open"
ANY_TOKEN: Final = "any token"  # noqa: S105 - a name
"""What a route may ask for in place of a scope: nothing, or a token with any scopes."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' name for its text format."""

_BLOCK_BYTES = 256 * 1024

_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()
_BODIES: tuple[type[Any], ...] = (
    *(api.RegisterBody, api.FunctionBody, api.FunctionDigestsBody),
    *(api.SubmitBody, api.BatchStatusBody, api.CancelBody, api.PiecesBody),
    *_PEOPLE_BODIES,
)
_json_decoders: dict[type[Any], Any] = {kind: msgspec.json.Decoder(kind) for kind in _BODIES}
_msgpack_decoders: dict[type[Any], Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in _BODIES}


_KEYS = uuid.UUID("0d6f6f0a-0a3f-4a53-9a7c-3f3c4d3f8d0e")
MAX_KEY = 255


class Request(msgspec.Struct):
    """One authenticated request, its body decoded."""

    caller: Caller
    path: tuple[str, ...]
    """The values of the route's variables."""
    query: dict[str, str]
    body: Any
    packed: bool
    """Whether the answer is to be MessagePack."""
    key: str = ""
    """The `Idempotency-Key` header: a repeated request with it makes nothing twice."""

    def new_id(self, kind: str) -> str:
        """Return the id of a thing that this request makes: with an idempotency key, always the same one."""
        if not self.key:
            return str(uuid.uuid4())
        return str(uuid.uuid5(_KEYS, f"{kind} {self.caller.account_id} {self.key}"))


def header(asked: HTTPConnection, name: bytes) -> str:
    """Return a header's value, empty where there is none. `name` is in lower case."""
    for key, value in asked.scope["headers"]:  # a third of what Starlette's Headers cost
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def address(asked: HTTPConnection) -> str:
    """Return where a request comes from."""
    return asked.client.host if asked.client else ""


def network(asked: HTTPConnection) -> str:
    """Return where a request comes from, as limits by address count it."""
    return network_of(address(asked))


def idempotency_key(asked: HttpRequest) -> str:
    """Return the request's idempotency key, empty where there is none. Raises BodyInvalid."""
    key = header(asked, b"idempotency-key")
    if len(key) > MAX_KEY or not key.isprintable():
        raise BodyInvalid(reason=f"the header Idempotency-Key: at most {MAX_KEY} printable characters")
    return key


def declared_size(asked: HttpRequest, limit: int = MAX_BODY_BYTES) -> int:
    """Return the size of the body that the request declares, the largest if none. Raises PayloadTooLarge."""
    declared = header(asked, b"content-length")
    size = int(declared) if declared.isdigit() else limit
    if size > limit:
        raise PayloadTooLarge(what="the request body", size=size, limit=limit)
    return size


async def read_body(asked: HttpRequest, limit: int = MAX_BODY_BYTES) -> bytes:
    """Return the request's body. Raises PayloadTooLarge as soon as its size is known to be over the limit."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in asked.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(what="the request body", size=size, limit=limit)
    except ClientDisconnect as error:
        raise BodyInvalid(reason="the connection ended before the body did") from error
    return b"".join(filter(None, chunks))


def decode(data: bytes, kind: type[T], *, packed: bool) -> T:
    """Return the body in `data`. Raises BodyInvalid, which names the field where it can."""
    decoder = (_msgpack_decoders if packed else _json_decoders)[kind]
    try:
        value: T = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BodyInvalid(reason=str(error) or type(error).__name__) from error
    return value


def is_packed(content_type: str) -> bool:
    """Return whether this media type is MessagePack (anything else is taken for JSON)."""
    return MSGPACK in content_type or "application/x-msgpack" in content_type


def is_passed_on(asked: HTTPConnection) -> bool:
    """Return whether a proxy on this host passed a request on, and is none of `trusted_proxies`.

    With a trusted one the client's address is another by now.
    """
    said = any(name in asked.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return said and (address(asked).startswith("127.") or address(asked) == "::1")


def wants_packed(asked: HTTPConnection) -> bool:
    """Return whether the answer to a request is to be MessagePack."""
    return is_packed(header(asked, b"accept") or header(asked, b"content-type"))


def answer(value: object, status: int, *, packed: bool, headers: dict[str, str] | None = None) -> Response:
    """Return an answer."""
    if packed:
        return Response(_msgpack_encoder.encode(value), status, headers, MSGPACK)
    return Response(_json_encoder.encode(value), status, headers, JSON)


class BytesResponse(StreamingResponse):
    """Bytes as they are, in blocks: each waits until the client has taken those before. Then `held` is given back."""

    def __init__(self, data: bytes, held: ExitStack) -> None:
        headers = {"content-length": str(len(data)), "cache-control": "no-store", "x-content-type-options": "nosniff"}
        super().__init__(_blocks(data), headers=headers, media_type=BYTES)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._held:
            await super().__call__(scope, receive, send)


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _BLOCK_BYTES):
        yield data[at : at + _BLOCK_BYTES]


def error_answer(error: MepError) -> ErrorAnswer:
    """Return the body that tells of `error`."""
    return ErrorAnswer(
        reason=error.text,
        code=error.code,
        http_status_code=error.http_status,
        correlation_id=error.correlation_id,
        error_args=[str(value) for value in error.fields.values()],
        authorization_parameters=error.authorization_parameters or msgspec.UNSET,
    )


def check_scope(caller: Caller, scope: str) -> None:
    """Check that a token allows something: one of the scopes, or `ANY_TOKEN`. Raises ScopeMissing."""
    if scope != ANY_TOKEN and scope not in caller.scopes and "admin" not in caller.scopes:
        error = ScopeMissing(scope=scope, scopes=", ".join(caller.scopes) or "none")
        error.authorization_parameters = {"session_message": error.text, "required_scopes": [scope]}
        raise error
