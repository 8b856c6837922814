"""Who may use which endpoint and function: owners, administrators, sharing, groups, locks, policies, high assurance.

Asked at each submission, after the token is known; every rule reads the store. A person is known here by all of their
usernames, and by the groups that their login's provider names. Called by the HTTP API.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from mep_wire.errors import (
    ClientForbidden,
    EndpointForbidden,
    EndpointLocked,
    EndpointNotShared,
    FunctionForbidden,
    HighAssurance,
    NotOwner,
)
from relay.auth import names
from relay.auth.claims import open_identities
from relay.auth.policies import Policies
from relay.store.base import Store, Tx
from relay.store.records import Caller, Document, EndpointRecord, FunctionRef

ACCESS, ALIAS, GROUP, MEMBER = "access", "alias", "group", "member"
TEMPLATE_POLICY = "x-authentication-policy"
"""The key of a template's schema that names a policy: it guards this template, whichever endpoint has it."""
MAX_GROUPS = 1000
KEPT_S, KEPT = 1.0, 10_000
"""How long an endpoint's rules are used without reading them, and of how many endpoints."""


class EndpointAccess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who may use an endpoint, as its administrators say here. A new registration leaves it as it is."""

    people: tuple[str, ...] | None = None
    """Usernames in lower case. Both null: every person that the site maps."""
    groups: tuple[str, ...] | None = None
    locked: bool = False
    lock_reason: str = ""
    alias: str = ""
    pass_end_users: bool = False
    """Whether templates are told the end user of a gateway, as `user_runtime.end_user`."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of the relay's. People are usernames in lower case: they may come here for the first time later."""

    id: str
    name: str
    description: str = ""
    members: tuple[str, ...] = ()
    managers: tuple[str, ...] = ()
    owner: str = ""


_access_decoder = msgspec.msgpack.Decoder(EndpointAccess)
_group_decoder = msgspec.msgpack.Decoder(Group)
_NO_RULES = EndpointAccess()


def access_document(endpoint_id: str, access: EndpointAccess) -> Document:
    """Return the document of an endpoint's access."""
    return Document(kind=ACCESS, id=endpoint_id, body=msgspec.msgpack.encode(access))


def delete_endpoint(tx: Tx, endpoint_id: str, owner: str, at: float) -> None:
    """Delete an endpoint with its rules. Its alias stays its owner's: see relay.auth.names."""
    tx.delete_endpoint(endpoint_id, at)
    free_alias(tx, endpoint_id, owner, at)
    tx.drop_document(ACCESS, endpoint_id)
    tx.drop_documents(ALIAS, endpoint_id)


def free_alias(tx: Tx, endpoint_id: str, owner: str, at: float) -> None:
    """Take an endpoint's alias from it, and keep it for the owner."""
    known = tx.get_document(ACCESS, endpoint_id)
    alias = _access_decoder.decode(known.body).alias if known else ""
    if alias:
        names.reserve(tx, names.ALIAS, alias, owner, endpoint_id, at)


def group_document(group: Group) -> Document:
    """Return the document of a group."""
    return Document(kind=GROUP, id=group.id, owner=group.owner, body=msgspec.msgpack.encode(group))


def group_from(document: Document) -> Group:
    """Return the group in a document; its owner is the document's."""
    return msgspec.structs.replace(_group_decoder.decode(document.body), owner=document.owner)


def member_document(group_id: str, username: str) -> Document:
    """Return the document by which a group is found from a member."""
    return Document(kind=MEMBER, id=f"{group_id}/{username}", owner=username, body=b"")


