"""Functions over HTTP: register, look up, delete."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
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
from mep_wire.errors import BodyInvalid, FunctionForbidden, FunctionNotFound, NotOwner, PayloadTooLarge
from mep_wire.function_lists import DIGEST_PREFIX
from mep_wire.limits import MAX_FUNCTION_BYTES
from relay.api.context import ApiContext
from relay.api.endpoints import Deleted
from relay.api.http import Request
from relay.api.json_values import to_json_value
from relay.dispatch.live_state import durable
from relay.store.records import FunctionRecord, FunctionRef

MAX_NAME = 1024
MAX_METADATA_BYTES = 64 * 1024
MAX_DIGESTS = 256
"""Functions of one request for digests."""
_MAX_CACHED = 65_536


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


async def register(service: ApiContext, request: Request) -> FunctionAnswer:
    """POST /v3/functions."""
    body: FunctionBody = request.body
    try:
        code = opaque_bytes(body.function_code)
    except ValueError as error:
        raise BodyInvalid(reason=f"function_code: {error}") from error
    if len(code) > MAX_FUNCTION_BYTES:
        raise PayloadTooLarge(what="function_code", size=len(code), limit=MAX_FUNCTION_BYTES)
    metadata = to_json_value(body.metadata or body.meta, "metadata", MAX_METADATA_BYTES)
    function = FunctionRecord(
        function_id=str(uuid.uuid4()),
        owner=request.caller.account_id,
        name=body.function_name[:MAX_NAME],
        code=code,
        public=body.public,
        description=(body.description or "")[:MAX_METADATA_BYTES],
        metadata=metadata,
        created_at=time.time(),
    )
    await durable(service.store.submit(lambda tx: tx.put_function(function)))
    return FunctionAnswer(function_uuid=function.function_id)


async def look_up(service: ApiContext, request: Request) -> FunctionInfo:
    """GET /v2/functions/ID."""
    function = service.store.function(request.path[0])
    if function is None:
        raise FunctionNotFound(function_id=request.path[0])
    if function.owner != request.caller.account_id and not function.public:
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
    )


async def delete(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v2/functions/ID."""
    function = service.store.function_ref(request.path[0])
    if function is None:
        raise FunctionNotFound(function_id=request.path[0])
    if function.owner != request.caller.account_id:
        raise NotOwner(kind="function", id=function.function_id)
    await durable(service.store.submit(lambda tx: tx.delete_function(function.function_id, time.time())))
    return Deleted()


def usable(service: ApiContext, function_id: str, account_id: str) -> FunctionRef:
    """Return a function that this person may run. Raises FunctionNotFound or FunctionForbidden."""
    function = service.store.function_ref(function_id)
    if function is None:
        raise FunctionNotFound(function_id=function_id[:64])
    if function.owner != account_id and not function.public:
        raise FunctionForbidden(function_id=function_id)
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
