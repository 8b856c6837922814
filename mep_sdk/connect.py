"""Open a connection to the relay: TCP, a site's proxy where one is set, TLS. Both HTTP and the result stream use it."""

from __future__ import annotations

import base64
import contextlib
import functools
import socket
import ssl
import urllib.request
from urllib.parse import unquote, urlsplit

CONNECT_TIMEOUT_S = 10.0
_MAX_HEAD_BYTES = 16384


class ProxyRefused(OSError):
    """The proxy did not open a way to the relay."""


@functools.cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()  # the system's certificate authorities, or SSL_CERT_FILE
    context.set_alpn_protocols(["http/1.1"])
    return context


def open_connection(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Return a connected socket to the host of `url` (http or https). Raises OSError, ssl.SSLError included."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    proxy = _proxy_for(parts.scheme, host, port)
    sock = _through_proxy(proxy, host, port, timeout_s) if proxy else socket.create_connection((host, port), timeout_s)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(sock.close)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ready = _tls().wrap_socket(sock, server_hostname=host) if secure else sock
        on_failure.pop_all()
    return ready


def _proxy_for(scheme: str, host: str, port: int) -> str | None:
    """Return the proxy that the environment names, as most HTTP clients understand http_proxy and no_proxy."""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return urllib.request.getproxies().get(scheme)


def _through_proxy(proxy: str, host: str, port: int, timeout_s: float) -> socket.socket:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    sock = socket.create_connection((parts.hostname or "", parts.port or 3128), timeout_s)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(sock.close)
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        status = _read_head(sock, parts.hostname or "").split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["200"]:
            raise ProxyRefused(f"proxy {parts.hostname} answered {status!r}")
        on_failure.pop_all()
    return sock


def _read_head(sock: socket.socket, proxy: str) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        byte = sock.recv(1)  # no more than the head: what follows is TLS's own
        if not byte or len(head) > _MAX_HEAD_BYTES:
            raise ProxyRefused(f"proxy {proxy} broke off")
        head += byte
    return head