class Access:
    """See the module."""

    def __init__(self, store: Store, policies: Policies) -> None:
        self._store, self._policies = store, policies
        self._kept: dict[str, tuple[float, EndpointAccess]] = {}
        self._of_uep: dict[int, str] = {}

    # --- people -------------------------------------------------------------------------------------

    def usernames(self, caller: Caller) -> frozenset[str]:
        """Return the usernames of a person's identities, in lower case."""
        person = self._store.identity_set(caller.account_id)
        return frozenset(one.username.lower() for one in open_identities(person))

    def groups_of(self, caller: Caller) -> list[str]:
        """Return the ids of the groups that a person is in, and those that their login's provider names."""
        found = [
            document.id.partition("/")[0]
            for username in self.usernames(caller)
            for document in self._store.documents(MEMBER, username, limit=MAX_GROUPS)
        ]
        return [*dict.fromkeys(found), *caller.login.groups]

    def group(self, group_id: str) -> Group | None:
        """Return a group."""
        document = self._store.document(GROUP, group_id)
        return group_from(document) if document else None

    def in_group(self, caller: Caller, group_id: str) -> bool:
        """Return whether a person is in this group."""
        if ":" in group_id:
            return group_id in caller.login.groups
        return any(self._store.document(MEMBER, f"{group_id}/{one}") for one in self.usernames(caller))

    # --- endpoints ----------------------------------------------------------------------------------

    def of_endpoint(self, endpoint_id: str) -> EndpointAccess:
        """Return who may use an endpoint. A change by another relay process is seen within `KEPT_S`."""
        now = time.monotonic()
        kept = self._kept.get(endpoint_id)
        if kept is not None and now - kept[0] < KEPT_S:
            return kept[1]
        document = self._store.document(ACCESS, endpoint_id)
        access = _access_decoder.decode(document.body) if document else _NO_RULES
        if len(self._kept) >= KEPT:
            self._kept.clear()
        self._kept[endpoint_id] = now, access
        return access

    def forget(self, endpoint_id: str) -> None:
        """Read an endpoint's rules anew: they have changed."""
        self._kept.pop(endpoint_id, None)

    def named(self, alias: str) -> str | None:
        """Return the id of the endpoint with this alias."""
        document = self._store.document(ALIAS, alias.lower())
        return document.owner if document else None

    def manages(self, endpoint: EndpointRecord, caller: Caller) -> bool:
        """Return whether a person owns or administers an endpoint, or the relay."""
        if endpoint.owner == caller.account_id or "admin" in caller.scopes:
            return True
        if not endpoint.admins:
            return False
        person = self._store.identity_set(caller.account_id)
        return any(identity.id in endpoint.admins for identity in open_identities(person))

    def check_manages(self, endpoint: EndpointRecord, caller: Caller) -> None:
        """Raises NotOwner."""
        if not self.manages(endpoint, caller):
            raise NotOwner(kind="endpoint", id=endpoint.endpoint_id)

    def check_sees(self, endpoint: EndpointRecord, caller: Caller) -> None:
        """Raises EndpointForbidden or EndpointNotShared where a person may not know of an endpoint."""
        if endpoint.public and endpoint.multi_user:
            return
        self._check_shared(endpoint, caller, self.of_endpoint(endpoint.endpoint_id))

    def check_uses(self, endpoint: EndpointRecord, caller: Caller) -> EndpointAccess:
        """Check that a person may submit to an endpoint; return its rules.

        Raises EndpointForbidden, EndpointNotShared, EndpointLocked, LoginRequired or PolicyRefused.
        """
        access = self.of_endpoint(endpoint.endpoint_id)
        self._check_shared(endpoint, caller, access)
        if access.locked and not self.manages(endpoint, caller):
            raise EndpointLocked(endpoint_id=endpoint.endpoint_id, reason=access.lock_reason or "no reason was given")
        policies = [endpoint.policy, template_policy(endpoint.user_config_schema)]
        if any(policies):
            self._policies.enforce(policies, caller, f"endpoint {endpoint.endpoint_id}")
        return access

    def check_reads(self, endpoint_id: str, caller: Caller) -> None:
        """Check that a person may still have the results of their tasks at an endpoint.

        An endpoint that would not take their tasks any more gives no results out either. A login may have become too
        old while the tasks ran, unless the endpoint is a high-assurance one; a lock concerns new tasks alone, and an
        endpoint that was deleted has no rules. Raises what `check_uses` raises, but for EndpointLocked.
        """
        endpoint = self._store.endpoint(endpoint_id)
        if endpoint is None or endpoint.deleted_at:
            return
        self._check_shared(endpoint, caller, self.of_endpoint(endpoint_id))
        self._check_policies(endpoint, caller)

    def check_shown(self, endpoint_id: str, owner: Caller, reader: Caller) -> None:
        """Check that the people whom an action's owner names may have its results from an endpoint: it admits the owner
        still, and its policies admit the reader, whose own login it is. The reader needs no right to submit there.
        Groups of a provider's count for the owner until the next login, which the relay does not see here. Raises what
        `check_reads` raises."""
        endpoint = self._store.endpoint(endpoint_id)
        if endpoint is None or endpoint.deleted_at:
            return
        access = self.of_endpoint(endpoint_id)
        if not any(":" in group for group in access.groups or ()):
            self._check_shared(endpoint, owner, access)
        self._check_policies(endpoint, reader)

    def _check_policies(self, endpoint: EndpointRecord, reader: Caller) -> None:
        policies = [endpoint.policy, template_policy(endpoint.user_config_schema)]
        if any(policies):
            self._policies.enforce(policies, reader, f"endpoint {endpoint.endpoint_id}", age=endpoint.high_assurance)

    def endpoint_of_uep(self, uep_row: int) -> str:
        """Return the id of a user endpoint's endpoint, which never changes; empty where it was removed."""
        found = self._of_uep.get(uep_row)
        if found is None:
            found = self._store.endpoint_of_uep(uep_row) or ""
            if len(self._of_uep) >= KEPT:
                self._of_uep.clear()
            self._of_uep[uep_row] = found
        return found

    def _check_shared(self, endpoint: EndpointRecord, caller: Caller, access: EndpointAccess) -> None:
        if endpoint.owner == caller.account_id:
            return
        if not endpoint.multi_user:
            raise EndpointForbidden(endpoint_id=endpoint.endpoint_id)
        if (access.people is None and access.groups is None) or self.manages(endpoint, caller):
            return
        if access.people and not self.usernames(caller).isdisjoint(access.people):
            return
        if any(self.in_group(caller, one) for one in access.groups or ()):
            return
        raise EndpointNotShared(endpoint_id=endpoint.endpoint_id)

    # --- functions ----------------------------------------------------------------------------------

    def check_function(self, function: FunctionRef, caller: Caller) -> None:
        """Check that a person may run a function. Raises FunctionForbidden or ClientForbidden."""
        if caller.functions and function.function_id not in caller.functions:
            raise ClientForbidden(what=f"run function {function.function_id}")
        if function.owner == caller.account_id or function.public:
            return
        if not function.group or not self.in_group(caller, function.group):
            raise FunctionForbidden(function_id=function.function_id)

    @staticmethod
    def check_assurance(endpoint: EndpointRecord, function: FunctionRef) -> None:
        """Check that a high-assurance function and endpoint belong together. Raises HighAssurance."""
        wanted = function.ha_endpoint_id
        if wanted and wanted != endpoint.endpoint_id:
            reason = f"it is bound to the high-assurance endpoint {wanted}"
            raise HighAssurance(function_id=function.function_id, endpoint_id=endpoint.endpoint_id, reason=reason)
        if endpoint.high_assurance and not wanted:
            reason = "a high-assurance endpoint runs only functions that were registered with its ha_endpoint_id"
            raise HighAssurance(function_id=function.function_id, endpoint_id=endpoint.endpoint_id, reason=reason)


def template_policy(schema: Mapping[str, Any] | None) -> str:
    """Return the id of the policy that a template's schema names, empty if there is none."""
    value = (schema or {}).get(TEMPLATE_POLICY, "")
    return value if isinstance(value, str) else ""
