"""Searches a directory that several servers offer: pooled connections, failover, TLS, timeouts. On ldap3.

Called by identity.ldap from several threads at once. A connection is used by one thread at a time. A server that
fails is tried last for a while. Every way in which ldap3 fails becomes DirectoryFailed here and goes no further.
"""

from __future__ import annotations

import contextlib
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.core.tls import Tls
from pyasn1.error import PyAsn1Error

FAILED_SERVER_S = 30.0
"""For how long a server that failed is tried after the others."""
MAX_IDLE_S = 60.0
"""A connection that was idle for longer is not used again: something on the way may have forgotten it."""
_SUCCESS, _SIZE_LIMIT_EXCEEDED = 0, 4
_FAILURES = (LDAPException, PyAsn1Error, OSError, ValueError, TypeError, LookupError, AttributeError, struct.error)
"""What ldap3 raises when a server is away, breaks off or talks nonsense."""


class DirectoryFailed(Exception):
    """No server gave an answer that can be used; the text has each one's reason."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server URI taken apart. `host` is a path for ldapi."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a directory and as whom."""

    servers: Sequence[Server]
    tls: ssl.SSLContext | None
    start_tls: bool
    bind_dn: str = ""
    password: str = field(default="", repr=False)
    sasl_external: bool = False
    connect_timeout_s: int = 3
    operation_timeout_s: int = 5
    max_connections: int = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry with the values of the one attribute asked for, as bytes."""

    dn: str
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A search. At most two entries come back: one is an answer, two are too many."""

    base: str
    scope: str
    filter: str
    attribute: str


class _Tls(Tls):  # type: ignore[misc]  # ldap3 has no type stubs
    """Wraps with a context made once, so that OpenSSL itself checks the name, and the CA is what was loaded."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(validate=context.verify_mode)
        self._context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=connection.server.host)


class Directory:
    """The servers of one mapping document."""

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._places = threading.BoundedSemaphore(access.max_connections)
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Any]] = []
        self._failed_at: dict[Server, float] = {}
        self._closed = False

    def search(self, query: Query) -> list[Entry]:
        """Return what `query` finds. Raises DirectoryFailed."""
        if not self._places.acquire(timeout=self._access.operation_timeout_s):
            raise DirectoryFailed(f"all {self._access.max_connections} connections are busy")
        try:
            return self._search(query)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            _hang_up(connection)

    def _search(self, query: Query) -> list[Entry]:
        reasons: list[str] = []
        for connection in self._connections(reasons):
            try:
                entries = _search_on(connection, query, self._access.operation_timeout_s)
            except _FAILURES as error:
                reasons.append(f"{connection.server.name}: {_plain(error)}")
                _hang_up(connection)
                continue
            self._put_back(connection)
            return entries
        raise DirectoryFailed("; ".join(reasons))

    def _connections(self, reasons: list[str]) -> Iterator[Any]:
        """Yield an idle connection, if there is one, then a new one from each server that can be reached."""
        if (idle := self._take_idle()) is not None:
            yield idle
        for server in self._servers_in_order():
            try:
                connection = self._connect(server)
            except _FAILURES as error:
                reasons.append(f"{server}: {_plain(error)}")
                self._note_failure(server)
                continue
            yield connection
            self._note_failure(server)

    def _take_idle(self) -> Any | None:
        oldest = self._clock() - MAX_IDLE_S
        with self._lock:
            usable = [(since, connection) for since, connection in self._idle if since > oldest]
            stale = [connection for since, connection in self._idle if since <= oldest]
            taken = usable.pop()[1] if usable else None
            self._idle = usable
        for connection in stale:
            _hang_up(connection)
        return taken

    def _put_back(self, connection: Any) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append((self._clock(), connection))
                return
        _hang_up(connection)

    def _note_failure(self, server: Server) -> None:
        with self._lock:
            self._failed_at[server] = self._clock()
            idle, self._idle = self._idle, []
        for _, connection in idle:
            _hang_up(connection)

    def _servers_in_order(self) -> list[Server]:
        since = self._clock() - FAILED_SERVER_S
        with self._lock:
            return sorted(self._access.servers, key=lambda server: self._failed_at.get(server, since) > since)

    def _connect(self, server: Server) -> Any:
        access = self._access
        connection = ldap3.Connection(
            _server(server, access),
            user=access.bind_dn or None,
            password=access.password or None,
            authentication=_authentication(access),
            sasl_mechanism=ldap3.EXTERNAL if access.sasl_external else None,
            sasl_credentials="" if access.sasl_external else None,
            client_strategy=ldap3.SYNC,
            receive_timeout=access.operation_timeout_s,
            auto_referrals=False,
            auto_escape=False,
            check_names=False,
            read_only=True,
        )
        try:
            connection.open(read_server_info=False)
            if access.start_tls and server.scheme == "ldap":
                connection.start_tls(read_server_info=False)
            if not connection.bind(read_server_info=False):
                raise LDAPException(f"bind refused: {connection.result['description']} {connection.result['message']}")
        except _FAILURES:
            _hang_up(connection)
            raise
        return connection


def _server(server: Server, access: Access) -> Any:
    return ldap3.Server(
        f"ldapi://{server.host}" if server.scheme == "ldapi" else server.host,
        port=server.port or None,
        use_ssl=server.scheme == "ldaps",
        tls=_Tls(access.tls) if access.tls and server.scheme != "ldapi" else None,
        connect_timeout=access.connect_timeout_s,
        get_info=ldap3.NONE,
    )


def _authentication(access: Access) -> Any:
    if access.sasl_external:
        return ldap3.SASL
    return ldap3.SIMPLE if access.bind_dn else ldap3.ANONYMOUS


def _search_on(connection: Any, query: Query, timeout_s: int) -> list[Entry]:
    scopes = {"base": ldap3.BASE, "one": ldap3.LEVEL, "sub": ldap3.SUBTREE}
    connection.search(
        query.base,
        query.filter,
        scopes[query.scope],
        attributes=[query.attribute],
        size_limit=2,
        time_limit=timeout_s,
    )
    code = connection.result["result"]
    if code not in (_SUCCESS, _SIZE_LIMIT_EXCEEDED):
        raise LDAPException(f"search answered {connection.result['description']} {connection.result['message']}")
    entries = [_entry(found, query.attribute) for found in connection.response if found["type"] == "searchResEntry"]
    if code == _SIZE_LIMIT_EXCEEDED and len(entries) < 2:
        raise LDAPException("search answered sizeLimitExceeded with fewer than two entries")
    return entries


def _entry(found: Any, attribute: str) -> Entry:
    values = [value for name, value in found["raw_attributes"].items() if name.lower() == attribute.lower()]
    return Entry(found["dn"], tuple(bytes(value) for value in values[0]) if values else ())


def _hang_up(connection: Any) -> None:
    with contextlib.suppress(*_FAILURES):
        connection.strategy.close()


def _plain(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
