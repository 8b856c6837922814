"""Killing children together with all that descends from them, however fast it forks. Called by subreaper.py.

What is killed one by one makes room for others of it to fork. So everything is stopped first: a stopped process does
not fork (fork(2) gives up where a signal waits), so that what is found below it is all that there is. Then everything
is killed. Trusts the kernel only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterable

_FULL = frozenset({errno.EMFILE, errno.ENFILE})


def kill_trees(pids: Iterable[int]) -> int:
    """SIGKILL `pids`, children of this process's that are not reaped, and all their descendants; return how many."""
    held: list[int] = []
    waiting: list[tuple[int, int]] = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGSTOP)  # at once, before it forks and ends: nobody else reaps it
        waiting.append((pid, os.getpid()))
    try:
        while waiting:
            pid, parent = waiting.pop()
            if (pidfd := _stopped(pid, parent)) >= 0:
                held.append(pidfd)
                waiting += [(child, pid) for child in _children_of(pid)]
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # These first, then: the others are found again.
    finally:
        for pidfd in held:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    return len(held)


def _stopped(pid: int, parent: int) -> int:
    """Stop `pid`, if it is `parent`'s child, and return a pidfd; -1 where it is gone. Raises OSError(EMFILE).

    The parent is read after the descriptor was opened: so the descriptor cannot be of a process that has nothing to
    do with this, and got the number meanwhile.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return -1
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if _parent_of(pid) == parent:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            return pidfd
    os.close(pidfd)
    return -1


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return int(file.read().rpartition(b")")[2].split(None, 2)[1])
    except OSError as error:
        if error.errno in _FULL:
            raise
        return 0


def _children_of(pid: int) -> list[int]:
    """Return the children of each of its threads; none on a kernel without CONFIG_PROC_CHILDREN."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    except OSError as error:
        if error.errno in _FULL:
            raise
    return found
