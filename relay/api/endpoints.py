"""Endpoints over HTTP: register, change, look up, delete."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from zmq.utils import z85

from mep_wire.api import RegisterAnswer, RegisterBody, opaque_bytes
from mep_wire.errors import BodyInvalid, EndpointNotFound, EndpointOffline, IdConflict, PolicyNotFound, TokenUnknown
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.api.json_values import to_json_value
from relay.api.user_config_check import MAX_SCHEMA_BYTES
from relay.auth import policies
from relay.auth.access import TEMPLATE_POLICY, delete_endpoint, template_policy
from relay.dispatch.live_state import durable
from relay.store.records import Caller, EndpointRecord

KEY_BYTES = 32
MAX_NAME = 128
MAX_ENDPOINTS = 1000
"""Endpoints of one person: lists for all people read every one."""
MAX_METADATA_BYTES = 64 * 1024
_IGNORED = ("subscription_uuid",)


class EndpointSummary(msgspec.Struct, kw_only=True):
    """An endpoint in a list. What can be large is left out: a list has up to every endpoint."""

    uuid: str
    name: str
    display_name: str
    multi_user: bool
    public: bool
    owner_id: str
    authentication_policy: str | None = None
    high_assurance: bool = False
    admins: list[str] = []
    alias: str | None = None
    locked: bool = False


class EndpointInfo(EndpointSummary, kw_only=True):
    """GET /v2/endpoints/ID: the public data of an endpoint."""

    allowed_functions: list[str] | None = None
    user_config_schema: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}


class EndpointStatus(msgspec.Struct, kw_only=True):
    """GET /v2/endpoints/ID/status: `online` while the endpoint's manager has a link to the relay."""

    status: str
    details: dict[str, Any] = {}
    worker_pythons: list[str] = []
    """This project's own: the Pythons of the asking person's workers there, as far as they are known."""


class Deleted(msgspec.Struct, kw_only=True):
    """The answer to a removal."""

    result: int = 200


def _key(value: object, name: str, text_form: str) -> bytes:
    """Return a 32-byte public key of a body. Raises BodyInvalid."""
    try:
        if isinstance(value, str) and len(value) == 2 * KEY_BYTES:
            raw = bytes.fromhex(value)
        elif isinstance(value, str) and len(value) == 40:
            raw = z85.decode(value.encode())
        else:
            raw = opaque_bytes(value)
    except (ValueError, KeyError, UnicodeEncodeError) as error:
        raise BodyInvalid(reason=f"{name}: {error}") from error
    if len(raw) != KEY_BYTES:
        raise BodyInvalid(reason=f"{name}: expected {KEY_BYTES} bytes (in JSON: {text_form}), got {len(raw)}")
    return raw


async def _check_body(service: ApiContext, body: RegisterBody) -> None:
    """Check a registration and make its free-form parts plain. Raises BodyInvalid or PayloadTooLarge."""
    if not body.endpoint_name or len(body.endpoint_name) > MAX_NAME or not body.endpoint_name.isprintable():
        raise BodyInvalid(reason=f"endpoint_name: 1 to {MAX_NAME} printable characters")
    if body.display_name is not None and len(body.display_name) > MAX_NAME:
        raise BodyInvalid(reason=f"display_name: at most {MAX_NAME} characters")
    body.metadata = to_json_value(body.metadata, "metadata", MAX_METADATA_BYTES)
    if body.user_config_schema is not None:
        body.user_config_schema = to_json_value(body.user_config_schema, "user_config_schema", MAX_SCHEMA_BYTES)
        await service.checks.check_schema(body.user_config_schema)
    _check_policies(service, body)


