"""Bodies and answers of the routes about people: tokens, userinfo, policies, groups, clients, access to endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec


class TokenBody(msgspec.Struct, kw_only=True):
    """POST /v3/tokens."""

    name: str
    scopes: list[str] | None = None
    """Null: those of the token that asks, without `admin` and `manage_tokens`."""
    expires_in: float | None = None
    """Seconds; null: as long as the relay allows and the token that asks lives."""


class TokenInfo(msgspec.Struct, kw_only=True):
    """One access token, without its text."""

    id: str
    name: str
    kind: str
    """`login`, `personal`, `service` or `built-in`."""
    scopes: list[str]
    created_at: float
    expires_at: float | None
    client_id: str | None
    last_used_at: float | None


class NewTokenAnswer(TokenInfo, kw_only=True):
    """The answer to POST /v3/tokens: the token's text is shown this once."""

    token: str


class TokensAnswer(msgspec.Struct, kw_only=True):
    """GET /v3/tokens."""

    tokens: list[TokenInfo]


class IdentityInfo(msgspec.Struct, kw_only=True):
    """One identity of a person."""

    sub: str
    username: str
    name: str
    email: str
    organization: str
    identity_provider: str
    status: str
    last_authentication: int | None = None


class MepUserinfo(msgspec.Struct, kw_only=True):
    """What the relay itself says of a token."""

    account_id: str
    scopes: list[str]
    token_id: str
    kind: str
    client_id: str | None
    groups: list[str]


class Userinfo(msgspec.Struct, kw_only=True):
    """GET /oauth/userinfo."""

    sub: str
    preferred_username: str
    name: str
    email: str
    identity_provider: str
    identity_provider_display_name: str
    last_authentication: int | None
    identity_set: list[IdentityInfo]
    mep: MepUserinfo


class PolicyBody(msgspec.Struct, kw_only=True):
    """POST /v3/policies and PUT /v3/policies/ID, with the fields of Globus Auth's policies."""

    display_name: str
    description: str = ""
    high_assurance: bool = False
    authentication_assurance_timeout: int | None = None
    required_mfa: bool = False
    domain_constraints_include: list[str] | None = None
    domain_constraints_exclude: list[str] | None = None
    required_providers: list[str] | None = None


class GroupBody(msgspec.Struct, kw_only=True):
    """POST /v3/groups and PUT /v3/groups/ID. Members and managers are usernames."""

    name: str
    description: str = ""
    members: list[str] = []
    managers: list[str] = []


class GroupInfo(msgspec.Struct, kw_only=True):
    """One group of the relay's."""

    id: str
    name: str
    description: str
    members: list[str]
    managers: list[str]


class ClientBody(msgspec.Struct, kw_only=True):
    """POST /v3/clients: a service or gateway with an account of its own."""

    name: str
    scopes: list[str] = msgspec.field(default_factory=lambda: ["submit", "read"])
    exchange: bool = False
    """Whether it may exchange people's tokens for tokens of its own."""
    functions: list[str] = []
    """The only functions that its tokens may submit; empty: any."""
    redirect_uris: list[str] = []


class ClientInfo(msgspec.Struct, kw_only=True):
    """One client."""

    client_id: str
    name: str
    scopes: list[str]
    exchange: bool
    functions: list[str]
    redirect_uris: list[str]
    username: str


class NewClientAnswer(ClientInfo, kw_only=True):
    """The answer to POST /v3/clients: the secret is shown this once."""

    client_secret: str


class AccessBody(msgspec.Struct, kw_only=True):
    """PUT /v3/endpoints/ID/access: who may use an endpoint, beside its owner and administrators."""

    people: list[str] | None = None
    """Usernames. Both null: every person that the site maps."""
    groups: list[str] | None = None
    """Ids of the relay's groups, or PROVIDER:GROUP for a provider's."""
    locked: bool = False
    """Whether new submissions are refused, but for the owner's and administrators'."""
    lock_reason: str = ""
    alias: str | None = None
    """A name by which the endpoint is found, unique at this relay."""
    pass_end_users: bool = False
    """Whether templates see the end user of a gateway, as `user_runtime.end_user`: each of them then has
    a user endpoint of their own."""


class FunctionUpdateBody(msgspec.Struct, kw_only=True):
    """PUT /v3/functions/ID: fields that are left out stay."""

    description: str | None = None
    public: bool | None = None
    group: str | None = None


class RunBody(msgspec.Struct, kw_only=True):
    """POST /automate/compute/run: an action, as Globus Flows' action interface has it."""

    request_id: str
    body: dict[str, Any]
    label: str = ""
    monitor_by: list[str] = []
    manage_by: list[str] = []
    release_after: str | None = None
    deadline: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """When unfinished tasks expire."""
    allowed_clients: list[str] | None = None


BODIES: tuple[type[Any], ...] = (
    *(TokenBody, PolicyBody, GroupBody, ClientBody, AccessBody, FunctionUpdateBody, RunBody),
)
