"""What manager or mapper write to their standard output and error: copied to the monitor's log, line by line.

They get a pipe, not the log: who shares an open file can cut it short and write over it. A line that begins as their
own log's lines do goes on as it is, every other as a field of a line of the monitor's, so that one that was taken over
cannot speak for another process; control characters are escaped, lines cut, too many of them in a second dropped and
counted, and too many bytes of them in a day (log_budget.py) left out and counted.
Called by helper_process.py. Trusts nothing that it reads.
"""

from __future__ import annotations

import os
import re

from mep.boundary.log import Log, copy_line
from mep.root.monitor.child import Bucket
from mep.root.monitor.event_loop import Loop
from mep.root.monitor.log_budget import DayBudget

MAX_LINE = 4000
LINES_A_SECOND, LINES_AT_ONCE = 100.0, 2000.0
_AT_ONCE = 65536
_OWN = r"[0-9T:.-]{10,30}Z (DEBUG|INFO|WARNING|ERROR) %s\[[0-9]+\]: "


class Voice:
    """The pipe of one process; `theirs` is for it, and to be closed here once it has been forked."""

    def __init__(self, who: str, loop: Loop, log: Log, budget: DayBudget) -> None:
        self._who, self._loop, self._log, self._budget = who, loop, log, budget
        self._own = re.compile(_OWN % re.escape(who))
        self._bucket = Bucket(LINES_A_SECOND, LINES_AT_ONCE, loop.clock)
        self._rest = b""
        self._dropped = 0
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        loop.watch(self._ours, self.take)

    def take(self) -> None:
        """Copy what is there, so much at a time; close at end-of-file."""
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
                "lines of its log were dropped: too many a second", process=self._who, lines=self._dropped
            )
            self._dropped = 0
        if self._own.match(text):
            copy_line(text)
        else:
            self._log.warning("a process wrote to its standard error", process=self._who, line=text)

    def close(self) -> None:
        """Listen no longer."""
        if self._ours >= 0:
            self._loop.unwatch(self._ours)
            os.close(self._ours)
            self._ours = -1