def _check_policies(service: ApiContext, body: RegisterBody) -> None:
    """Check the policies of endpoint and template. Raises BodyInvalid or PolicyNotFound."""
    if body.user_config_schema and not isinstance(body.user_config_schema.get(TEMPLATE_POLICY, ""), str):
        raise BodyInvalid(reason=f"user_config_schema: {TEMPLATE_POLICY}: expected the id of a policy")
    own = body.authentication_policy or ""
    for policy_id in filter(None, (own, template_policy(body.user_config_schema))):
        if policies.find(service.store, policy_id) is None:
            raise PolicyNotFound(policy_id=policy_id[:64])
    if body.high_assurance:
        policy = policies.find(service.store, own) if own else None
        if policy is None or not policy.high_assurance:
            raise BodyInvalid(reason="high_assurance: needs an authentication_policy that is high_assurance itself")
        if not body.multi_user:
            raise BodyInvalid(reason="high_assurance: only a multi-user endpoint can be one")


def _record(endpoint_id: str, body: RegisterBody, caller: Caller, old: EndpointRecord | None) -> EndpointRecord:
    link, unseal = body.link_public_key, body.unseal_public_key
    keep = old is not None and not link and not unseal
    return EndpointRecord(
        endpoint_id=endpoint_id,
        owner=old.owner if old else caller.account_id,
        name=body.endpoint_name,
        display_name=body.display_name or body.endpoint_name,
        multi_user=body.multi_user,
        public=body.public,
        allowed_functions=None if body.allowed_functions is None else [f.lower() for f in body.allowed_functions],
        user_config_schema=body.user_config_schema,
        metadata=body.metadata or {},
        link_key=old.link_key if keep and old else _key(link, "link_public_key", "40 characters of Z85"),
        unseal_key=old.unseal_key if keep and old else _key(unseal, "unseal_public_key", "64 hexadecimal digits"),
        created_at=old.created_at if old else time.time(),
        admins=body.admins or [],
        policy=body.authentication_policy or "",
        high_assurance=body.high_assurance,
    )


async def register(service: ApiContext, request: Request) -> RegisterAnswer:
    """POST /v3/endpoints."""
    body: RegisterBody = request.body
    endpoint_id = _uuid(body.endpoint_uuid, "endpoint_uuid") if body.endpoint_uuid else str(uuid.uuid4())
    old = service.store.endpoint(endpoint_id)
    if old is not None and (old.owner != request.caller.account_id or old.deleted_at):
        raise IdConflict(id=endpoint_id)
    if old is None and len(service.store.endpoints(request.caller.account_id)) >= MAX_ENDPOINTS:
        raise BodyInvalid(reason=f"you have {MAX_ENDPOINTS} endpoints, the most of one person: delete some first")
    return await _put(service, request, endpoint_id, old)


async def update(service: ApiContext, request: Request) -> RegisterAnswer:
    """PUT /v3/endpoints/ID."""
    old = _managed(service, request)
    return await _put(service, request, old.endpoint_id, old)


async def _put(service: ApiContext, request: Request, endpoint_id: str, old: EndpointRecord | None) -> RegisterAnswer:
    body: RegisterBody = request.body
    await _check_body(service, body)
    record = _record(endpoint_id, body, request.caller, old)
    owner = service.store.identity_set(record.owner, request.caller.identity_id)
    if owner is None:
        raise TokenUnknown
    await durable(service.store.submit(lambda tx: tx.put_endpoint(record)))
    if old is not None:
        service.dispatcher.endpoint_changed(record, old)
    action = "endpoint.register" if old is None else "endpoint.update"
    service.audit.note(action, request.caller, endpoint=endpoint_id, name=record.name, policy=record.policy)
    return RegisterAnswer(
        endpoint_id=endpoint_id,
        link_address=service.link_address,
        link_public_key=service.link_public_key,
        signing_public_key=service.signing_public_key,
        owner=list(owner.identities),
        earlier_keys=service.earlier_keys,
        warnings=[f"{name} is not used by this relay" for name in _IGNORED if getattr(body, name)],
    )


