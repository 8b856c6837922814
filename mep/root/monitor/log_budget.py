"""How much manager, mapper and members of admin_group can make root write to its logs in a day.

A rate alone would let a compromised helper fill the disk slowly. Omitted lines are counted, and the count is written
to log and audit log at the end of the day. Called by helper_process.py, start_requests.py, keepers.py, rechecks.py,
admin_socket.py and administration.py.
"""

from __future__ import annotations

from mep.boundary.log import Log
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.event_loop import PollLoop

DAY_S = 86400.0


class DayBudget:
    """A number of bytes per 24 hours, which begin with the first line."""

    def __init__(self, what: str, limit: int, loop: PollLoop, log: Log, audit: Audit) -> None:
        """`what` names the lines in the log."""
        self._what, self.limit = what, limit
        self._loop, self._log, self._audit = loop, log, audit
        self._began = float("-inf")
        self._spent = self._lines = self._bytes = 0

    def take(self, size: int) -> bool:
        """Use up `size` bytes. Return False if fewer are left; the caller then omits the line."""
        now = self._loop.clock()
        if now - self._began >= DAY_S and not self._lines:
            self._began, self._spent = now, 0
        if not self._lines and self._spent + size <= self.limit:
            self._spent += size
            return True
        if not self._lines:
            self._used_up(now)
        self._lines += 1
        self._bytes += size
        return False

    def _used_up(self, now: float) -> None:
        rest = max(0.0, DAY_S - (now - self._began))
        self._log.error(
            "log budget used up: further lines are left out and counted", lines=self._what, bytes=self.limit
        )
        self._audit.write("log_budget_used_up", lines=self._what, bytes=self.limit, left_out_for_s=round(rest))
        self._loop.after(rest, self._new_day)

    def _new_day(self) -> None:
        self._log.warning(
            "lines were left out: log budget used up", lines=self._what, count=self._lines, bytes=self._bytes
        )
        self._audit.write("left_out", lines=self._what, count=self._lines, bytes=self._bytes)
        self._began, self._spent, self._lines, self._bytes = self._loop.clock(), 0, 0, 0
