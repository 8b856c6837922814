"""A socket that gives up in time: ldap3 knows only a limit for each read, which a server that drips never reaches.

Every operation on a directory (connecting with TLS, binding, searching) runs under a Limit: until when all of it must
be over, and how much may be received. Used by identity.ldap.directory alone.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

from ldap3.core.tls import Tls

MAX_REPLY_BYTES = 256 * 1024
"""Most bytes that one operation may receive; a useful answer has a few hundred."""


class Limit:
    """The limits of the operation under way on one connection."""

    def __init__(self) -> None:
        self._until = 0.0
        self._bytes_left = 0

    def renew(self, until: float) -> None:
        """Begin an operation that must be over at `until` (time.monotonic)."""
        self._until = until
        self._bytes_left = MAX_REPLY_BYTES

    def left_s(self) -> float:
        """Return the seconds that are left. Raises TimeoutError once the deadline has passed."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer came in time")
        return left

    def received(self, count: int) -> None:
        """Count bytes. Raises OSError where they are too many."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise OSError(f"the answer has more than {MAX_REPLY_BYTES} bytes")


class LimitedSocket:
    """A connected socket under a Limit."""

    def __init__(self, inner: Any, limit: Limit) -> None:
        self.inner, self._limit = inner, limit

    def recv(self, size: int) -> bytes:
        """Return the received bytes, at most `size`. Raises OSError, TimeoutError among them."""
        self.inner.settimeout(self._limit.left_s())
        data = bytes(self.inner.recv(size))
        self._limit.received(len(data))
        return data

    def sendall(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError, TimeoutError among them."""
        self.inner.settimeout(self._limit.left_s())
        self.inner.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class LimitedTls(Tls):  # type: ignore[misc]  # ldap3 has no type stubs
    """Wraps with a context made once, so that OpenSSL itself checks the name, and the CA is the loaded one."""

    def __init__(self, context: ssl.SSLContext, limit: Limit) -> None:
        super().__init__(validate=context.verify_mode)
        self._context, self._limit = context, limit

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Turn `connection`'s socket into TLS. Raises OSError (ssl.SSLError among them)."""
        plain = connection.socket.inner if isinstance(connection.socket, LimitedSocket) else connection.socket
        plain.settimeout(self._limit.left_s())  # for the whole handshake, as the ssl module has it
        wrapped = self._context.wrap_socket(plain, server_hostname=connection.server.host)
        connection.socket = LimitedSocket(wrapped, self._limit)


def limit_connection(connection: Any, limit: Limit) -> None:
    """Have an ldap3 connection that is not open yet keep to `limit`, whichever of its server's addresses it tries."""
    open_socket = connection.strategy._open_socket  # noqa: SLF001  # ldap3 has no other seam here

    def open_in_time(address: Any, use_ssl: bool = False, unix_socket: bool = False) -> None:
        connection.server.connect_timeout = limit.left_s()
        open_socket(address, use_ssl, unix_socket)
        if not isinstance(connection.socket, LimitedSocket):
            connection.socket = LimitedSocket(connection.socket, limit)

    connection.strategy._open_socket = open_in_time  # noqa: SLF001
