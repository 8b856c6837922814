"""Policies, groups, and access to endpoints over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator

from mep_wire.errors import BodyInvalid, GroupNotFound, IdConflict, NotOwner, PolicyNotFound
from relay.api.context import ApiContext
from relay.api.endpoints import Deleted, existing
from relay.api.http import Request
from relay.api.people_bodies import AccessBody, GroupBody, GroupInfo, PolicyBody
from relay.auth import names, policies
from relay.auth.access import (
    ALIAS,
    GROUP,
    MEMBER,
    EndpointAccess,
    Group,
    access_document,
    free_alias,
    group_document,
    group_from,
    member_document,
)
from relay.auth.policies import Policy
from relay.dispatch.live_state import durable
from relay.store.base import Tx
from relay.store.records import Caller, Document

MAX_PEOPLE = 10_000
MAX_SHARED = 1000
MAX_NAME = 128
MAX_TEXT = 2048
MAX_LISTED = 1000
MAX_MEMBERS_LISTED = 50_000
"""Members in one list of groups, which ends with them: anybody can be put into a thousand groups of thousands."""
GROUPS_PAGE = 10
MAX_GIVEN_UP = 100
"""Aliases that stay a person's though no endpoint of theirs has them."""
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")


# --- policies ---------------------------------------------------------------------------------------


def _policy(service: ApiContext, request: Request, policy_id: str, owner: str) -> Policy:
    """Return the policy of a request's body. Raises BodyInvalid."""
    body: PolicyBody = request.body
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    made = Policy(id=policy_id, owner=owner, **values)
    policies.check(made, service.people.settings)
    return made


def _check_count(service: ApiContext, kind: str, owner: str) -> None:
    """Check that a person may make another. Raises BodyInvalid."""
    if service.store.count_documents(kind, owner, MAX_LISTED) == MAX_LISTED:
        raise BodyInvalid(reason=f"you have {MAX_LISTED} already, the most of one person: delete some first")


def _add(tx: Tx, document: Document, key: str) -> None:
    """Store a new document. Raises IdConflict where the idempotency key made another one."""
    if not tx.add_document(document):
        known = tx.get_document(document.kind, document.id)
        if known is None or known.body != document.body:
            raise IdConflict(id=key)


def _existing_policy(service: ApiContext, policy_id: str) -> Policy:
    found = policies.find(service.store, policy_id)
    if found is None:
        raise PolicyNotFound(policy_id=policy_id)
    return found


def _own_policy(service: ApiContext, request: Request) -> Policy:
    found = _existing_policy(service, request.path[0])
    if found.owner != request.caller.account_id and "admin" not in request.caller.scopes:
        raise NotOwner(kind="policy", id=found.id)
    return found


async def add_policy(service: ApiContext, request: Request) -> Policy:
    """POST /v3/policies."""
    _check_count(service, policies.KIND, request.caller.account_id)
    made = _policy(service, request, request.new_id("policy"), request.caller.account_id)
    await durable(service.store.submit(lambda tx: _add(tx, policies.to_document(made), request.key)))
    service.audit.note("policy.create", request.caller, policy=made.id, name=made.display_name)
    return made


async def update_policy(service: ApiContext, request: Request) -> Policy:
    """PUT /v3/policies/ID."""
    old = _own_policy(service, request)
    made = _policy(service, request, old.id, old.owner)
    await durable(service.store.submit(lambda tx: tx.put_document(policies.to_document(made))))
    service.audit.note("policy.update", request.caller, policy=made.id)
    return made


async def look_up_policy(service: ApiContext, request: Request) -> Policy:
    """GET /v3/policies/ID: a person that a policy refuses may read it."""
    return _existing_policy(service, request.path[0])


async def list_policies(service: ApiContext, request: Request) -> list[Policy]:
    """GET /v3/policies: one's own."""
    found = service.store.documents(policies.KIND, request.caller.account_id, limit=MAX_LISTED)
    return [policies.from_document(one) for one in found]


