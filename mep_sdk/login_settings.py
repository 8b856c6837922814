"""Which relay and which token a client uses, stored logins and services' credentials included.

A token that is given wins, as an argument or as MEP_TOKEN. Then come a profile that is named, the credentials of a
service, `~/.mep/client.toml`, the profile of the relay that is named, and the default profile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mep_sdk.argument_checks import check_kind, check_secret
from mep_sdk.profiles import default_profile, get_profile, profile_of
from mep_sdk.settings import ClientSettings, checked_url, find_settings
from mep_sdk.token_sources import ServiceLogin, StoredLogin
from mep_wire.errors import NotConfigured


def client_settings(
    relay_url: str | None = None,
    token: str | None = None,
    *,
    profile: str | None = None,
    allow_insecure: bool = False,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> ClientSettings:
    """Return the relay and the token, or the source of tokens.

    Raises NotConfigured, ProfileUnknown, InsecureRelay, SettingsFileUnsafe.
    """
    check_secret("token", token, '"mep_..."')
    check_kind("profile", profile, str, '"campus"')
    env = os.environ if environ is None else environ
    given = token or env.get("MEP_TOKEN")
    named = profile or (env.get("MEP_PROFILE") if not token else None)
    if named:
        url = relay_url or (None if profile else env.get("MEP_RELAY_URL"))
        return _of_profile(named, url, given, allow_insecure=allow_insecure)
    client_id, secret = env.get("MEP_CLIENT_ID", ""), env.get("MEP_CLIENT_SECRET", "")
    service = bool(client_id and secret and not given)
    found = find_settings(
        relay_url,
        "service" if service else token,  # its place is taken below
        allow_insecure=allow_insecure,
        environ=env,
        file=file,
        stored=_stored,
    )
    if service:
        return replace(found, token="", source=ServiceLogin(found.relay_url, client_id, secret))
    return found


def _of_profile(name: str, url: str | None, token: str | None, *, allow_insecure: bool) -> ClientSettings:
    stored = get_profile(name)
    if url and url.rstrip("/") != stored.relay_url.rstrip("/"):
        remedy = f"The profile {name} is for {stored.relay_url}. Name a profile or a relay, not both."
        raise NotConfigured(what=f"A token for {url}", remedy=remedy)
    if token:
        return find_settings(stored.relay_url, token, allow_insecure=allow_insecure)
    relay_url = checked_url(stored.relay_url, allow_insecure=allow_insecure)
    return ClientSettings(relay_url, "", StoredLogin(name, stored))


def _stored(url: str | None, token: str | None) -> ClientSettings | None:
    """Return the login for this relay, the default one where none is named; with a token only its relay."""
    name = profile_of(url) if url else default_profile()
    if name is None:
        return None
    found = get_profile(name)
    if token:
        return ClientSettings(found.relay_url, token)
    return ClientSettings(found.relay_url, "", StoredLogin(name, found))
