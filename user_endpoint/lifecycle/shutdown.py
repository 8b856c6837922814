"""How a user endpoint ends: running tasks may finish within a grace, then their results have a moment to leave.

The keeper kills the remaining processes some seconds after its SIGTERM; the defaults stay below that. Holds times only;
the clock is the caller's.
"""

from __future__ import annotations

from typing import Final

from mep_wire.errors import UserEndpointLost

RUN_GRACE_S: Final = 5.0
"""For running tasks to finish."""
KILL_S: Final = 1.0
"""For the engine to end its workers."""
FLUSH_S: Final = 2.0
"""For the relay to confirm the last results; unconfirmed ones are on the disk for the next process."""


class Stopping:
    """Why this user endpoint ends, and until when each part of the end may take."""

    def __init__(self, code: str, text: str, now: float, grace_s: float | None = None) -> None:
        self.code, self.text = code, text
        self.run_until = now + (RUN_GRACE_S if grace_s is None else grace_s)
        self.kill_s = KILL_S
        self.engine_stopped = False
        self.flush_until = self.run_until + KILL_S + FLUSH_S

    def hurry(self, run_until: float) -> None:
        """End sooner than was said before."""
        self.run_until = min(self.run_until, run_until)

    def flush_from(self, now: float) -> None:
        """The engine has stopped: results may take FLUSH_S from now."""
        self.flush_until = now + FLUSH_S

    def next_deadline(self) -> float:
        """Return when something is due."""
        return self.flush_until if self.engine_stopped else self.run_until

    def error(self) -> UserEndpointLost:
        """Return the error of a task that ran longer than the grace."""
        return UserEndpointLost(reason=f"{self.code}: {self.text}")
