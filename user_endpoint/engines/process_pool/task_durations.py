"""Measures how long tasks of a function take, to decide whether to queue several at one worker.

Holds no clock and no socket. Called by the process engine.
"""

from __future__ import annotations

from typing import Final

SHORT_S: Final = 0.010
"""A function is short if its tasks take less than this on average: its tasks may wait behind each other."""
DEPTH: Final = 16
"""Most short tasks at one worker, the running one included."""
DEEP: Final = 64
"""The same where they take less than VERY_SHORT_S."""
VERY_SHORT_S: Final = 0.001
FED: Final = 24
"""A worker with more tasks than this is not without work for a millisecond."""
_WEIGHT: Final = 0.2
_MAX_FUNCTIONS: Final = 1024
_LOOK_AHEAD_S: Final = 0.05


class TaskDurations:
    """Moving averages of run time, by function and over all, in seconds."""

    def __init__(self) -> None:
        self._by_function: dict[str, float] = {}
        self._overall = 1.0

    def measured(self, function_id: str, seconds: float) -> None:
        """A task of this function ran for `seconds`."""
        seconds = max(0.0, seconds)
        before = self._by_function.get(function_id)
        if before is None:
            if len(self._by_function) >= _MAX_FUNCTIONS:
                del self._by_function[next(iter(self._by_function))]
            before = seconds
        self._by_function[function_id] = before + _WEIGHT * (seconds - before)
        self._overall += _WEIGHT * (seconds - self._overall)

    def is_short(self, function_id: str) -> bool:
        """Whether tasks of this function were measured, and short."""
        return self._by_function.get(function_id, SHORT_S) < SHORT_S

    def depth(self, function_id: str) -> int:
        """Return how many tasks a worker may have for another of this function to be sent to it: 0 if not short."""
        average = self._by_function.get(function_id, SHORT_S)
        return DEEP if average < VERY_SHORT_S else DEPTH if average < SHORT_S else 0

    def look_ahead(self, workers: int, most: int) -> int:
        """Return how many waiting tasks keep `workers` busy for about 50 ms: at least 2 each, at most `most` each."""
        each = int(_LOOK_AHEAD_S / max(self._overall, 1e-6))
        return workers * max(2, min(each, most))
