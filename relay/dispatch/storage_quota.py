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
        if self.has_room(account_id, more):
            return
        size = self._size(account_id, float("inf"))
        if size + more > self._most:
            raise StorageFull(size=_in_mb(size), limit=_in_mb(self._most))

    def has_room(self, account_id: str, more: int) -> bool:
        """Return the same for one of many who wait for room: the store is asked for all of a person's at once."""
        return not self._most or self._size(account_id, self._clock() - REFRESH_S) + more <= self._most

    def _size(self, account_id: str, since: float) -> int:
        """Return a person's bytes, as they were then or later; for infinity, as they are."""
        size, at = self._known.get(account_id, (0, float("-inf")))
        if at < since:
            if len(self._known) > _MOST_REMEMBERED:
                self._known.clear()
            size = self._store.stored_bytes(account_id)
            self._known[account_id] = size, self._clock()
        return size

    def added(self, account_id: str, more: int) -> None:
        """So many bytes were stored for this person."""
        if account_id in self._known:
            size, at = self._known[account_id]
            self._known[account_id] = size + more, at


def _in_mb(size: int) -> str:
    return f"{size / _MB:,.1f}"
