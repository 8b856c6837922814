"""When the manager has the relay say anew who the person of a running user endpoint is. The clock is the caller's.

Each user endpoint falls due once an interval, at a time of its own. Few are under way at once, and those that fall due
together go at a fixed pace, so that a thousand neither burst nor keep somebody's start waiting behind them.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

PACE_S = 0.02
"""Between two that are asked for."""
MAX_UNDER_WAY = 4
"""Asked of the relay and not answered by the monitor: well below what a callout or directory may have at once."""
ANSWER_S = 90.0
"""After this, no answer will come: a request is good for less."""
SOON_S = 20.0
"""When to ask again where nothing could be said."""


class Rechecks:
    """The user endpoints that run, and when each is due."""

    def __init__(self, interval_s: float, draw: Callable[[], float] = random.random) -> None:
        self._interval_s, self._draw = interval_s, draw
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._asked: dict[str, float] = {}
        self._next = 0.0

    def add(self, uep_id: str, now: float) -> None:
        """It runs, and was verified just now or a while ago."""
        if self._interval_s and uep_id not in self._due:
            self._put(uep_id, now + self._interval_s * (0.5 + 0.5 * self._draw()))

    def remove(self, uep_id: str) -> None:
        """It has ended."""
        self._due.pop(uep_id, None)
        self._asked.pop(uep_id, None)

    def all_now(self, now: float) -> None:
        """Everything is due."""
        self._asked.clear()
        for uep_id in list(self._due):
            self._put(uep_id, now)

    def answered(self, uep_id: str, now: float, *, said: bool) -> None:
        """An answer has come; `said` is false where nothing could be said."""
        if self._asked.pop(uep_id, None) is not None and not said and uep_id in self._due:
            self._put(uep_id, min(self._due[uep_id], now + SOON_S * (0.5 + 0.5 * self._draw())))

    def link_lost(self) -> None:
        """What was asked will not be answered."""
        for uep_id in self._asked:
            self._put(uep_id, self._asked[uep_id])
        self._asked.clear()

    def take(self, now: float) -> list[str]:
        """Return those to ask for now; each is due again an interval later."""
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
        """Return when something is to be done, for ever away where nothing is."""
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
