"""Functions over HTTP: register, look up, delete."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import msgspec

from mep_wire.api import (
    FunctionAnswer,
    FunctionBody,
    FunctionDigestsAnswer,
    FunctionDigestsBody,
    Opaque,
    opaque_bytes,
    opaque_to_text,
)
from mep_wire.errors import (
    BodyInvalid,
    ClientForbidden,
    FunctionForbidden,
    FunctionNotFound,
    GroupNotFound,
    IdConflict,
    NotOwner,
    PayloadTooLarge,
)
from mep_wire.function_lists import DIGEST_PREFIX
from mep_wire.limits import MAX_FUNCTION_BYTES
from relay.api.context import ApiContext
from relay.api.endpoints import Deleted
from relay.api.endpoints import usable as usable_endpoint
from relay.api.http import Request
from relay.api.json_values import to_json_value
from relay.api.people_bodies import FunctionUpdateBody
from relay.dispatch.live_state import durable
from relay.store.records import Caller, FunctionRecord, FunctionRef

MAX_NAME = 1024
MAX_METADATA_BYTES = 64 * 1024
MAX_DIGESTS = 256
"""Functions of one request for digests."""
_MAX_CACHED = 65_536


class Updated(msgspec.Struct, kw_only=True):
    """The answer to a change."""

    result: int = 200


class FunctionInfo(msgspec.Struct, kw_only=True):
    """GET /v2/functions/ID."""

    function_uuid: str
    function_name: str
    function_code: Opaque
    sha256: str
    """Of the code's bytes, 64 hexadecimal digits. This project's own."""
    description: str
    public: bool
    owner_id: str
    metadata: dict[str, Any] = {}
    group: str | None = None
    ha_endpoint_id: str | None = None


async def register(service: ApiContext, request: Request) -> FunctionAnswer:
    """POST /v3/functions."""
    body: FunctionBody = request.body
    try:
        code = opaque_bytes(body.function_code)
    except ValueError as error:
        raise BodyInvalid(reason=f"function_code: {error}") from error
    if len(code) > MAX_FUNCTION_BYTES:
        raise PayloadTooLarge(what="function_code", size=len(code), limit=MAX_FUNCTION_BYTES)
    _refuse_unused(body)
    if request.caller.functions:
        raise ClientForbidden(what="register functions: it may run certain ones only")
    _check_group(service, request.caller, body.group)
    ha_endpoint_id = _assured(service, request.caller, body)
    metadata = to_json_value(body.metadata or body.meta, "metadata", MAX_METADATA_BYTES)
    function = FunctionRecord(
        function_id=request.new_id("function"),
        owner=request.caller.account_id,
        name=body.function_name[:MAX_NAME],
        code=code,
        public=body.public,
        description=(body.description or "")[:MAX_METADATA_BYTES],
        metadata=metadata,
        created_at=time.time(),
        group=body.group or "",
        ha_endpoint_id=ha_endpoint_id,
    )
    if request.key and (known := service.store.function(function.function_id)) is not None:
        if (known.code, known.name) != (function.code, function.name):
            raise IdConflict(id=request.key)
        return FunctionAnswer(function_uuid=known.function_id)
    size = function.stored_bytes
    service.dispatcher.quota.check(function.owner, size)
    await durable(service.store.submit(lambda tx: tx.put_function(function)))
    service.dispatcher.quota.added(function.owner, size)
    service.audit.note("function.register", request.caller, function=function.function_id, name=function.name)
    return FunctionAnswer(function_uuid=function.function_id)


def _refuse_unused(body: FunctionBody) -> None:
    """Raise BodyInvalid for a field that has a meaning elsewhere and none here."""
    if body.container_uuid:
        raise BodyInvalid(reason="container_uuid: this relay has no containers; an endpoint's template names them")


def _check_changes(function: FunctionRecord | FunctionRef, caller: Caller) -> None:
    """Check that a person may change or delete a function. Raises NotOwner or ClientForbidden."""
    if caller.functions:
        raise ClientForbidden(what="change functions: it may run certain ones only")
    if function.owner != caller.account_id and "admin" not in caller.scopes:
        raise NotOwner(kind="function", id=function.function_id)


def _check_group(service: ApiContext, caller: Caller, group: str | None) -> None:
    """Check that a function may be shared with a group. Raises GroupNotFound."""
    if group and not service.access.in_group(caller, group):
        raise GroupNotFound(group_id=group[:64])


def _assured(service: ApiContext, caller: Caller, body: FunctionBody) -> str:
    """Return the id of the high-assurance endpoint that a function is bound to, empty if none. Raises BodyInvalid."""
    if not body.ha_endpoint_id:
        return ""
    endpoint = usable_endpoint(service, body.ha_endpoint_id.lower(), caller)
    if not endpoint.high_assurance:
        raise BodyInvalid(reason="ha_endpoint_id: this endpoint is not a high-assurance one")
    if body.public:
        raise BodyInvalid(reason="public: a high-assurance function can be shared with a group only")
    return endpoint.endpoint_id


async def look_up(service: ApiContext, request: Request) -> FunctionInfo:
    """GET /v2/functions/ID."""
    function = service.store.function(request.path[0])
    if function is None:
        raise FunctionNotFound(function_id=request.path[0])
    readable = function.owner == request.caller.account_id or function.public
    if not readable and not (function.group and service.access.in_group(request.caller, function.group)):
        raise FunctionForbidden(function_id=request.path[0])
    return FunctionInfo(
        function_uuid=function.function_id,
        function_name=function.name,
        function_code=function.code if request.packed else opaque_to_text(function.code),
        sha256=hashlib.sha256(function.code).hexdigest(),
        description=function.description,
        public=function.public,
        owner_id=function.owner,
        metadata=function.metadata,
        group=function.group or None,
        ha_endpoint_id=function.ha_endpoint_id or None,
    )


async def update(service: ApiContext, request: Request) -> Updated:
    """PUT /v3/functions/ID: description, public, group. The code never changes under an id."""
    body: FunctionUpdateBody = request.body
    function = service.store.function(request.path[0])
    if function is None:
        raise FunctionNotFound(function_id=request.path[0])
    _check_changes(function, request.caller)
    if body.group:
        _check_group(service, request.caller, body.group)
    if body.public and function.ha_endpoint_id:
        raise BodyInvalid(reason="public: a high-assurance function can be shared with a group only")
    changed = msgspec.structs.replace(
        function,
        description=function.description if body.description is None else body.description[:MAX_METADATA_BYTES],
        public=function.public if body.public is None else body.public,
        group=function.group if body.group is None else body.group,
    )
    service.dispatcher.quota.check(function.owner, max(0, changed.stored_bytes - function.stored_bytes))
    await durable(service.store.submit(lambda tx: tx.change_function(changed)))
    service.audit.note("function.update", request.caller, function=function.function_id)
    return Updated()


async def delete(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v2/functions/ID."""
    function = service.store.function_ref(request.path[0])
    if function is None:
        raise FunctionNotFound(function_id=request.path[0])
    _check_changes(function, request.caller)
    await durable(service.store.submit(lambda tx: tx.delete_function(function.function_id, time.time())))
    service.audit.note("function.delete", request.caller, function=function.function_id)
    return Deleted()


