"""The commands login, logout, whoami and profiles."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mep_sdk.authorization_server import AuthorizationServer, OAuthRefused
from mep_sdk.client import Client
from mep_sdk.errors import LoginRefused, RelayAnswerInvalid
from mep_sdk.http import Transport
from mep_sdk.profiles import (
    NAME,
    Profile,
    choose_default,
    default_profile,
    find_profile,
    locked,
    profile_file,
    profile_names,
    profile_of,
    save_profile,
)
from mep_sdk.settings import ClientSettings, checked_url
from mep_sdk.token_sources import log_out
from mep_sdk.tool import output
from mep_sdk.tool.browser_login import log_in_with_browser
from mep_sdk.tool.device_login import log_in_with_device
from mep_wire.errors import MepError, NotConfigured, RelayUnreachable

_ANSWER_S = 30.0
_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def has_browser() -> bool:
    """Return whether a browser can open a page in front of the person."""
    if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"):
        return False
    if sys.platform not in ("win32", "darwin") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("BROWSER")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def login(options: argparse.Namespace) -> int:
    """Log in at a relay and store the tokens as a profile."""
    url, name = _where(options)
    profile_file(name)  # raises NotConfigured, before the person has logged in for nothing
    server = AuthorizationServer(url)
    methods = server.metadata().get("mep_login_methods")
    if not methods:
        reason = "it has built-in accounts only. Ask its operator for a token and set MEP_TOKEN."
        raise LoginRefused(url=url, reason=reason)
    browser = options.browser or (not options.device and has_browser())
    flow = log_in_with_browser if browser else log_in_with_device
    profile = flow(server, options.scope, output.note)
    person = userinfo(ClientSettings(url, profile.access_token))
    profile = msgspec.structs.replace(profile, username=str(person.get("preferred_username", "")))
    _keep(name, profile)
    if options.json:
        output.as_json({"profile": name, "relay_url": url, "username": profile.username, "scope": profile.scope})
    else:
        output.say(f"Logged in to {url} as {profile.username}: profile {name}, scopes {profile.scope}.")
    _warn_of_precedence()
    return 0


def _where(options: argparse.Namespace) -> tuple[str, str]:
    """Return the relay's address and the profile's name. Raises NotConfigured, InsecureRelay."""
    known = find_profile(options.profile) if options.profile else None
    url = options.relay or (known.relay_url if known else None) or os.environ.get("MEP_RELAY_URL")
    first = default_profile()
    if not url and not options.profile and first and (stored := find_profile(first)):
        return stored.relay_url, first
    if not url:
        raise NotConfigured(what="The relay's address", remedy="Name it: mep-sdk login https://relay.example.edu")
    url = checked_url(url, allow_insecure=options.allow_insecure)
    if known is not None and known.relay_url != url:
        remedy = f"{options.profile} is a login to {known.relay_url}. Choose another name, or log out there first."
        raise NotConfigured(what="The profile", remedy=remedy)
    return url, options.profile or profile_of(url) or _new_name(url)


def _new_name(url: str) -> str:
    if "default" not in profile_names():
        return "default"
    host = (urlsplit(url).netloc or "relay").replace(":", "-")
    return host if NAME.fullmatch(host) else "relay"


def _keep(name: str, profile: Profile) -> None:
    """Store a new login; the one before it ends at the relay."""
    first = default_profile() or name
    with locked(name):
        before = find_profile(name)
        save_profile(name, profile)
    choose_default(first)
    if before is not None and before.relay_url == profile.relay_url:
        try:
            AuthorizationServer(before.relay_url).revoke(before.refresh_token or before.access_token)
        except (MepError, OAuthRefused) as error:  # the new login stands, whatever becomes of the old one
            output.note(f"The login before this one was not revoked: {error}")


def _warn_of_precedence() -> None:
    for variable in ("MEP_TOKEN", "MEP_CLIENT_ID"):
        if os.environ.get(variable):
            output.note(f"{variable} is set, and is used in place of this login.")


def logout(options: argparse.Namespace) -> int:
    """End a login, or all of them, here and at the relay."""
    names = profile_names() if options.all else [options.profile or os.environ.get("MEP_PROFILE") or default_profile()]
    failed = 0
    for name in filter(None, names):
        if find_profile(name) is None:
            raise NotConfigured(what="The profile", remedy=f"There is no login called {name}.")
        try:
            log_out(name)
        except RelayUnreachable as error:
            failed = 1
            output.note(f"The profile {name} is gone. The relay could not revoke its tokens: {error}")
        else:
            output.say(f"Logged out: profile {name}.")
    if not any(names):
        output.say("You are not logged in.")
    return failed


def whoami(options: argparse.Namespace) -> int:
    """Print who the token speaks for."""
    client = client_of(options)
    person = userinfo(client.settings)
    if options.json:
        output.as_json(person)
        return 0
    mep = person.get("mep") or {}
    output.fields(
        {
            "relay": client.settings.relay_url,
            "username": person.get("preferred_username"),
            "name": person.get("name"),
            "provider": person.get("identity_provider_display_name") or person.get("identity_provider"),
            "identity": person.get("sub"),
            "kind": mep.get("kind"),
            "scopes": " ".join(mep.get("scopes") or ()),
            "token from": _source(options),
        }
    )
    return 0


def _source(options: argparse.Namespace) -> str:
    if os.environ.get("MEP_TOKEN"):
        return "MEP_TOKEN"
    name = options.profile or os.environ.get("MEP_PROFILE")
    if name:
        return f"profile {name}"
    if os.environ.get("MEP_CLIENT_ID") and os.environ.get("MEP_CLIENT_SECRET"):
        return "MEP_CLIENT_ID"
    return "settings or the default profile"


def profiles(options: argparse.Namespace) -> int:
    """List the logins on this machine, or choose the default one."""
    if options.use:
        choose_default(options.use)
    first, rows = default_profile(), []
    for name in profile_names():
        try:
            found = find_profile(name)
        except MepError as error:
            output.note(str(error))
            continue
        if found is not None:
            rows.append((name, found.relay_url, found.username, found.scope, name == first))
    heads = ("profile", "relay_url", "username", "scope", "default")
    if options.json:
        output.as_json([dict(zip(heads, row, strict=True)) for row in rows])
    else:
        output.table(heads, rows)
    return 0


def client_of(options: argparse.Namespace) -> Client:
    """Return the client that the options name. Raises what Client raises."""
    return Client(
        options.relay_url, profile=options.profile, allow_insecure=options.allow_insecure, retry_for_s=_ANSWER_S
    )


def userinfo(settings: ClientSettings) -> dict[str, Any]:
    """Return who the token speaks for. Raises MepError."""
    transport = Transport(settings, retry_for_s=_ANSWER_S)
    try:
        return _decoder.decode(transport.get("/oauth/userinfo"))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RelayAnswerInvalid(url=settings.relay_url, reason=str(error)) from error
    finally:
        transport.close()
