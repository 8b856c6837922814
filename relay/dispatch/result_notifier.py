"""Wakes the result streams: streams that wait for a task group are told when tasks of it have ended.

Nothing is kept for a slow reader: it is told that there is something, and reads the store from its own
cursor, a page at a time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable


class ResultNotifier:
    """Who waits for which task group (by the store's row)."""

    def __init__(self) -> None:
        self._waiting: defaultdict[int, set[asyncio.Event]] = defaultdict(set)

    def join(self, group_row: int) -> asyncio.Event:
        """Return an event that is set whenever tasks of the group end. The caller clears it before it reads."""
        event = asyncio.Event()
        self._waiting[group_row].add(event)
        return event

    def leave(self, group_row: int, event: asyncio.Event) -> None:
        """End a `join`."""
        self._waiting[group_row].discard(event)
        if not self._waiting[group_row]:
            del self._waiting[group_row]

    def rows(self) -> set[int]:
        """Return the groups that have a waiting stream."""
        return set(self._waiting)

    def wake(self, group_rows: Iterable[int]) -> None:
        """Wake the streams that wait for these groups."""
        for row in group_rows:
            for event in self._waiting.get(row, ()):
                event.set()
