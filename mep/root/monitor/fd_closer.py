"""Closing descriptors that somebody else made, without waiting for it.

close(2) can wait: for a socket's SO_LINGER, a terminal's drain, a FUSE or NFS server; so manager and mapper, who
may send descriptors, could stop the monitor. A short-lived child that shares the monitor's descriptor table takes
them out of it and waits in the monitor's place. Called by the monitor's modules for whatever is not a sealed memfd.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable

from mep.root.kernel import syscalls


class Closer:
    """Closes elsewhere. `pids` are the children that do so at the moment."""

    def __init__(self) -> None:
        self.pids: set[int] = set()

    def close(self, descriptors: Iterable[int]) -> None:
        """Close `descriptors`; does not wait."""
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
        """Take note that a child has ended, if it is one of these."""
        self.pids.discard(pid)
