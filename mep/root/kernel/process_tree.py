"""Kills children together with all their descendants, however fast they fork. Called by subreaper.py.

If processes were killed one by one, the others could fork into the freed slots. So all are stopped first. A stopped
process doesn't fork (fork(2) gives up if a signal is pending), so the descendants found below it are complete. Then
all are killed. Trusts the kernel only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterable

_FULL = frozenset({errno.EMFILE, errno.ENFILE})


def kill_trees(pids: Iterable[int]) -> int:
    """SIGKILL `pids`, unreaped children of this process, and all their descendants. Return how many were killed."""
    held: list[int] = []
    waiting: list[tuple[int, int]] = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGSTOP)  # at once, before it forks and ends; only this process reaps it
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
        # No free descriptor: kill those found first. The next call finds the others.
    finally:
        for pidfd in held:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    return len(held)


def _stopped(pid: int, parent: int) -> int:
    """Stop `pid` if it is `parent`'s child, and return a pidfd; -1 if it is gone. Raises OSError(EMFILE).

    The parent is read after the descriptor was opened. So the descriptor can't belong to an unrelated process that got
    the pid in between.
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


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped by a signal. One that can't be looked at counts as running."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read().rpartition(b")")[2].split(None, 1)[0] == b"T"
    except (OSError, IndexError):
        return False


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
