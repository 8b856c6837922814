"""How many bytes of requests the relay holds at once: of one person, and of all together.

A body is held from its first byte until its request is answered. Its declared size is reserved before anything of it
is read, so that many large ones at once wait at their senders and not in the relay's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mep_wire.errors import RelayBusy
from mep_wire.limits import MAX_BODY_BYTES

MAX_OF_ONE = 4 * MAX_BODY_BYTES
MAX_OF_ALL = 16 * MAX_BODY_BYTES


class Bodies:
    """The bytes in flight, in the event loop's thread."""

    def __init__(self, of_one: int = MAX_OF_ONE, of_all: int = MAX_OF_ALL) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._held: dict[str, int] = {}
        self._total = 0

    @contextmanager
    def room(self, account_id: str, size: int | None) -> Iterator[None]:
        """Hold a body of `size` bytes, of the largest size if it is not declared. Raises RelayBusy."""
        needed = MAX_BODY_BYTES if size is None else size
        held = self._held.get(account_id, 0)
        if held + needed > self._of_one:
            raise RelayBusy(what="your")
        if self._total + needed > self._of_all:
            raise RelayBusy(what="everybody's")
        self._held[account_id] = held + needed
        self._total += needed
        try:
            yield
        finally:
            self._total -= needed
            self._held[account_id] -= needed
            if not self._held[account_id]:
                del self._held[account_id]
