"""Searches a directory that several servers offer: pooled connections, failover, TLS, deadlines. On ldap3.

Called by identity.ldap.mapper from several threads at once: each has a Visit, which is one person's and has one
deadline for everything. A connection is used by one thread at a time. A server that fails is tried last for a while.
References to other servers are not followed. Every way in which ldap3 fails becomes DirectoryFailed here and goes no
further. (Only the host's own resolver of names is not under the deadline: see resolv.conf(5) for its timeout.)
"""

from __future__ import annotations

import contextlib
import math
import re
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPException
from pyasn1.error import PyAsn1Error

from identity.base import LookupOptions
from identity.concurrency_limits import ConcurrencyLimit
from identity.ldap.deadline_socket import Limit, LimitedTls, limit_connection

FAILED_SERVER_S = 30.0
"""For how long a server that failed is tried after the others."""
MAX_IDLE_S = 60.0
"""A connection that was idle for longer is not used again: something on the way may have forgotten it."""
_SUCCESS, _SIZE_LIMIT_EXCEEDED = 0, 4
NO_ATTRIBUTES = str(ldap3.NO_ATTRIBUTES)
"""In a Query: the entry alone is asked for."""
_FAILURES = (
    *(LDAPException, PyAsn1Error, OSError, ValueError, TypeError, LookupError, AttributeError, struct.error),
    *(RecursionError, ArithmeticError),
)
"""The errors of ldap3 when a server is away, disconnects or sends invalid answers."""


class DirectoryFailed(Exception):
    """No server gave an answer that can be used; the text has each one's reason."""


@dataclass(frozen=True, slots=True)
class DirectoryServer:
    """One server URI taken apart. `host` is a path for ldapi."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a directory, and the account to bind as."""

    servers: Sequence[DirectoryServer]
    tls: ssl.SSLContext | None
    start_tls: bool
    bind_dn: str = ""
    password: str = field(default="", repr=False)
    sasl_external: bool = False
    connect_timeout_s: int = 3
    operation_timeout_s: int = 5
    person_timeout_s: float = 15.0
    """For all that is asked about one person, on all servers."""
    ignore_references: bool = False
    """A search that finds nothing but references to other servers has found nothing."""


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


class Referred(DirectoryFailed):
    """The directory holds only a part of the searched tree, and no entry was found in that part."""


