"""Requests and answers of the routes that browsers and OAuth clients use: forms, cookies, pages, redirects.

Trusts nothing: a form is bounded before it is read, a parameter that stands twice is refused. Called by the
application.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

import msgspec

from mep_wire.api import JSON
from mep_wire.errors import BodyInvalid, PayloadTooLarge
from relay.api import http
from relay.api.http import Receive, Scope, Send

MAX_FORM_BYTES = 64 * 1024
MAX_PARAMETERS = 64
FORM = "application/x-www-form-urlencoded"


@dataclass(slots=True)
class RawRequest:
    """One request, with its query, form and cookies as text."""

    path: tuple[str, ...]
    query: dict[str, str]
    form: dict[str, str]
    cookies: dict[str, str]
    authorization: str
    address: str
    """Where it comes from."""


@dataclass(slots=True)
class RawAnswer:
    """One answer."""

    status: int = 200
    body: bytes = b""
    media: str = "text/html; charset=utf-8"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def to_json(value: object, status: int = 200) -> RawAnswer:
    """Return an answer that no cache may keep."""
    headers = [(b"cache-control", b"no-store"), (b"pragma", b"no-cache")]
    return RawAnswer(status, msgspec.json.encode(value), JSON, headers)


def redirect(address: str, cookies: Iterable[str] = ()) -> RawAnswer:
    """Return a redirect that is followed with GET. Raises ValueError where the address has no place in a header."""
    if not address.isascii() or not address.isprintable():
        raise ValueError("not an address")
    headers = [
        (b"location", address.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        *((b"set-cookie", one.encode()) for one in cookies),
    ]
    return RawAnswer(303, headers=headers)


async def read(scope: Scope, receive: Receive, path: tuple[str, ...]) -> RawRequest:
    """Return a request. Raises BodyInvalid, PayloadTooLarge."""
    form: dict[str, str] = {}
    if scope["method"] == "POST":
        declared = http.header(scope, b"content-type").partition(";")[0].strip().lower()
        if declared != FORM:
            raise BodyInvalid(reason=f"expected a form ({FORM})")
        size = http.declared_size(scope)
        if size is not None and size > MAX_FORM_BYTES:
            raise PayloadTooLarge(what="the form", size=size, limit=MAX_FORM_BYTES)
        form = parameters(await http.read_body(scope, receive, MAX_FORM_BYTES))
    return RawRequest(
        path=path,
        query=parameters(scope.get("query_string", b"")),
        form=form,
        cookies=_cookies(http.header(scope, b"cookie")),
        authorization=http.header(scope, b"authorization"),
        address=str((scope.get("client") or ("",))[0]),
    )


def parameters(data: bytes) -> dict[str, str]:
    """Return the variables of a query or form. Raises BodyInvalid."""
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except (UnicodeDecodeError, ValueError) as error:
        raise BodyInvalid(reason="the parameters cannot be read") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise BodyInvalid(reason=f"the parameter {name[:64]!r} stands twice")
        found[name] = value
    return found


def _cookies(text: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(text[:8192]).items()}
    except CookieError:
        return {}


async def send_raw(send: Send, answer: RawAnswer) -> None:
    """Send a whole answer."""
    headers = [
        (b"content-type", answer.media.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
