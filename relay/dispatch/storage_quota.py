"""Limits one person's stored data: the bytes of waiting tasks' arguments, of kept results, and of functions.

A function, a chunk and each use of a piece of data count some bytes beyond their own, so that small ones are bounded.

The store counts by task group and function; here the sum is remembered for a moment, so that a submission costs no sum
over thousands of them. Called by the API for each submission, and for each new function.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mep_wire.errors import StorageFull
from relay.store.base import Store

REFRESH_S = 5.0
_MB = 1_000_000
_MOST_REMEMBERED = 10_000


class Quota:
    """Allows each account `most` bytes, 0 for any number."""

    def __init__(self, store: Store, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._most, self._clock = store, most, clock
        self._known: dict[str, tuple[int, float]] = {}

    def check(self, account_id: str, more: int) -> None:
        """Raises StorageFull where `more` bytes would be too many for this person."""
        if not self._most:
            return
        now = self._clock()
        size, at = self._known.get(account_id, (0, float("-inf")))
        if now - at > REFRESH_S or size + more > self._most:
            if len(self._known) > _MOST_REMEMBERED:
                self._known.clear()
            size, at = self._store.stored_bytes(account_id), now
            self._known[account_id] = size, at
        if size + more > self._most:
            raise StorageFull(size=_in_mb(size), limit=_in_mb(self._most))

    def added(self, account_id: str, more: int) -> None:
        """So many bytes were stored for this person."""
        if account_id in self._known:
            size, at = self._known[account_id]
            self._known[account_id] = size + more, at


def _in_mb(size: int) -> str:
    return f"{size / _MB:,.1f}"