class Directory:
    """The servers of one mapping document."""

    def __init__(self, access: Access, limit: ConcurrencyLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[tuple[float, _Line]] = []
        self._failed_at: dict[DirectoryServer, float] = {}
        self._closed = False

    @contextlib.contextmanager
    def visit(self, how: LookupOptions) -> Iterator[Visit]:
        """Hold a permit to ask about one person. Raises SourceBusy."""
        with self._limit.hold(self._access.operation_timeout_s, how):
            yield Visit(self, self._access.person_timeout_s)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, line in idle:
            _hang_up(line)

    def search(self, query: Query, until: float) -> list[Entry]:
        """Return the entries that `query` finds before `until` (time.monotonic). Raises DirectoryFailed."""
        reasons: list[str] = []
        for line in self._lines(reasons, until):
            line.limit.renew(min(until, time.monotonic() + self._access.operation_timeout_s))
            try:
                entries = _search_on(line, query, self._access)
            except Referred:
                self._put_back(line)
                raise
            except _FAILURES as error:
                reasons.append(f"{line.connection.server.name}: {_plain(error)}")
                _hang_up(line)
                continue
            self._put_back(line)
            return entries
        raise DirectoryFailed("; ".join(reasons))

    def _lines(self, reasons: list[str], until: float) -> Iterator[_Line]:
        """Yield an idle connection, if there is one, then a new one from each server that can be reached in time."""
        if (idle := self._take_idle()) is not None:
            yield idle
        for server in self._servers_in_order():
            if time.monotonic() >= until:
                reasons.append(f"no answer within {self._access.person_timeout_s:g} s")
                return
            try:
                line = self._connect(server, until)
            except _FAILURES as error:
                reasons.append(f"{server}: {_plain(error)}")
                self._note_failure(server)
                continue
            yield line
            self._note_failure(server)

    def _take_idle(self) -> _Line | None:
        oldest = self._clock() - MAX_IDLE_S
        with self._lock:
            usable = [(since, line) for since, line in self._idle if since > oldest]
            stale = [line for since, line in self._idle if since <= oldest]
            taken = usable.pop()[1] if usable else None
            self._idle = usable
        for line in stale:
            _hang_up(line)
        return taken

    def _put_back(self, line: _Line) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append((self._clock(), line))
                return
        _hang_up(line)

    def _note_failure(self, server: DirectoryServer) -> None:
        with self._lock:
            self._failed_at[server] = self._clock()
            idle, self._idle = self._idle, []
        for _, line in idle:
            _hang_up(line)

    def _servers_in_order(self) -> list[DirectoryServer]:
        since = self._clock() - FAILED_SERVER_S
        with self._lock:
            return sorted(self._access.servers, key=lambda server: self._failed_at.get(server, since) > since)

    def _connect(self, server: DirectoryServer, until: float) -> _Line:
        access, limit = self._access, Limit()
        connection = ldap3.Connection(
            _server(server, access, limit),
            user=access.bind_dn or None,
            password=access.password or None,
            authentication=_authentication(access),
            sasl_mechanism=ldap3.EXTERNAL if access.sasl_external else None,
            sasl_credentials="" if access.sasl_external else None,
            client_strategy=ldap3.SYNC,
            auto_referrals=False,
            auto_escape=False,
            check_names=False,
            read_only=True,
        )
        line = _Line(connection, limit)
        limit_connection(connection, limit)
        try:
            limit.renew(min(until, time.monotonic() + access.connect_timeout_s))
            connection.open(read_server_info=False)
            if access.start_tls and server.scheme == "ldap" and not connection.start_tls(read_server_info=False):
                raise LDAPException("StartTLS was not begun")
            limit.renew(min(until, time.monotonic() + access.operation_timeout_s))
            if not connection.bind(read_server_info=False):
                raise LDAPException(f"bind refused: {connection.result['description']} {connection.result['message']}")
        except _FAILURES:
            _hang_up(line)
            raise
        return line


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection of ldap3 with the limit of its operations."""

    connection: Any
    limit: Limit


class Visit:
    """All that is asked about one person."""

    def __init__(self, directory: Directory, timeout_s: float) -> None:
        self._directory = directory
        self._until = time.monotonic() + timeout_s

    def search(self, query: Query) -> list[Entry]:
        """Return the entries that `query` finds. Raises DirectoryFailed."""
        return self._directory.search(query, self._until)


def _server(server: DirectoryServer, access: Access, limit: Limit) -> Any:
    return ldap3.Server(
        f"ldapi://{server.host}" if server.scheme == "ldapi" else server.host,
        port=server.port or None,
        use_ssl=server.scheme == "ldaps",
        tls=LimitedTls(access.tls, limit) if access.tls and server.scheme != "ldapi" else None,
        get_info=ldap3.NONE,
    )


def _authentication(access: Access) -> Any:
    if access.sasl_external:
        return ldap3.SASL
    return ldap3.SIMPLE if access.bind_dn else ldap3.ANONYMOUS


def _search_on(line: _Line, query: Query, access: Access) -> list[Entry]:
    connection = line.connection
    scopes = {"base": ldap3.BASE, "one": ldap3.LEVEL, "sub": ldap3.SUBTREE}
    connection.search(
        query.base,
        query.filter,
        scopes[query.scope],
        attributes=[query.attribute],
        size_limit=2,
        time_limit=max(1, math.ceil(line.limit.left_s())),
    )
    code = connection.result["result"]
    if code not in (_SUCCESS, _SIZE_LIMIT_EXCEEDED):
        raise LDAPException(f"search answered {connection.result['description']} {connection.result['message']}")
    entries = [_entry(found, query.attribute) for found in connection.response if found["type"] == "searchResEntry"]
    if code == _SIZE_LIMIT_EXCEEDED and len(entries) < 2:
        raise LDAPException("search answered sizeLimitExceeded with fewer than two entries")
    references = [uri for found in connection.response if found["type"] == "searchResRef" for uri in found["uri"]]
    if references and not entries and not access.ignore_references:
        raise Referred(
            f"search found nothing but references to other servers ({' '.join(references)[:200]}), which are not "
            "followed: choose a base that this directory holds, or set references to ignore"
        )
    return entries


def _entry(found: Any, attribute: str) -> Entry:
    values = [value for name, value in found["raw_attributes"].items() if name.lower() == attribute.lower()]
    return Entry(found["dn"], tuple(bytes(value) for value in values[0]) if values else ())


def _hang_up(line: _Line) -> None:
    with contextlib.suppress(*_FAILURES):
        line.connection.strategy.close()


_REMEDIES = (
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: (.*?) \(_ssl"),
        "its certificate is not accepted ({}): name the authority's certificate in ca_file",
    ),
    (
        re.compile(r"(WRONG_VERSION_NUMBER|UNEXPECTED_EOF_WHILE_READING|RECORD_LAYER_FAILURE)"),
        "it does not speak TLS on this port ({}): use ldap:// with start_tls, or the port of ldaps",
    ),
)
"""What ldap3 says of a failed handshake, and what an administrator can do about it."""


def _plain(error: Exception) -> str:
    """Return the reason in one line. ldap3 nests tuples of exceptions; their texts are joined."""
    text = " ".join(f"{type(error).__name__}: {': '.join(dict.fromkeys(_texts(error)))}".split())
    for said, remedy in _REMEDIES:
        if found := said.search(text):
            return remedy.format(found[1])
    return text[:500]


def _texts(value: object) -> Iterator[str]:
    """Yield the texts within an exception, and within its arguments."""
    if isinstance(value, BaseException):
        yield from (text for part in value.args for text in _texts(part))
    elif isinstance(value, list | tuple) and not _is_address(value):
        yield from (text for part in value for text in _texts(part))
    else:
        yield ":".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _is_address(value: list[object] | tuple[object, ...]) -> bool:
    """Return whether `value` is a socket's address, as ldap3 puts it into its errors."""
    return len(value) in (2, 4) and isinstance(value[0], str) and isinstance(value[1], int)