async def delete_policy(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v3/policies/ID: endpoints that name it then admit nobody, until they name another."""
    old = _own_policy(service, request)
    await durable(service.store.submit(lambda tx: tx.drop_document(policies.KIND, old.id)))
    service.audit.note("policy.delete", request.caller, policy=old.id)
    return Deleted()


# --- groups -----------------------------------------------------------------------------------------


def _people(names: list[str], key: str) -> tuple[str, ...]:
    """Return usernames in lower case, each once. Raises BodyInvalid."""
    if len(names) > MAX_PEOPLE:
        raise BodyInvalid(reason=f"{key}: at most {MAX_PEOPLE} people")
    for one in names:
        if not 0 < len(one) <= 256 or not one.isprintable() or " " in one:
            raise BodyInvalid(reason=f"{key}: {one[:100]!r} is no username")
    return tuple(dict.fromkeys(one.lower() for one in names))


def _group(request: Request, group_id: str, owner: str) -> Group:
    body: GroupBody = request.body
    if not 0 < len(body.name) <= MAX_NAME or not body.name.isprintable():
        raise BodyInvalid(reason=f"name: 1 to {MAX_NAME} printable characters")
    if len(body.description) > MAX_TEXT:
        raise BodyInvalid(reason=f"description: at most {MAX_TEXT} characters")
    members, managers = _people(body.members, "members"), _people(body.managers, "managers")
    return Group(
        id=group_id, name=body.name, description=body.description, members=members, managers=managers, owner=owner
    )


def _group_info(group: Group) -> GroupInfo:
    return GroupInfo(
        id=group.id,
        name=group.name,
        description=group.description,
        members=list(group.members),
        managers=list(group.managers),
    )


def _put_group(tx: Tx, group: Group) -> None:
    """Store a group in place of what it was."""
    _drop_members(tx, group.id)
    tx.put_document(group_document(group))
    for one in {*group.members, *group.managers}:
        tx.put_document(member_document(group.id, one))


def _drop_members(tx: Tx, group_id: str) -> None:
    document = tx.get_document(GROUP, group_id)
    if document is not None:
        old = group_from(document)
        for one in {*old.members, *old.managers}:
            tx.drop_document(MEMBER, f"{group_id}/{one}")


def _seen_group(service: ApiContext, request: Request) -> Group:
    """Return a group that the caller is in or manages. Raises GroupNotFound, also where it is another's."""
    group_id, caller = request.path[0], request.caller
    found = service.access.group(group_id)
    if found is None or not (_manages(service, found, caller) or service.access.in_group(caller, group_id)):
        raise GroupNotFound(group_id=group_id)
    return found


def _manages(service: ApiContext, group: Group, caller: Caller) -> bool:
    if group.owner == caller.account_id or "admin" in caller.scopes:
        return True
    return not service.access.usernames(caller).isdisjoint(group.managers)


def _managed_group(service: ApiContext, request: Request) -> Group:
    found = _seen_group(service, request)
    if not _manages(service, found, request.caller):
        raise NotOwner(kind="group", id=found.id)
    return found


async def add_group(service: ApiContext, request: Request) -> GroupInfo:
    """POST /v3/groups."""
    _check_count(service, GROUP, request.caller.account_id)
    made = _group(request, request.new_id("group"), request.caller.account_id)

    def change(tx: Tx) -> None:
        _add(tx, group_document(made), request.key)
        _put_group(tx, made)

    await durable(service.store.submit(change))
    service.audit.note("group.create", request.caller, group=made.id, name=made.name)
    return _group_info(made)


async def update_group(service: ApiContext, request: Request) -> GroupInfo:
    """PUT /v3/groups/ID."""
    old = _managed_group(service, request)
    made = _group(request, old.id, old.owner)
    await durable(service.store.submit(lambda tx: _put_group(tx, made)))
    service.audit.note("group.update", request.caller, group=made.id, members=len(made.members))
    return _group_info(made)


async def look_up_group(service: ApiContext, request: Request) -> GroupInfo:
    """GET /v3/groups/ID."""
    return _group_info(_seen_group(service, request))


async def list_groups(service: ApiContext, request: Request) -> list[GroupInfo]:
    """GET /v3/groups: one's own, and those that one is in."""
    told: list[GroupInfo] = []
    size = 0
    async for group in _own_and_joined(service, request.caller):
        size += len(group.members) + len(group.managers)
        if told and size > MAX_MEMBERS_LISTED:
            break
        told.append(_group_info(group))
    return told


async def _own_and_joined(service: ApiContext, caller: Caller) -> AsyncIterator[Group]:
    """Yield a person's groups, a few read at a time, so that others have their turn."""
    seen: set[str] = set()
    after = ""
    while page := service.store.documents(GROUP, caller.account_id, after=after, limit=GROUPS_PAGE):
        for one in page:
            seen.add(one.id)
            yield group_from(one)
            await asyncio.sleep(0)
        after = page[-1].id
    for group_id in service.access.groups_of(caller):
        if ":" not in group_id and group_id not in seen:
            group = service.access.group(group_id)
            if group is not None:
                yield group
            await asyncio.sleep(0)


async def delete_group(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v3/groups/ID."""
    old = _managed_group(service, request)

    def change(tx: Tx) -> None:
        _drop_members(tx, old.id)
        tx.drop_document(GROUP, old.id)

    await durable(service.store.submit(change))
    service.audit.note("group.delete", request.caller, group=old.id)
    return Deleted()


# --- access to endpoints ----------------------------------------------------------------------------


def _access(service: ApiContext, request: Request) -> EndpointAccess:
    body: AccessBody = request.body
    if body.groups is not None:
        if len(body.groups) > MAX_SHARED:
            raise BodyInvalid(reason=f"groups: at most {MAX_SHARED}")
        for one in body.groups:
            provider = one.partition(":")[0]
            known = provider in service.people.providers if ":" in one else service.access.group(one) is not None
            if not known:
                raise BodyInvalid(reason=f"groups: there is no group {one[:100]!r} here")
    alias = (body.alias or "").lower()
    if alias and (not _ALIAS.fullmatch(alias) or _is_uuid(alias)):
        raise BodyInvalid(reason="alias: 2 to 63 lower-case letters, digits, dots, hyphens and underscores; no UUID")
    if len(body.lock_reason) > MAX_NAME or not body.lock_reason.isprintable():
        raise BodyInvalid(reason=f"lock_reason: at most {MAX_NAME} printable characters")
    return EndpointAccess(
        people=None if body.people is None else _people(body.people, "people"),
        groups=None if body.groups is None else tuple(dict.fromkeys(body.groups)),
        locked=body.locked,
        lock_reason=body.lock_reason,
        alias=alias,
        pass_end_users=body.pass_end_users,
    )


def _check_given_up(service: ApiContext, owner: str, wanted: str) -> None:
    """Check that a person does not reserve names by having each for a moment. One that they gave up they may always
    have back. Raises BodyInvalid."""
    known = service.store.document(names.ALIAS, wanted) if wanted else None
    if known is not None and known.owner == owner:
        return
    if service.store.count_documents(names.ALIAS, owner, MAX_GIVEN_UP) == MAX_GIVEN_UP:
        raise BodyInvalid(reason=f"alias: you gave up {MAX_GIVEN_UP} already, which stay yours; take one of those")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _body_of(access: EndpointAccess) -> AccessBody:
    return AccessBody(
        people=None if access.people is None else list(access.people),
        groups=None if access.groups is None else list(access.groups),
        locked=access.locked,
        lock_reason=access.lock_reason,
        alias=access.alias or None,
        pass_end_users=access.pass_end_users,
    )


async def look_up_access(service: ApiContext, request: Request) -> AccessBody:
    """GET /v3/endpoints/ID/access: for its administrators."""
    endpoint = existing(service, request.path[0])
    service.access.check_manages(endpoint, request.caller)
    return _body_of(service.access.of_endpoint(endpoint.endpoint_id))


async def put_access(service: ApiContext, request: Request) -> AccessBody:
    """PUT /v3/endpoints/ID/access."""
    endpoint = existing(service, request.path[0])
    service.access.check_manages(endpoint, request.caller)
    wanted = _access(service, request)
    endpoint_id = endpoint.endpoint_id
    if wanted.alias != service.access.of_endpoint(endpoint_id).alias:
        _check_given_up(service, endpoint.owner, wanted.alias)

    def change(tx: Tx) -> bool:
        tx.drop_documents(ALIAS, endpoint_id)
        free_alias(tx, endpoint_id, endpoint.owner, time.time())
        if wanted.alias:
            names.take(tx, names.ALIAS, wanted.alias, endpoint.owner)
        if wanted.alias and not tx.add_document(Document(kind=ALIAS, id=wanted.alias, owner=endpoint_id, body=b"")):
            raise IdConflict(id=wanted.alias)
        tx.put_document(access_document(endpoint_id, wanted))
        return True

    await durable(service.store.submit(change))
    service.access.forget(endpoint_id)
    service.audit.note(
        "endpoint.access",
        request.caller,
        endpoint=endpoint_id,
        people=None if wanted.people is None else len(wanted.people),
        groups=wanted.groups,
        locked=wanted.locked,
        alias=wanted.alias,
    )
    return _body_of(wanted)
