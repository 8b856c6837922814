"""Decides when an idle user endpoint ends: the soft and the hard limit of Globus Compute's endpoints.

Soft: no task held and no result unconfirmed for so long. Hard: no activity for so long, with or without tasks;
this ends user endpoints with hanging tasks. The next process sends any results left on the disk. If the soft limit is
off, both are off. The clock is the caller's.
"""

from __future__ import annotations


class IdleRule:
    """Both limits in seconds, None for never."""

    def __init__(self, soft_s: float | None, hard_s: float | None, now: float) -> None:
        self._soft, self._hard = soft_s, hard_s
        self._moved_at = now

    def moved(self, now: float) -> None:
        """A task came, started or ended, or a result was confirmed."""
        self._moved_at = now

    def deadline(self, *, busy: bool) -> float | None:
        """Return when this user endpoint should end if nothing moves until then, or None."""
        limit = self._hard if busy else self._soft
        return None if limit is None else self._moved_at + limit

    def verdict(self, now: float, *, busy: bool) -> str | None:
        """Return why to end now, or None. `busy`: tasks are held or results unconfirmed."""
        due = self.deadline(busy=busy)
        if due is None or now < due:
            return None
        if busy:
            return f"nothing moved for {self._hard:g} s, though tasks are outstanding"
        return f"no task for {self._soft:g} s"
