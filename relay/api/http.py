"""Between ASGI and the handlers: requests as typed values, answers and errors as bodies, JSON or MessagePack.

Trusts nothing that came in: sizes are checked before a body is read, bodies are decoded into declared
structs, and whatever goes wrong becomes an `ErrorAnswer`.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

import msgspec

from mep_wire import api
from mep_wire.api import JSON, MSGPACK, ErrorAnswer
from mep_wire.errors import BodyInvalid, MepError, PayloadTooLarge, ScopeMissing
from mep_wire.limits import MAX_BODY_BYTES
from relay.api.people_bodies import BODIES as _PEOPLE_BODIES
from relay.rate_limit import network_of
from relay.store.records import Caller

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
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


def header(scope: Scope, name: bytes) -> str:
    """Return a header's value, empty where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def network(scope: Scope) -> str:
    """Return where a request comes from, as limits by address count it."""
    return network_of(str((scope.get("client") or ("",))[0]))


def idempotency_key(scope: Scope) -> str:
    """Return the request's idempotency key, empty where there is none. Raises BodyInvalid."""
    key = header(scope, b"idempotency-key")
    if len(key) > MAX_KEY or not key.isprintable():
        raise BodyInvalid(reason=f"the header Idempotency-Key: at most {MAX_KEY} printable characters")
    return key


def query(scope: Scope) -> dict[str, str]:
    """Return the query's variables, the first of each."""
    raw = scope.get("query_string", b"")
    return {key: values[0] for key, values in parse_qs(raw.decode("latin-1")).items()} if raw else {}


def declared_size(scope: Scope, limit: int = MAX_BODY_BYTES) -> int | None:
    """Return the size of the body that the request declares. Raises PayloadTooLarge where it is over the limit."""
    declared = header(scope, b"content-length")
    if not declared.isdigit():
        return None
    if int(declared) > limit:
        raise PayloadTooLarge(what="the request body", size=int(declared), limit=limit)
    return int(declared)


async def read_body(scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Return the request's body. Raises PayloadTooLarge as soon as its size is known to be over the limit."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyInvalid(reason="the connection ended before the body did")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        more = message.get("more_body", False)
        if size > limit:
            raise PayloadTooLarge(what="the request body", size=size, limit=limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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


def is_passed_on(scope: Scope) -> bool:
    """Return whether a proxy on this host passed a request on, and is none of `trusted_proxies`.

    With a trusted one the client's address is another by now.
    """
    host = str((scope.get("client") or ("",))[0])
    said = any(name in (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via") for name, _ in scope["headers"])
    return said and (host.startswith("127.") or host == "::1")


def media_type(*, packed: bool) -> str:
    """Return the media type of an answer that is no plain text."""
    return MSGPACK if packed else JSON


def encode(value: object, *, packed: bool) -> bytes:
    """Return the body for `value`."""
    return _msgpack_encoder.encode(value) if packed else _json_encoder.encode(value)


async def answer(send: Send, status: int, body: bytes, *, media: str, close: bool = False, wait_s: int = 0) -> None:
    """Send a whole answer; `close` ends the connection after it, and `wait_s` asks for patience."""
    headers = [
        (b"content-type", media.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    if close:
        headers.append((b"connection", b"close"))
    if wait_s:
        headers.append((b"retry-after", b"%d" % wait_s))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_bytes(send: Send, data: bytes) -> None:
    """Send bytes as they are, in blocks: each waits until the client has taken those before."""
    headers = [
        (b"content-type", BYTES.encode()),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    view = memoryview(data)
    for at in range(0, len(data), _BLOCK_BYTES):
        await send({"type": "http.response.body", "body": bytes(view[at : at + _BLOCK_BYTES]), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


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
