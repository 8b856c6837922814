"""Whether the store can commit, for GET /readyz. Anybody may ask, so that questions share an answer."""

from __future__ import annotations

import asyncio
import time

from mep_wire.errors import RelayUnavailable
from relay.dispatch.live_state import durable
from relay.store.base import Store, Tx

COMMIT_S = 5.0
"""How long a commit may take in a relay that is ready."""
FRESH_S = 1.0
"""How long an answer is given again, so that questions cost one commit a second at most."""


class Readiness:
    """Whether the store can commit, asked of it now and then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    async def check(self) -> None:
        """Raises RelayUnavailable where a commit fails, or takes too long."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at > FRESH_S):
            self._asked_at = now
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        try:
            await asyncio.wait_for(durable(self._store.submit(_nothing)), COMMIT_S)
        except TimeoutError as error:
            raise RelayUnavailable(reason=f"its store has not committed for {COMMIT_S:g} s") from error


def _nothing(_: Tx) -> None:
    """Change nothing: the database's lock is taken all the same."""
