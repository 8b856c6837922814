"""Proxies for tests, each in its own threads: HTTP and HTTPS ones with CONNECT, and SOCKS4(a) and SOCKS5 ones.

`hosts` are names that only the proxy knows, with the addresses behind them. The proxy's record is in its attributes.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from typing import Self

Address = tuple[str, int]
_IDLE_S = 30.0


class Proxy:
    """Listens on 127.0.0.1 and passes bytes on once `accept` has said where to."""

    def __init__(self, hosts: dict[str, int], credentials: tuple[str, str] | None = None) -> None:
        self.hosts, self.credentials = hosts, credentials
        self.first_bytes: list[bytes] = []
        """The first byte of each connection, as it was on the wire."""
        self.targets: list[str] = []
        """The hosts that were asked for."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        connection.settimeout(_IDLE_S)
        with contextlib.suppress(OSError), contextlib.ExitStack() as ending:
            ending.callback(connection.close)
            self.first_bytes.append(connection.recv(1, socket.MSG_PEEK))
            client = self.wrap(connection)
            ending.callback(client.close)
            target = self.accept(client)
            if target is not None:
                server = ending.enter_context(socket.create_connection(target, _IDLE_S))
                self._pass_on(client, server)

    def wrap(self, connection: socket.socket) -> socket.socket:
        """Return the connection as it is read."""
        return connection

    def accept(self, client: socket.socket) -> Address | None:
        """Read the request and answer it; return where to connect to."""
        raise AssertionError("a subclass does this")

    def address_of(self, host: str, port: int) -> Address:
        """Return the address behind a name."""
        self.targets.append(host)
        return ("127.0.0.1", self.hosts.get(host, port))

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while True:
            ready = [each for each in other if isinstance(each, ssl.SSLSocket) and each.pending()]
            for each in ready or select.select(list(other), [], [], _IDLE_S)[0]:
                data = each.recv(65536)
                if not data:
                    return
                other[each].sendall(data)


class HttpProxy(Proxy):
    """Answers CONNECT; with `tls` the way to the proxy itself is encrypted."""

    def __init__(
        self, hosts: dict[str, int], credentials: tuple[str, str] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(hosts, credentials)
        self._tls = tls
        self.heads: list[bytes] = []

    def wrap(self, connection: socket.socket) -> socket.socket:
        return connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True)

    def accept(self, client: socket.socket) -> Address | None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        self.heads.append(head)
        method, target, _ = head.split(b" ", 2)
        if method != b"CONNECT":
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return None
        host, _, port = target.decode().rpartition(":")
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return self.address_of(host.strip("[]"), int(port))


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


class SocksProxy(Proxy):
    """Speaks SOCKS5 (RFC 1928, with names and passwords of RFC 1929) and SOCKS4(a)."""

    def accept(self, client: socket.socket) -> Address | None:
        version = _exactly(client, 1)
        return self._accept_4(client) if version == b"\x04" else self._accept_5(client)

    def _accept_4(self, client: socket.socket) -> Address:
        _, port, address = struct.unpack("!BH4s", _exactly(client, 7))
        _until_zero(client)
        host = socket.inet_ntoa(address)
        if host.startswith("0.0.0."):
            host = _until_zero(client)
        client.sendall(b"\x00\x5a" + bytes(6))
        return self.address_of(host, port)

    def _accept_5(self, client: socket.socket) -> Address | None:
        methods = _exactly(client, _exactly(client, 1)[0])
        method = 2 if self.credentials else 0
        if method not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes([5, method]))
        if self.credentials and not self._authenticated(client):
            return None
        by_name = _exactly(client, 4)[3] == 3
        data = _exactly(client, _exactly(client, 1)[0] if by_name else 4)
        host = data.decode() if by_name else socket.inet_ntoa(data)
        (port,) = struct.unpack("!H", _exactly(client, 2))
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        return self.address_of(host, port)

    def _authenticated(self, client: socket.socket) -> bool:
        _exactly(client, 1)
        given = tuple(_exactly(client, _exactly(client, 1)[0]).decode() for _ in range(2))
        client.sendall(b"\x01\x00" if given == self.credentials else b"\x01\x01")
        return given == self.credentials


def _until_zero(client: socket.socket) -> str:
    found = b""
    while (byte := _exactly(client, 1)) != b"\0":
        found += byte
    return found.decode()
