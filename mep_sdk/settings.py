"""Where the relay is and with which token to ask it: arguments, environment, `~/.mep/client.toml`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from mep_sdk.argument_checks import check_kind, check_secret
from mep_sdk.errors import InsecureRelay
from mep_sdk.private_files import read_private
from mep_wire.errors import NotConfigured

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TokenSource(Protocol):
    """Gives tokens that expire. Thread-safe."""

    def token(self) -> str:
        """Return a token that is valid for a while. Raises MepError, RelayUnreachable if another try may help."""

    def renewed(self, refused: str) -> str:
        """Return another token than this one, which the relay refused. Raises as `token` does."""

    def end(self) -> None:
        """Log out: the relay revokes the tokens. Raises MepError."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A relay and the token for it, or the source of tokens. Neither is in a repr."""

    relay_url: str
    token: str = field(repr=False)
    source: TokenSource | None = field(default=None, repr=False, compare=False)

    def bearer(self) -> str:
        """Return the token for the next request. Raises what the source raises."""
        return self.token if self.source is None else self.source.token()

    @property
    def secure(self) -> bool:
        """Whether the relay is spoken to through TLS."""
        return urlsplit(self.relay_url).scheme == "https"


def find_settings(
    relay_url: str | None = None,
    token: str | None = None,
    *,
    allow_insecure: bool = False,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    stored: Callable[[str | None, str | None], ClientSettings | None] = lambda _url, _token: None,
) -> ClientSettings:
    """Return the relay and token to use: arguments first, then MEP_RELAY_URL and MEP_TOKEN, then the file.

    A token from the file is only used with the relay named there. Where relay or token is still missing, `stored` is
    asked with what there is. Raises NotConfigured, InsecureRelay (plain http to another machine without
    `allow_insecure`), SettingsFileUnsafe, and TypeError for what is no text.
    """
    check_secret("token", token, '"mep_..."')
    check_kind("relay_url", relay_url, str, '"https://relay.example.edu"')
    env = os.environ if environ is None else environ
    url = relay_url or _without_ends(env.get("MEP_RELAY_URL"))
    secret = _without_ends(token) or _without_ends(env.get("MEP_TOKEN"))
    path = file
    if not (url and secret):
        path = file or _default_file()
        known = _read(path) if path is not None else {}
        url = url or known.get("relay_url")
        if url and not secret and _same_relay(url, known.get("relay_url")):
            secret = known.get("token")
        if not (url and secret) and (found := stored(url, secret)) is not None:
            url, secret = found.relay_url, found.token
            if found.source is not None:
                return replace(found, relay_url=checked_url(url, allow_insecure=allow_insecure))
        if url and not secret and known.get("token"):
            other = known.get("relay_url") or "a relay that it does not name"
            remedy = f"The token in {path} is for {other}. Pass token=..., or set MEP_TOKEN."
            raise NotConfigured(what=f"A token for {url}", remedy=remedy)
    if not url:
        raise NotConfigured(what="The relay's address", remedy=_remedy("relay_url", "MEP_RELAY_URL", path))
    if not secret:
        raise NotConfigured(what=f"A token for {url}", remedy=_remedy("token", "MEP_TOKEN", path))
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise NotConfigured(what="A usable token", remedy="The one given holds characters that no token has.")
    return ClientSettings(checked_url(url, allow_insecure=allow_insecure), secret)


def _without_ends(text: str | None) -> str | None:
    """Return a text that was read from a file without the file's byte order mark and last line break."""
    return text.strip("\ufeff \t\r\n") if text else None


def _default_file() -> Path | None:
    """Return the person's settings file; None for an account without a home, as uids in containers are."""
    try:
        return Path.home() / ".mep" / "client.toml"
    except RuntimeError:
        return None


def _remedy(argument: str, variable: str, path: Path | None) -> str:
    if path is None:  # there is no HOME, and the account is not in passwd
        return f"Pass {argument}=..., or set {variable}."
    return f"Pass {argument}=..., set {variable}, or write {argument} into {path}. Or log in: mep-sdk login URL"


def _same_relay(one: str, other: str | None) -> bool:
    return other is not None and one.rstrip("/") == other.rstrip("/")


def checked_url(url: str, *, allow_insecure: bool) -> str:
    """Return a relay's address without its last slash. Raises NotConfigured, InsecureRelay."""
    parts = _parts(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise NotConfigured(what="A usable relay address", remedy=f"{url[:200]!r} is not a plain http or https URL.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not allow_insecure:
        raise InsecureRelay(url=url)
    return url.rstrip("/")


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a URL; None for what cannot be one."""
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # brackets that do not match, or a port beyond 65535
        return None
    return parts if usable else None


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # 7 ms, which only those pay who have such a file
    else:
        import tomli as tomllib

    try:
        return tomllib.loads((read_private(path) or b"").decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NotConfigured(what="The SDK", remedy=f"{path} cannot be read: {error}.") from error
