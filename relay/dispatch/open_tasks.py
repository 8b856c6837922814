"""How many unfinished tasks a person has, in all and at each endpoint, without a sum over them at each submission.

The store counts a person's tasks when they first submit; from then on changes are followed. Some ends are not seen
here (of a user endpoint that is not in memory), so the store counts again before anybody is refused. Called in the
event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mep_wire.errors import TooManyTasks
from relay.store.base import Store

RECOUNT_S = 5.0
"""How old a count is at least before the store counts again: that takes 0.1 s for a million tasks."""
MAX_REMEMBERED = 20_000
_ALL = ""


class OpenTasks:
    """The counts of everybody who has submitted since the relay started. An empty endpoint id stands for all."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._counts: dict[tuple[str, str], tuple[int, float]] = {}

    def check(self, account_id: str, endpoint_id: str, more: int, most: int) -> None:
        """Raises TooManyTasks where `more` would be over `most`; an empty `endpoint_id` stands for all endpoints."""
        key, now = (account_id, endpoint_id), self._clock()
        count, at = self._counts.get(key, (0, float("-inf")))
        if at == float("-inf") or (count + more > most and now - at > RECOUNT_S):
            if len(self._counts) >= MAX_REMEMBERED:
                self._counts.clear()
            count = self._store.open_tasks(account_id, endpoint_id)
            self._counts[key] = count, now
        if count + more > most:
            raise TooManyTasks(count=count, limit=most)

    def changed(self, account_id: str, endpoint_id: str, more: int) -> None:
        """So many tasks were added; a negative number: ended."""
        for key in ((account_id, _ALL), (account_id, endpoint_id)):
            if key in self._counts:
                count, at = self._counts[key]
                self._counts[key] = count + more, at
