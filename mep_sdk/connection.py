"""How the relay is reached: through which proxy, and which certificate authorities are trusted.

The environment says both, as other HTTP clients read it: https_proxy, http_proxy, all_proxy and no_proxy;
REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR. urllib3 makes the connections for requests and
websockets that for the result stream; both get these settings. No message contains a proxy's password. Slow
imports are made where they are used.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mep_sdk.errors import CaBundleUnusable, ProxyUnsupported

if TYPE_CHECKING:
    import ssl

CONNECT_TIMEOUT_S = 8.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
_SOCKS_MODULES = ("socks", "python_socks")
"""PySocks, which urllib3 uses, and python-socks, which websockets uses."""
_REPLACING = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""A file, or a directory as c_rehash makes it, that replaces the system's authorities."""
_ADDING = "SSL_CERT_FILE"
"""A file that OpenSSL reads itself, and passes over in silence where it cannot."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. `str` gives its address without the password."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self._netloc}"

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS."""
        return self.scheme.startswith("socks")

    @property
    def address(self) -> str:
        """Its address with name and password, for a library."""
        if self.username is None:
            return str(self)
        return f"{self.scheme}://{quote(self.username, '')}:{quote(self.password, '')}@{self._netloc}"


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy on the way to `url`, None for the direct way. Raises ProxyUnsupported."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK or _bypassed(host, parts.port or _PORTS.get(parts.scheme, 443)):
        return None
    address = _configured(parts.scheme)
    return _parsed(address) if address else None


def _configured(scheme: str) -> str | None:
    from urllib.request import getproxies

    proxies = getproxies()
    if found := proxies.get(scheme) or proxies.get("all"):
        return found
    socks = proxies.get("socks")  # as macOS and Windows have it, which write http:// before it
    return "socks5h://" + socks.rpartition("://")[2] if socks else None


def _bypassed(host: str, port: int) -> bool:
    import ipaddress
    from urllib.request import getproxies, proxy_bypass

    if proxy_bypass(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in getproxies().get("no", "").split(","):
        with contextlib.suppress(ValueError):
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
    return False


def _parsed(address: str) -> Proxy:
    full = address if "://" in address else f"http://{address}"
    scheme = full.partition("://")[0].lower()
    shown_address = _without_password(full)
    try:
        parts = urlsplit(full)
        port = parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        raise ProxyUnsupported(proxy=f"{scheme}://{shown_address}", reason=_not_an_address(full)) from None
    shown = f"{scheme}://{shown_address}"
    if scheme not in _PORTS:
        raise ProxyUnsupported(proxy=shown, reason=f"it is none of {', '.join(_PORTS)}")
    if not parts.hostname:
        raise ProxyUnsupported(proxy=shown, reason="it names no host")
    if "@" in full and "@" not in parts.netloc:
        raise ProxyUnsupported(proxy=shown, reason=_not_an_address(full))
    if scheme.startswith("socks") and not _has_socks():
        raise ProxyUnsupported(proxy=shown, reason="SOCKS needs two more packages: pip install 'mep-sdk[socks]'")
    username = None if parts.username is None else unquote(parts.username)
    return Proxy(scheme, parts.hostname, port, username, unquote(parts.password or ""))


def _without_password(address: str) -> str:
    """Return what follows the last @, or stands before a colon: a password that is not escaped can hold what ends it
    for a parser."""
    _, found, shown_address = address.rpartition("@")
    return shown_address if found else address.partition("://")[2].partition(":")[0]


def _not_an_address(address: str) -> str:
    before = address.partition("://")[2].rpartition("@")[0]
    if any(mark in before for mark in "/?#"):
        return "its name or password holds one of / ? #, which are written %2F %3F %23"
    return "its host is no host, or its port is not a number"


def _has_socks() -> bool:
    from importlib import util

    return all(util.find_spec(name) is not None for name in _SOCKS_MODULES)


def tls_context() -> ssl.SSLContext:
    """Return the SSL context that checks certificates, of the relay and of an https proxy. Raises CaBundleUnusable."""
    for variable in (*_REPLACING, _ADDING):
        if path := os.environ.get(variable):
            return _context(variable, path)
    return _context("", "")


@functools.cache
def _context(variable: str, path: str) -> ssl.SSLContext:
    import ssl

    try:
        if variable in _REPLACING:
            if Path(path).is_dir():
                return ssl.create_default_context(capath=path)
            return ssl.create_default_context(cafile=path)
        context = ssl.create_default_context()
        if path:
            context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CaBundleUnusable(variable=variable, path=path, reason=reason) from error
    return context
