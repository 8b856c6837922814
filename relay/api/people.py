"""People over HTTP: userinfo, their tokens, and the clients of services."""

from __future__ import annotations

import time
import uuid

from mep_wire.errors import BodyInvalid, ClientForbidden, ClientNotFound, TokenNotFound, TokenUnknown
from relay.api.context import ApiContext
from relay.api.endpoints import Deleted
from relay.api.http import Request, check_scope
from relay.api.people_bodies import (
    ClientBody,
    ClientInfo,
    IdentityInfo,
    MepUserinfo,
    NewClientAnswer,
    NewTokenAnswer,
    TokenBody,
    TokenInfo,
    TokensAnswer,
    Userinfo,
)
from relay.auth.oauth import Client, client_from
from relay.auth.settings import SCOPES, is_safe_url
from relay.auth.tokens import CLIENT, KNOWN_CLIENTS, new_token, token_hash
from relay.dispatch.live_state import durable
from relay.store.base import Tx
from relay.store.records import Caller, TokenRecord

MAX_NAME = 128
MAX_TOKENS = 500
"""Tokens of one person."""
MAX_LISTED = 1000
NOT_BY_DEFAULT = ("admin", "manage_tokens")
"""Scopes that a new token gets where they are asked for alone."""


async def userinfo(service: ApiContext, request: Request) -> Userinfo:
    """GET /oauth/userinfo."""
    caller = request.caller
    person = service.store.identity_set(caller.account_id, caller.identity_id)
    if person is None:
        raise TokenUnknown
    at = int(caller.login.at) or None
    first = person.identities[0]
    titles = {one.name: one.title or one.name for one in service.people.settings.providers}
    return Userinfo(
        sub=first.id,
        preferred_username=first.username,
        name=first.name,
        email=first.email,
        identity_provider=first.identity_provider,
        identity_provider_display_name=titles.get(first.identity_provider, first.identity_provider),
        last_authentication=at,
        identity_set=[
            IdentityInfo(
                sub=one.id,
                username=one.username,
                name=one.name,
                email=one.email,
                organization=one.organization,
                identity_provider=one.identity_provider,
                status=one.status,
                last_authentication=at if one.id == first.id else None,
            )
            for one in person.identities
        ],
        mep=MepUserinfo(
            account_id=caller.account_id,
            scopes=list(caller.scopes),
            token_id=caller.token_id,
            kind="service" if first.identity_type == "service" else "person",
            client_id=caller.client_id or None,
            groups=service.access.groups_of(caller),
        ),
    )


def _info(record: TokenRecord) -> TokenInfo:
    kind = "login" if record.grant_id else "service" if record.client_id else "personal" if record.name else "built-in"
    return TokenInfo(
        id=record.token_id,
        name=record.name,
        kind=kind,
        scopes=list(record.scopes),
        created_at=record.created_at,
        expires_at=record.expires_at or None,
        client_id=record.client_id or None,
        last_used_at=record.used_at or None,
    )


async def tokens(service: ApiContext, request: Request) -> TokensAnswer:
    """GET /v3/tokens: one's own tokens that have not expired."""
    now = time.time()
    found = service.store.tokens(request.caller.account_id, MAX_LISTED)
    return TokensAnswer(tokens=[_info(one) for one in found if not 0 < one.expires_at <= now])


async def add_token(service: ApiContext, request: Request) -> NewTokenAnswer:
    """POST /v3/tokens: a token with no more scopes, no longer life, and for no other person, than the one that asks."""
    body: TokenBody = request.body
    caller = request.caller
    if not 0 < len(body.name) <= MAX_NAME or not body.name.isprintable():
        raise BodyInvalid(reason=f"name: 1 to {MAX_NAME} printable characters")
    if caller.client_id and caller.client_id not in KNOWN_CLIENTS:
        raise ClientForbidden(what="make tokens: it gets them with its secret")
    scopes, now = _scopes(body, caller), time.time()
    lifetime = _lifetime(body, caller, now, service.people.settings.max_token_s)
    if len(service.store.tokens(caller.account_id, MAX_TOKENS + 1)) > MAX_TOKENS:
        raise BodyInvalid(reason=f"you have {MAX_TOKENS} tokens: revoke some first")
    token = new_token()
    record = TokenRecord(
        token_id=str(uuid.uuid4()),
        account_id=caller.account_id,
        identity_id=caller.identity_id,
        created_at=now,
        expires_at=now + lifetime,
        name=body.name,
        scopes=scopes,
        login=caller.login,
        functions=caller.functions,
    )
    await durable(service.store.submit(lambda tx: tx.add_token(token_hash(token), record)))
    service.audit.note("token.create", caller, token=record.token_id, scopes=scopes, expires_at=record.expires_at)
    info = _info(record)
    return NewTokenAnswer(**{name: getattr(info, name) for name in info.__struct_fields__}, token=token)


