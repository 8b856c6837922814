"""When held tasks expire, and which of those that are being ended have expired rather than been cancelled.

The relay ends them as well, by its own clock; here a running one is ended also while the link is down. The clock is
the caller's. Called by the user endpoint.
"""

from __future__ import annotations

import heapq
import time
from typing import Final

from mep_wire.errors import TaskCancelled, TaskExpired
from mep_wire.messages import ResultItem

_SLACK: Final = 1024
"""So many ended tasks are remembered, beyond as many as are held."""


class RunningDeadlines:
    """By row, in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._at: dict[int, float] = {}  # of those that have not ended
        self._expired: set[int] = set()

    def add(self, row: int, at: float) -> None:
        """This task expires then."""
        self._at[row] = at
        heapq.heappush(self._heap, (at, row))
        if len(self._heap) > 2 * len(self._at) + _SLACK:  # most have ended long before their time
            self._heap = [(at, row) for row, at in self._at.items()]
            heapq.heapify(self._heap)

    def forget(self, row: int) -> None:
        """This task is no longer held."""
        self._at.pop(row, None)

    def next(self) -> float | None:
        """Return when `due` has something, or None."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[int]:
        """Return each expired row once. Some of these tasks may already have ended."""
        rows: list[int] = []
        while self._heap and self._heap[0][0] <= now:
            row = heapq.heappop(self._heap)[1]
            self._at.pop(row, None)
            rows.append(row)
        return rows

    def expire(self, row: int) -> None:
        """This task is being ended because its time is up."""
        self._expired.add(row)

    def settled(self, item: ResultItem) -> ResultItem:
        """Return how a task ended, EXPIRED where it was ended here. It is forgotten."""
        self.forget(item.row)
        if item.row not in self._expired:
            return item
        self._expired.discard(item.row)
        if item.code != TaskCancelled.code:  # its end overtook ours
            return item
        return ResultItem(item.row, item.task_id, TaskExpired.code, TaskExpired().text, b"", 0.0, time.time())
