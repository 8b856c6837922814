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
from relay.store.base import AccountReads
from relay.store.records import Caller

PREFIX = "mep_"
"""Lets people and secret scanners tell the purpose of a token."""
CACHE_S = 1.0
CACHE_SIZE = 10_000


def new_token() -> str:
    """Return a new access token."""
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """Return the stored form of a token."""
    return hashlib.sha256(token.encode()).digest()


class TokenAuth:
    """Answers who a bearer token belongs to."""

    def __init__(self, store: AccountReads, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
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
        caller = self._store.caller(token_hash(token))
        if caller is None:
            self._known.pop(token, None)
            raise TokenUnknown
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        self._known[token] = (now, caller)
        return caller
