"""Schedules re-checks: when the manager asks the relay for a new statement about the owner of a user endpoint.

Each user endpoint is due once per interval, at its own time. Few re-checks are in progress at once, and those due
together are sent at a fixed rate. A thousand of them neither cause a burst nor delay a start. The caller has the clock.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

PACE_S = 0.02
"""Pause between two re-checks."""
MAX_UNDER_WAY = 4
"""Re-checks in progress, from relay to monitor; well below the limit of concurrent callouts and directory look-ups."""
ANSWER_S = 90.0
"""After this time, no answer will come: a request is valid for less."""
SOON_S = 20.0
"""Delay before asking again after an answer of "unknown"."""


class RecheckSchedule:
    """The running user endpoints, and when each is due."""

    def __init__(self, interval_s: float, draw: Callable[[], float] = random.random) -> None:
        self._interval_s, self._draw = interval_s, draw
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._asked: dict[str, float] = {}
        self._next = 0.0

    def add(self, uep_id: str, now: float) -> None:
        """Add a running user endpoint, verified just now or a while ago."""
        if self._interval_s and uep_id not in self._due:
            self._put(uep_id, now + self._interval_s * (0.5 + 0.5 * self._draw()))

    def remove(self, uep_id: str) -> None:
        """Remove a user endpoint that has ended."""
        self._due.pop(uep_id, None)
        self._asked.pop(uep_id, None)

    def all_now(self, now: float) -> None:
        """Make every user endpoint due now."""
        self._asked.clear()
        for uep_id in list(self._due):
            self._put(uep_id, now)

    def answered(self, uep_id: str, now: float, *, said: bool) -> None:
        """Take an answer. `said` is false if the mapping could not be determined."""
        if self._asked.pop(uep_id, None) is not None and not said and uep_id in self._due:
            self._put(uep_id, min(self._due[uep_id], now + SOON_S * (0.5 + 0.5 * self._draw())))

    def link_lost(self) -> None:
        """Re-queue the re-checks in progress, because they won't be answered."""
        for uep_id in self._asked:
            self._put(uep_id, self._asked[uep_id])
        self._asked.clear()

    def take(self, now: float) -> list[str]:
        """Return the user endpoints to ask about now. Each is due again an interval later."""
        self._forget_unanswered(now)
        taken: list[str] = []
        while len(self._asked) < MAX_UNDER_WAY and self.next_at() <= now:
            _, uep_id = heapq.heappop(self._heap)
            self._asked[uep_id] = now
            self._put(uep_id, now + self._interval_s * (0.9 + 0.2 * self._draw()))
            self._next = now + PACE_S
            taken.append(uep_id)
        return taken

    def next_at(self) -> float:
        """Return the time of the next action; infinity if there is none."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if len(self._asked) >= MAX_UNDER_WAY:
            return min(self._asked.values()) + ANSWER_S
        return max(self._heap[0][0], self._next) if self._heap else float("inf")

    def _forget_unanswered(self, now: float) -> None:
        for uep_id in [one for one, at in self._asked.items() if at + ANSWER_S <= now]:
            del self._asked[uep_id]

    def _put(self, uep_id: str, at: float) -> None:
        self._due[uep_id] = at
        heapq.heappush(self._heap, (at, uep_id))
