"""How many bytes of requests the relay holds at once: of one person, and of all together.

A body is held from its first byte until its request is answered. Its declared size is reserved before anything of it
is read, so that many large ones at once wait at their senders and not in the relay's memory. No person may hold more
than is left for the others, and short bodies are never refused because of others' bodies. A few people who send
long bodies slowly can't keep others out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mep_wire.errors import RelayBusy
from mep_wire.limits import MAX_BODY_BYTES

MAX_OF_ONE = 4 * MAX_BODY_BYTES
MAX_OF_ALL = 16 * MAX_BODY_BYTES
SHORT = 64 * 1024
"""A body of so many bytes counts for its sender alone: connections are bounded elsewhere."""


class BodyBudget:
    """The bytes in flight, in the event loop's thread."""

    def __init__(self, of_one: int = MAX_OF_ONE, of_all: int = MAX_OF_ALL, short: int = SHORT) -> None:
        self._of_one, self._of_all, self._short = of_one, of_all, short
        self._held: dict[str, int] = {}
        self._total = 0

    @contextmanager
    def room(self, account_id: str, size: int | None) -> Iterator[None]:
        """Hold a body of `size` bytes, of the largest size if it is not declared. Raises RelayBusy."""
        needed = MAX_BODY_BYTES if size is None else size
        held = self._held.get(account_id, 0)
        if held + needed > self._of_one:
            raise RelayBusy(what="your")
        shared = needed if needed > self._short else 0
        if shared and held + needed > self._of_all - self._total:
            raise RelayBusy(what="everybody's")
        self._held[account_id] = held + needed
        self._total += shared
        try:
            yield
        finally:
            self._total -= shared
            self._held[account_id] -= needed
            if not self._held[account_id]:
                del self._held[account_id]