def usable(service: ApiContext, function_id: str, caller: Caller) -> FunctionRef:
    """Return a function that this person may run. Raises FunctionNotFound, FunctionForbidden or ClientForbidden."""
    function = service.store.function_ref(function_id)
    if function is None:
        raise FunctionNotFound(function_id=function_id[:64])
    service.access.check_function(function, caller)
    return function


async def digests(service: ApiContext, request: Request) -> FunctionDigestsAnswer:
    """POST /v3/functions/digests: for an endpoint's administrator, who need not be allowed to read the code."""
    body: FunctionDigestsBody = request.body
    if len(body.function_ids) > MAX_DIGESTS:
        raise BodyInvalid(reason=f"function_ids: at most {MAX_DIGESTS}, got {len(body.function_ids)}")
    found: dict[str, str] = {}
    for function_id in map(str.lower, body.function_ids):
        function = service.store.function_ref(function_id)
        if function is not None and (digest := _digest(service, function)):
            found[function_id] = digest
        await asyncio.sleep(0)  # a large function takes 10 ms
    return FunctionDigestsAnswer(digests=found)


def listed(service: ApiContext, entries: list[str] | None, function: FunctionRef) -> bool:
    """Return whether an endpoint's `allowed_functions`, in lower case, have this function.

    Saves a person the wait for a refusal by the user endpoint, which checks the bytes that it receives.
    """
    if entries is None or function.function_id in entries:
        return True
    by_digest = any(entry.startswith(DIGEST_PREFIX) for entry in entries)
    return by_digest and DIGEST_PREFIX + _digest(service, function) in entries


def _digest(service: ApiContext, function: FunctionRef) -> str:
    """Return the SHA-256 of a function's code, empty where the code is gone. Code never changes under one row."""
    digest = service.function_digests.get(function.row)
    if digest is None:
        code = service.store.function_code(function.function_id)
        if code is None:
            return ""
        if len(service.function_digests) >= _MAX_CACHED:
            service.function_digests.clear()
        digest = service.function_digests[function.row] = hashlib.sha256(code).hexdigest()
    return digest
