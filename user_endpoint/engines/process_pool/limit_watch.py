"""Why a process of ours died: its status, and whether it was the site's limits.

The limits are read from our own control group, which is world-readable. Without cgroup v2 there is nothing to
read, and nothing to report. Called by the engines when a worker is lost.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_ROOT: Final = "/sys/fs/cgroup"


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


class MemoryWatch:
    """Counts the processes that the kernel has killed in our control group for want of memory."""

    def __init__(self, membership: str = "/proc/self/cgroup", root: str = _ROOT) -> None:
        lines = [line for line in _read(membership).splitlines() if line.startswith("0::/")]
        self._directory = f"{root}/{lines[0][4:]}" if lines else ""
        self._seen = self._kills()

    def _kills(self) -> int:
        for line in _read(f"{self._directory}/memory.events").splitlines() if self._directory else ():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def explain(self, reason: str) -> str:
        """Return `reason`, with "out of memory" and the limit where the kernel has killed since it was last asked."""
        kills = self._kills()
        new, self._seen = kills > self._seen, max(self._seen, kills)
        return f"{reason}: out of memory{self._limit()}" if new else reason

    def _limit(self) -> str:
        limit = _read(f"{self._directory}/memory.max").strip()
        return f" (limit {int(limit) / 2**20:.0f} MiB)" if limit.isdigit() else ""


def describe_status(status: int) -> str:
    """Return how a process ended, from its wait status, for people."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown signal"
    return f"it was killed by {name} ({-code})"