def _scopes(body: TokenBody, caller: Caller) -> tuple[str, ...]:
    """Return the scopes of a new token. Raises BodyInvalid, ScopeMissing."""
    if body.scopes is None:
        scopes = tuple(one for one in caller.scopes if one not in NOT_BY_DEFAULT)
    else:
        scopes = tuple(dict.fromkeys(body.scopes))
    if not scopes or (unknown := [one for one in scopes if one not in SCOPES]):
        raise BodyInvalid(reason=f"scopes: expected some of {', '.join(SCOPES)}, got {unknown if scopes else 'none'}")
    for one in scopes:
        check_scope(caller, one)
    return scopes


def _lifetime(body: TokenBody, caller: Caller, now: float, longest_s: float) -> float:
    """Return how long a new token lives. Raises BodyInvalid."""
    left_s = caller.expires_at - now if caller.expires_at else longest_s
    if body.expires_in is None:
        return min(longest_s, left_s)
    if not 1 <= body.expires_in <= longest_s:
        raise BodyInvalid(reason=f"expires_in: 1 to {longest_s:.0f} seconds")
    if body.expires_in > left_s:
        raise BodyInvalid(reason=f"expires_in: the token that asks ends in {left_s:.0f} s, and none may outlive it")
    return body.expires_in


async def remove_token(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v3/tokens/ID: one's own."""
    caller, token_id = request.caller, request.path[0]
    removed = await durable(service.store.submit(lambda tx: tx.remove_token(token_id, caller.account_id)))
    if not removed:
        raise TokenNotFound(token_id=token_id)
    service.audit.note("token.revoke", caller, token=token_id)
    return Deleted()


# --- clients ----------------------------------------------------------------------------------------


def _client_info(client: Client) -> ClientInfo:
    return ClientInfo(
        client_id=client.client_id,
        name=client.name,
        scopes=list(client.scopes),
        exchange=client.exchange,
        functions=list(client.functions),
        redirect_uris=list(client.redirect_uris),
        username=f"{client.client_id}@clients",
    )


async def add_client(service: ApiContext, request: Request) -> NewClientAnswer:
    """POST /v3/clients."""
    body: ClientBody = request.body
    if not 0 < len(body.name) <= MAX_NAME or not body.name.isprintable():
        raise BodyInvalid(reason=f"name: 1 to {MAX_NAME} printable characters")
    if not body.scopes or (set(body.scopes) - set(SCOPES)) or "admin" in body.scopes:
        raise BodyInvalid(reason=f"scopes: expected some of {', '.join(one for one in SCOPES if one != 'admin')}")
    if len(body.redirect_uris) > 20 or not all(map(is_safe_url, body.redirect_uris)):
        raise BodyInvalid(reason="redirect_uris: at most 20 addresses, https or on loopback")
    if len(body.functions) > MAX_LISTED:
        raise BodyInvalid(reason=f"functions: at most {MAX_LISTED}")
    wanted = Client(
        client_id=str(uuid.uuid4()),
        name=body.name,
        scopes=tuple(dict.fromkeys(body.scopes)),
        exchange=body.exchange,
        functions=tuple(one.lower() for one in body.functions),
        redirect_uris=tuple(body.redirect_uris),
        created_by=request.caller.account_id,
    )
    made, secret = await service.oauth.add_client(wanted)
    service.audit.note("client.create", request.caller, client=made.client_id, name=made.name, exchange=made.exchange)
    info = _client_info(made)
    return NewClientAnswer(**{name: getattr(info, name) for name in info.__struct_fields__}, client_secret=secret)


async def clients(service: ApiContext, request: Request) -> list[ClientInfo]:
    """GET /v3/clients."""
    return [_client_info(client_from(one)) for one in service.store.documents(CLIENT, limit=MAX_LISTED)]


async def remove_client(service: ApiContext, request: Request) -> Deleted:
    """DELETE /v3/clients/ID: the client with its account. All its tokens end, those that it got by exchange as well."""
    client_id = request.path[0]
    document = service.store.document(CLIENT, client_id)
    if document is None:
        raise ClientNotFound(client_id=client_id)
    client = client_from(document)

    def change(tx: Tx) -> None:
        tx.drop_document(CLIENT, client_id)
        tx.remove_account(client.account_id)

    await durable(service.store.submit(change))
    service.audit.note("client.delete", request.caller, client=client_id)
    return Deleted()
