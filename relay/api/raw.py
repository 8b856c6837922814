"""Requests and answers of the routes that browsers and OAuth clients use: forms, cookies, pages, redirects.

Trusts nothing: a form is bounded before it is read, a parameter that stands twice is refused. Called by the
application.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response

from mep_wire.api import JSON
from mep_wire.errors import BodyInvalid
from relay.api import http

MAX_FORM_BYTES = 64 * 1024
MAX_PARAMETERS = 64
FORM = "application/x-www-form-urlencoded"


@dataclass(slots=True)
class RawRequest:
    """One request, with its query, form and cookies as text."""

    path: dict[str, str]
    query: dict[str, str]
    form: dict[str, str]
    cookies: dict[str, str]
    authorization: str
    address: str
    """Where it comes from."""


def to_json(value: object, status: int = 200) -> Response:
    """Return an answer that no cache may keep."""
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store", "pragma": "no-cache"}, JSON)


def redirect(address: str) -> Response:
    """Return a redirect that is followed with GET."""
    return RedirectResponse(address, 303, {"cache-control": "no-store", "referrer-policy": "no-referrer"})


async def read(asked: HttpRequest) -> RawRequest:
    """Return a request. Raises BodyInvalid, PayloadTooLarge."""
    form: dict[str, str] = {}
    if asked.method == "POST":
        if http.header(asked, b"content-type").partition(";")[0].strip().lower() != FORM:
            raise BodyInvalid(reason=f"expected a form ({FORM})")
        http.declared_size(asked, MAX_FORM_BYTES)
        form = parameters(await http.read_body(asked, MAX_FORM_BYTES))
    return RawRequest(
        path=asked.path_params,
        query=parameters(asked.scope.get("query_string", b"")),
        form=form,
        cookies=asked.cookies,
        authorization=http.header(asked, b"authorization"),
        address=http.address(asked),
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
