"""Copies standard output and error of manager or mapper to the monitor's log, line by line.

A process that holds the log open could truncate it or overwrite it, so helpers write to a pipe. The monitor copies
well-formed lines of the helper's own log and quotes all others in a line of its own. A compromised helper therefore
can't forge another process's entries. Control characters are escaped and lines are cut. Lines beyond a rate per second
are dropped and counted, and so are bytes beyond a daily budget (log_budget.py).
Called by helper_process.py. Trusts nothing that it reads.
"""

from __future__ import annotations

import os
import re

from mep.boundary.log import Log, copy_line
from mep.root.monitor.child import Bucket
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.log_budget import DayBudget

MAX_LINE = 4000
LINES_A_SECOND, LINES_AT_ONCE = 100.0, 2000.0
_AT_ONCE = 65536
_OWN = r"[0-9T:.-]{10,30}Z (DEBUG|INFO|WARNING|ERROR) %s\[[0-9]+\]: "


class HelperLog:
    """The log pipe of one process. `theirs` is its end; close it here once the process has been forked."""

    def __init__(self, who: str, loop: PollLoop, log: Log, budget: DayBudget) -> None:
        self._who, self._loop, self._log, self._budget = who, loop, log, budget
        self._own = re.compile(_OWN % re.escape(who))
        self._bucket = Bucket(LINES_A_SECOND, LINES_AT_ONCE, loop.clock)
        self._rest = b""
        self._dropped = 0
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        loop.watch(self._ours, self.take)

    def take(self) -> None:
        """Copy a bounded part of the pipe's content; close the pipe at end-of-file."""
        if self._ours < 0:
            return
        try:
            data = os.read(self._ours, _AT_ONCE)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._say(line)
        if not data:
            self.close()

    def _say(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace")
        if not text.strip():
            return
        if not self._bucket.take():
            self._dropped += 1
            return
        if not self._budget.take(min(len(line), MAX_LINE)):
            return
        if self._dropped:
            self._log.warning(
                "dropped log lines of a helper: too many per second", process=self._who, lines=self._dropped
            )
            self._dropped = 0
        if self._own.match(text):
            copy_line(text)
        else:
            self._log.warning("a process wrote to its standard error", process=self._who, line=text)

    def close(self) -> None:
        """Stop reading."""
        if self._ours >= 0:
            self._loop.unwatch(self._ours)
            os.close(self._ours)
            self._ours = -1
