"""Access tokens of the built-in accounts: made, hashed, and turned into the person they belong to.

A token is 256 random bits, so its SHA-256 can neither be guessed nor reversed and no slow hash is needed.
The look-up goes by hash: how long it takes says nothing about any stored token. Called by the HTTP API on
every request, so answers are kept for a moment; a revoked token works for `CACHE_S` at most.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from mep_wire.errors import TokenUnknown
from relay.store.base import Store
from relay.store.records import Caller, TokenRecord

PREFIX = "mep_"
"""Lets people and secret scanners tell the purpose of a token."""
REFRESH_PREFIX = "mepr_"
CLIENT = "client"
"""The kind of documents of clients."""
KNOWN_CLIENTS = frozenset({"mep-sdk", "mep-console"})
"""The clients that every relay has."""
CACHE_S = 1.0
CACHE_SIZE = 10_000
USED_S = 3600.0
"""Precision of the stored time at which a token was last used."""


def new_token(prefix: str = PREFIX) -> str:
    """Return a new access token, or another secret with a prefix of its own."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """Return the stored form of a token."""
    return hashlib.sha256(token.encode()).digest()


class TokenAuth:
    """Answers who a bearer token belongs to."""

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._store, self._clock, self._wall = store, clock, wall
        self._known: dict[str, tuple[float, Caller]] = {}

    def caller(self, authorization: str) -> Caller:
        """Return the person with this `Authorization` header. Raises TokenUnknown."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenUnknown
        now = self._clock()
        known = self._known.get(token)
        if known is not None and now - known[0] < CACHE_S:
            return known[1]
        record = self._store.token(token_hash(token))
        if record is None or 0 < record.expires_at <= self._wall() or self._of_deleted(record):
            self._known.pop(token, None)
            raise TokenUnknown
        self._note_use(record)
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        caller = record.caller
        self._known[token] = (now, caller)
        return caller

    def _of_deleted(self, record: TokenRecord) -> bool:
        """Return whether a token is of a service or gateway that was deleted. Those also speak for other people."""
        client = record.client_id
        return bool(client) and client not in KNOWN_CLIENTS and self._store.document(CLIENT, client) is None

    def _note_use(self, record: TokenRecord) -> None:
        """Once an hour, note that a token is used. Not waited for: it is worth no delay."""
        now = self._wall()
        if record.token_id and record.used_at < now - USED_S:
            self._store.submit(lambda tx: tx.use_token(record.token_id, now))
