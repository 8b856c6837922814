"""The pauses between attempts to reach the relay. Pure, and standard library only, since the SDK's wheel carries it."""

from __future__ import annotations

import random
from collections.abc import Callable

SOON_S = 2.0
"""Longest pause of the first minutes: a relay that returns has its peers back in this time."""
LONGEST_S = 30.0
OUTAGE_SHARE = 0.01
"""A pause beyond SOON_S is at most this share of the time already waited: 3 s after 5 minutes."""
_LEAST = 0.1
"""The shortest pause, as a share of the longest. The rest is random, so that peers that lost a relay at the same
instant come back one by one: 1,000 of them spread over SOON_S."""


class Backoff:
    """One sequence of pauses: doubling from `first_s` to SOON_S, with jitter, and longer in a long outage.

    An attempt that the relay doesn't answer costs it nothing, or one handshake. The pauses may therefore be short. A
    `patient` pause follows an answer: the relay has refused. It doubles up to `longest_s`. Times in seconds.
    """

    def __init__(
        self, first_s: float = 1.0, longest_s: float = LONGEST_S, draw: Callable[[], float] = random.random
    ) -> None:
        self._first_s, self._longest_s, self._draw = first_s, longest_s, draw
        self.attempts = 0
        """Failures since the last success."""
        self._waited_s = 0.0

    def longest_pause_s(self, *, patient: bool = False) -> float:
        """Return what the next pause is at most."""
        doubled = self._first_s * 2.0 ** min(self.attempts, 30)
        if not patient:
            doubled = min(doubled, max(SOON_S, self._waited_s * OUTAGE_SHARE))
        return min(self._longest_s, doubled)

    def next_pause_s(self, at_least_s: float = 0.0, *, patient: bool = False) -> float:
        """Return how long to wait before the next attempt."""
        longest = self.longest_pause_s(patient=patient)
        pause = max(at_least_s, longest * (_LEAST + (1.0 - _LEAST) * self._draw()))
        self.attempts += 1
        self._waited_s += pause
        return pause

    def reset(self) -> None:
        """Start over: an attempt has succeeded."""
        self.attempts, self._waited_s = 0, 0.0
