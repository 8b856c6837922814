"""Notices children that were stopped (SIGSTOP, a debugger's leftover) and don't go on, and has them killed.

A stopped process answers nothing and ends at no request, so everything that waits for it would wait for its deadline.
Killed, it is replaced or answered for like any other that ended. A user endpoint's keeper is watched until the user
endpoint is ready: killing it later would end a person's work. Called by monitor.py.
"""

from __future__ import annotations

from collections.abc import Callable

from mep.root.kernel.process_tree import stop_mark
from mep.root.monitor.event_loop import PollLoop

LOOK_S = 4.0
"""Pause between two looks. A process that is stopped at two of them, and didn't run between, is killed: after 4 to 8 s.
One that a tracer follows stops at each of its steps, and is left alone."""


class Liveness:
    """The looks. `watched` returns the pids to look at, `found` is called with each that must be killed."""

    def __init__(self, loop: PollLoop, watched: Callable[[], list[int]], found: Callable[[int], None]) -> None:
        self._loop, self._watched, self._found = loop, watched, found
        self._stopped: dict[int, bytes] = {}

    def start(self) -> None:
        """Look now and from now on."""
        before = self._stopped
        self._stopped = {pid: mark for pid in self._watched() if (mark := stop_mark(pid))}
        for pid, mark in list(self._stopped.items()):
            if before.get(pid) == mark:
                del self._stopped[pid]
                self._found(pid)
        self._loop.after(LOOK_S, self.start)
