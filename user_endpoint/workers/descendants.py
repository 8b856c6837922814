"""Ends the processes that a task has left: children of all its threads, those in other sessions, double forks.

A worker is a subreaper. Its orphaned descendants therefore become its own children, and those of a worker that has died
the fork server's. The processes are the person's own. A scan of /proc is not atomic: the fork server looks again
whenever one of them ends. Called by the worker after each task, and by the fork server.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection

_MOST_SCANS = 100
_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110 - no pathlib in a worker
"""Whether the kernel has CONFIG_PROC_CHILDREN."""


def has_children() -> bool:
    """Whether this process has any child, zombies included. Costs one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_descendants(root: int, spared: Collection[int] = ()) -> int:
    """SIGKILL every process below `root`, but none of the trees of `spared`. Return how many were killed."""
    killed: set[int] = set()
    for _ in range(
        _MOST_SCANS
    ):  # a process that forks all the time is caught up with, or dies with its account's limit
        new = [pid for pid in descendants(root, spared) if pid not in killed]
        if not new:
            break
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(new)
    return len(killed)


def descendants(root: int, spared: Collection[int] = ()) -> list[int]:
    """Return every process below `root`, without the trees of `spared`."""
    found: list[int] = []
    look = [root]
    while look:
        direct = [pid for pid in _children(look.pop()) if pid not in spared]
        found += direct
        look += direct
    return found


def reap_ended() -> None:
    """Reap every child of this process that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _children(pid: int) -> list[int]:
    if not _LISTED:
        return _children_by_parent(pid)
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - no pathlib in a worker
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    return found


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - as above
        with contextlib.suppress(OSError, ValueError, IndexError):
            if name.isdigit():
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                        found.append(int(name))
    return found
