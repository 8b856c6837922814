"""From a provider's claims to the identities that the relay stores, and the rules for which names a provider may use.

Trusts no claim further than its provider goes: a provider speaks for its own subjects, and for usernames in no domain
that another provider has. Called by relay.auth.provider and relay.auth.people.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, TypeGuard

import msgspec

from mep_wire.errors import IdentityUnusable
from mep_wire.identity import Identity, IdentitySet
from relay.auth.settings import PeopleSettings, ProviderSettings
from relay.store.records import Login

CLIENTS_DOMAIN = "clients"
"""The domain of services' usernames, which the relay makes."""
MAX_USERNAME = 256
MAX_TEXT = 512
MAX_LINKED = 50
MAX_GROUPS = 500
STATUSES = frozenset({"used", "unused", "private", "closed"})

OPEN_STATUSES = frozenset({"used", "private"})
"""Of identities that may do something: not one that was closed, or never used."""


def open_identities(person: IdentitySet | None) -> list[Identity]:
    """Return those identities of a person that give them rights."""
    return [one for one in person.identities if one.status in OPEN_STATUSES] if person else []


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One identity as its provider knows it."""

    provider: str
    sub: str
    identity: Identity


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a login at a provider: who it is, first the identity that logged in, and how."""

    subjects: tuple[Subject, ...]
    login: Login
    linked: bool
    """Whether `subjects` are all the identities that this person has at the provider."""


def identity_id(issuer: str, sub: str) -> str:
    """Return the id of a provider's subject: always the same, and no other provider's."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, issuer), sub))


def claimed(settings: PeopleSettings, provider: ProviderSettings, claims: Mapping[str, Any]) -> Claimed:
    """Return who the claims of a token and of userinfo, put together, speak of. Raises IdentityUnusable."""
    subjects = [_subject(settings, provider, claims, provider.username_claim)]
    linked = provider.linked_identities and isinstance(claims.get("identity_set"), list)
    if linked:
        others = [one for one in claims["identity_set"][:MAX_LINKED] if isinstance(one, dict)]
        subjects += [
            _subject(settings, provider, other, "username") for other in others if other.get("sub") != claims.get("sub")
        ]
    return Claimed(subjects=tuple(subjects), login=login_of(provider, claims), linked=linked)


def login_of(provider: ProviderSettings, claims: Mapping[str, Any]) -> Login:
    """Return how and when the person logged in, as far as the claims say."""
    at = claims.get("auth_time", claims.get("last_authentication"))
    amr = claims.get("amr")
    groups = claims.get(provider.groups_claim)
    return Login(
        provider=provider.name,
        at=float(at) if is_time(at) else 0.0,
        acr=_text(claims.get("acr")),
        amr=tuple(_text(one) for one in amr[:20]) if isinstance(amr, list) else (),
        groups=tuple(f"{provider.name}:{one}" for one in groups[:MAX_GROUPS] if _is_group(one))
        if isinstance(groups, list)
        else (),
    )


def _is_group(value: object) -> TypeGuard[str]:
    """Return whether a claim can be a group's name. One that is cut or emptied would be another group's."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def is_time(value: object) -> TypeGuard[int | float]:
    """Return whether a claim can be seconds since the epoch: a number, and no NaN, which is neither past nor future."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) and value.isprintable() else ""


def _subject(
    settings: PeopleSettings, provider: ProviderSettings, claims: Mapping[str, Any], username_claim: str
) -> Subject:
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 0 < len(sub) <= 255 or not sub.isprintable():
        raise IdentityUnusable(provider=provider.name, reason="the identity has no usable subject")
    username = _username(settings, provider, claims, username_claim)
    own_id = _as_uuid(sub) if provider.linked_identities else ""
    status = _text(claims.get("status")) or "used"
    identity = Identity(
        id=own_id or identity_id(provider.issuer, sub),
        username=username,
        name=_text(claims.get("name")),
        email=_text(claims.get("email")),
        organization=_text(claims.get("organization")),
        identity_provider=(_text(claims.get("identity_provider")) if own_id else "") or provider.name,
        status=status if status in STATUSES else "closed",
    )
    return Subject(provider=provider.name, sub=sub, identity=identity)


def _as_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return ""


def _username(settings: PeopleSettings, provider: ProviderSettings, claims: Mapping[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not value:
        raise IdentityUnusable(provider=provider.name, reason=f"the claim {claim} is missing")
    if claim == "email" and claims.get("email_verified") is not True:
        raise IdentityUnusable(provider=provider.name, reason="the email address is not verified")
    username = value if "@" in value or not provider.username_domain else f"{value}@{provider.username_domain}"
    if len(username) > MAX_USERNAME or not username.isprintable() or " " in username or _hides_a_capital(username):
        raise IdentityUnusable(provider=provider.name, reason="the username is not usable")
    check_domain(settings, provider.name, provider.username_domains, username)
    return username


def _hides_a_capital(username: str) -> bool:
    """Return whether `lower` changes a letter beyond ASCII: names are compared by it, and the store holds two apart."""
    return any(one != one.lower() for one in username if not one.isascii())


def check_domain(settings: PeopleSettings, name: str, own: tuple[str, ...], username: str) -> None:
    """Check that a way to log in may speak for this username. Raises IdentityUnusable."""
    domain = username.rpartition("@")[2].lower() if "@" in username else ""
    mine = {one.lower() for one in own}
    others = {
        one.lower() for provider in settings.providers if provider.name != name for one in provider.username_domains
    }
    if settings.password is not None and settings.password.name != name:
        others.add(settings.password.domain.lower())
    others.add(CLIENTS_DOMAIN)
    if (mine and domain not in mine) or (domain in others and domain not in mine):
        raise IdentityUnusable(provider=name, reason=f"it may not speak for usernames of the domain {domain!r}")