def _uuid(text: str, name: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise BodyInvalid(reason=f"{name}: not a UUID") from error


def existing(service: ApiContext, endpoint_id: str) -> EndpointRecord:
    """Return the endpoint with this id or alias. Raises EndpointNotFound."""
    found = service.store.endpoint(endpoint_id)
    if found is None and (named := service.access.named(endpoint_id)):
        found = service.store.endpoint(named)
    if found is None or found.deleted_at:
        raise EndpointNotFound(endpoint_id=endpoint_id)
    return found


def _managed(service: ApiContext, request: Request) -> EndpointRecord:
    """Return an endpoint that the caller may change. Raises EndpointNotFound or NotOwner."""
    found = existing(service, request.path[0])
    service.access.check_manages(found, request.caller)
    return found


def usable(service: ApiContext, endpoint_id: str, caller: Caller) -> EndpointRecord:
    """Return an endpoint that `caller` may submit to. Raises EndpointNotFound and what `Access.check_uses` raises."""
    found = existing(service, endpoint_id)
    service.access.check_uses(found, caller)
    return found


def _seen(service: ApiContext, request: Request) -> EndpointRecord:
    """Return an endpoint that the caller may know of. Raises EndpointNotFound, EndpointForbidden, ..."""
    found = existing(service, request.path[0])
    service.access.check_sees(found, request.caller)
    return found


def info(service: ApiContext, record: EndpointRecord) -> EndpointInfo:
    """Return what people who see an endpoint may know of it."""
    return EndpointInfo(
        **msgspec.structs.asdict(summary(service, record)),
        allowed_functions=record.allowed_functions,
        user_config_schema=record.user_config_schema,
        metadata=record.metadata,
    )


def summary(service: ApiContext, record: EndpointRecord) -> EndpointSummary:
    """Return what a list has of an endpoint."""
    access = service.access.of_endpoint(record.endpoint_id)
    return EndpointSummary(
        uuid=record.endpoint_id,
        name=record.name,
        display_name=record.display_name,
        multi_user=record.multi_user,
        public=record.public,
        owner_id=record.owner,
        authentication_policy=record.policy or None,
        high_assurance=record.high_assurance,
        admins=record.admins,
        alias=access.alias or None,
        locked=access.locked,
    )


async def listing(service: ApiContext, request: Request) -> list[EndpointSummary]:
    """GET /v2/endpoints: one's own; with `role=any` also those that are open to all."""
    me = request.caller.account_id
    if request.query.get("role") != "any":
        return [summary(service, record) for record in service.store.endpoints(me)]
    return [summary(service, r) for r in service.store.endpoints() if r.owner == me or (r.multi_user and r.public)]


async def look_up(service: ApiContext, request: Request) -> EndpointInfo:
    """GET /v2/endpoints/ID."""
    return info(service, _seen(service, request))


async def status(service: ApiContext, request: Request) -> EndpointStatus:
    """GET /v2/endpoints/ID/status."""
    record = _seen(service, request)
    return EndpointStatus(
        status="online" if service.dispatcher.online(record.endpoint_id) else "offline",
        worker_pythons=service.dispatcher.worker_pythons(record.endpoint_id, request.caller.account_id),
    )


async def stop(service: ApiContext, request: Request) -> Deleted:
    """POST /v3/endpoints/ID/stop. Raises EndpointOffline."""
    record = _managed(service, request)
    if not service.dispatcher.stop_endpoint(record.endpoint_id):
        raise EndpointOffline(endpoint_id=record.endpoint_id)
    service.audit.note("endpoint.stop", request.caller, endpoint=record.endpoint_id, name=record.name)
    return Deleted()


async def delete(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v2/endpoints/ID."""
    record = _managed(service, request)
    await durable(service.store.submit(lambda tx: delete_endpoint(tx, record.endpoint_id, record.owner, time.time())))
    service.access.forget(record.endpoint_id)
    service.audit.note("endpoint.delete", request.caller, endpoint=record.endpoint_id, name=record.name)
    await service.dispatcher.endpoint_deleted(record.endpoint_id)
    return Deleted()
