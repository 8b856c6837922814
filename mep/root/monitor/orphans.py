"""Ends the orphans of killed children, which the monitor, as subreaper, has become the parent of.

They are killed in short passes, a moment apart, until a pass finds none. Processes that fork as fast as they can don't
keep the monitor from other work. The log gets two lines, not one for each process. Called by monitor.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

from mep.boundary.log import Log
from mep.root.kernel.process_tree import raise_priority, restore_priority
from mep.root.monitor.event_loop import PollLoop

AGAIN_S = 0.02
GIVE_UP_S = 10.0
"""After this long, orphans no longer keep the monitor from exiting. The kernel must end those that don't die."""


class Orphans:
    """The passes, while there are orphans."""

    def __init__(self, loop: PollLoop, log: Log, again: Callable[[], None]) -> None:
        """`again` must lead to a call of `sweep`."""
        self._loop, self._log, self._again = loop, log, again
        self._busy = False
        self._since = 0.0
        self._due = False

    def wait_for(self) -> bool:
        """Tell whether there are orphans that the monitor has to wait for before it exits."""
        return self._busy and self._loop.clock() - self._since < GIVE_UP_S

    def sweep(self, strangers: Iterable[int], *, more: bool) -> None:
        """Kill `strangers`: children that this process didn't fork. `more`: there are zombies left to reap."""
        found = 0
        for pid in strangers:
            found += 1
            if not self._busy:
                self._busy, self._since = True, self._loop.clock()
                raise_priority()
                self._log.warning("a child left processes behind: killing them", first=pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if self._busy and not found and not more:
            self._busy = False
            restore_priority()
            seconds = self._loop.clock() - self._since
            self._log.warning("all processes that a child left behind are gone", seconds=f"{seconds:.1f}")
        if (found or more) and not self._due:
            self._due = True
            self._loop.after(AGAIN_S, self._next)

    def _next(self) -> None:
        self._due = False
        self._again()
