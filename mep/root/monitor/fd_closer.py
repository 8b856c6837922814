"""Closes descriptors that other processes created, without waiting.

close(2) can block: on a socket's SO_LINGER, a terminal's drain, a FUSE or NFS server. Manager, mapper and
administrators may send descriptors, so they could stop the monitor this way. A short-lived child that shares the
monitor's descriptor table closes the descriptors and blocks instead of the monitor. The monitor's modules call this for
every received descriptor that isn't a sealed memfd.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable

from mep.root.kernel import syscalls


class Closer:
    """Closes descriptors in child processes. `pids` are the children that are closing one now."""

    def __init__(self) -> None:
        self.pids: set[int] = set()

    def close(self, descriptors: Iterable[int]) -> None:
        """Close `descriptors` without waiting."""
        doomed = list(descriptors)
        pid: int | None = None
        with contextlib.suppress(OSError):
            pid = syscalls.clone_sharing_descriptors() if doomed else None
        if pid:
            self.pids.add(pid)
            return
        if pid == 0:
            syscalls.set_parent_death_signal(signal.SIGKILL)
        for descriptor in doomed:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if pid == 0:
            os._exit(0)

    def reaped(self, pid: int) -> None:
        """Record that a child has ended, if it is one of these."""
        self.pids.discard(pid)
