"""How people log in: providers, password login, lifetimes and the relay's administrators, as the site configures it.

One TOML file, read once at start. Every key is checked there; a mistake stops the relay with file, key and reason.
Called by the command line and the server.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

SCOPES = ("submit", "read", "manage_endpoints", "manage_tokens", "admin")
"""Everything that a token may allow."""
DEFAULT_SCOPES = ("submit", "read")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures that a provider's tokens may have: of public keys only; none of them is ever taken for a secret."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class SettingsRefused(Exception):
    """The file can't be used. The text names file, key and reason."""


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One OpenID Connect provider."""

    name: str
    """A short name, which identities and policies have for good: lower-case letters, digits, hyphens."""
    issuer: str
    """Its issuer, exactly as it stands in its tokens."""
    title: str = ""
    """What people read; the name where it is empty."""
    client_id: str = ""
    """The relay as a client of the provider; empty: nobody logs in here, only its bearer tokens are taken."""
    client_secret_file: str = ""
    """A file with the client's secret; empty: a public client."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    """Requested at a login."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """The signatures that its tokens may have."""
    audience: str = ""
    """The audience of JWT access tokens that are taken as bearer tokens; empty: none is taken."""
    introspect: bool = False
    """Whether other bearer tokens are sent to its introspection endpoint. Needs `audience` or `required_scope`: an
    active token may have been issued to anybody's client, for anything."""
    accept_any_client: bool = False
    """Whether introspection may take tokens that were issued to any client of the provider, for any purpose."""
    bearer_scopes: tuple[str, ...] = DEFAULT_SCOPES
    """What its bearer tokens may do here."""
    required_scope: str = ""
    """A scope that its bearer tokens must have."""
    username_claim: str = "preferred_username"
    username_domain: str = ""
    """Added after @ to usernames without one."""
    username_domains: tuple[str, ...] = ()
    """The domains that this provider may speak for; empty: any that no other provider lists."""
    groups_claim: str = "groups"
    linked_identities: bool = False
    """Whether the other identities in its `identity_set` are believed, as Globus Auth has them."""
    mfa_values: tuple[str, ...] = ("mfa", "otp", "hwk", "sc", "fpt")
    """Values of acr or amr that stand for a second factor."""
    mfa_acr_values: tuple[str, ...] = ()
    """Sent as acr_values where a second factor is wanted."""
    skew_s: float = 60.0
    """How far its clock may be off."""
    ca_file: str = ""
    """The certificates of its own authority."""


class PasswordSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Login with an account of the relay's host, through PAM."""

    service: str = "mep-relay"
    """The PAM service: /etc/pam.d/SERVICE."""
    name: str = "host"
    title: str = "Account of this host"
    domain: str
    """Added after @ to the account's name: the person's username."""
    min_uid: int = 1000
    """Accounts with a lower uid can't log in."""


class PeopleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about logins. The defaults are a relay with built-in accounts only."""

    public_url: str = ""
    """The address at which people reach the relay; empty: where it listens."""
    providers: tuple[ProviderSettings, ...] = ()
    password: PasswordSettings | None = None
    administrators: tuple[str, ...] = ()
    """Usernames that may have the scope admin."""
    access_token_s: float = 3600.0
    refresh_token_s: float = 30 * 86400.0
    max_token_s: float = 366 * 86400.0
    """The longest lifetime that people may give to tokens that they make."""


_decoder = msgspec.json.Decoder(PeopleSettings)  # built now, for the conversions: see mep_wire.struct_info


def from_toml(data: bytes, source: str) -> PeopleSettings:
    """Return the settings in a file's content; `source` is its name. Raises SettingsRefused."""
    try:
        settings = msgspec.convert(msgspec.toml.decode(data), PeopleSettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsRefused(f"{source}: {error}") from error
    for key, reason in _faults(settings):
        raise SettingsRefused(f"{source}: {key}: {reason}")
    return settings


def _faults(settings: PeopleSettings) -> list[tuple[str, str]]:
    """Return the mistakes, as key and reason."""
    faults: list[tuple[str, str]] = []
    if settings.public_url and not is_safe_url(settings.public_url):
        faults.append(("public_url", "an https address (http on loopback only)"))
    names = [one.name for one in settings.providers] + ([settings.password.name] if settings.password else [])
    faults += [("name", f"{name!r} stands twice") for name in names if names.count(name) > 1]
    faults += [
        ("name", f"{name!r}: lower-case letters, digits, hyphens") for name in names if not _NAME.fullmatch(name)
    ]
    for number, one in enumerate(settings.providers):
        faults += [(f"providers[{number}].{key}", reason) for key, reason in _provider_faults(one)]
    if sum(one.introspect for one in settings.providers) > 1:
        faults.append(("introspect", "for one provider at most: another's tokens must not be shown to it"))
    if settings.password and not settings.password.domain:
        faults.append(("password.domain", "must not be empty"))
    if settings.password and "/" in settings.password.service:
        faults.append(("password.service", "the name of a file in /etc/pam.d"))
    for key in ("access_token_s", "refresh_token_s", "max_token_s"):
        if not 1 <= getattr(settings, key) <= 10 * 366 * 86400:
            faults.append((key, "1 second to 10 years"))
    return faults


def _provider_faults(one: ProviderSettings) -> list[tuple[str, str]]:
    faults = []
    if not is_safe_url(one.issuer):
        faults.append(("issuer", "an https address (http on loopback only)"))
    if bad := set(one.algorithms) - set(ALGORITHMS):
        faults.append(("algorithms", f"{', '.join(sorted(bad))}: expected some of {', '.join(ALGORITHMS)}"))
    if not one.algorithms:
        faults.append(("algorithms", "at least one"))
    if bad := set(one.bearer_scopes) - set(SCOPES):
        faults.append(("bearer_scopes", f"{', '.join(sorted(bad))}: expected some of {', '.join(SCOPES)}"))
    if "openid" not in one.scopes:
        faults.append(("scopes", "openid must be among them"))
    if one.audience and one.audience == one.client_id:
        faults.append(("audience", "must not be client_id: an ID token would pass for an access token"))
    faults += _introspection_faults(one)
    if not (one.client_id or one.audience):
        faults.append(("client_id", "without client_id and audience the provider is of no use"))
    if not 0 <= one.skew_s <= 600:
        faults.append(("skew_s", "0 to 600 seconds"))
    return faults


def _introspection_faults(one: ProviderSettings) -> list[tuple[str, str]]:
    faults = []
    if one.introspect and not one.client_id:
        faults.append(("introspect", "needs client_id"))
    if one.introspect and not (one.audience or one.required_scope or one.accept_any_client):
        reason = (
            "needs audience or required_scope: without them the relay takes every active token of the provider, also "
            "one that a person gave to another service; accept_any_client = true allows that"
        )
        faults.append(("introspect", reason))
    if one.accept_any_client and not one.introspect:
        faults.append(("accept_any_client", "is about introspection: set introspect too"))
    if one.accept_any_client and (one.audience or one.required_scope):
        faults.append(("accept_any_client", "contradicts audience and required_scope, which limit the clients"))
    return faults


def is_safe_url(url: str) -> bool:
    """Return whether secrets may be sent to this address: https, or http to this very host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
