"""The delay before the next attempt: doubling, with jitter, up to a limit. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_S, LIMIT_S = 0.5, 30.0


class Backoff:
    """One sequence of delays. Half of each is random, so that a restarted relay isn't met by all endpoints at once."""

    def __init__(
        self, first_s: float = FIRST_S, limit_s: float = LIMIT_S, draw: Callable[[], float] = random.random
    ) -> None:
        self._first_s, self._limit_s, self._draw = first_s, limit_s, draw
        self._next_s = first_s

    def next_s(self) -> float:
        """Return the next wait in seconds."""
        base = self._next_s
        self._next_s = min(self._limit_s, base * 2)
        return base * (0.5 + 0.5 * self._draw())

    def reset(self) -> None:
        """Start over after a successful attempt."""
        self._next_s = self._first_s
