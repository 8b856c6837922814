"""Ends whole trees of processes: kills children with all their descendants, and reaps the orphans that come back.

If processes were killed one by one, the others could fork into the freed slots. So all are stopped first. A stopped
process doesn't fork (fork(2) gives up if a signal is pending), so the descendants found below it are complete. Then
all are killed.

A user can have processes fork and exit as fast as the kernel allows, thousands at once. Reaping all of them first
might never end, so no turn waits until nothing is left to reap. Only our own children are signalled. Their pids can't
be reused, because only this process, a subreaper, reaps them. Their children then become children of this process.
Called by keepers and by the monitor. Trusts the kernel only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

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


def stop_mark(pid: int) -> bytes:
    """Return a mark of a process that a signal or a debugger has stopped: the same as before if it hasn't run since.

    Empty if it runs, or can't be looked at.
    """
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            lines = dict(line.partition(b":")[::2] for line in file.read().splitlines())
    except OSError:
        return b""
    stopped = lines.get(b"State", b"").split()[:1] in ([b"T"], [b"t"])
    return b"".join(value for name, value in lines.items() if name.endswith(b"ctxt_switches")) if stopped else b""


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


MAX_REAPS = 64
"""Processes reaped in one turn."""
_LOOK_AGAIN_S, _LONGEST_S = 0.001, 0.05

Ended = tuple[int, int]
"""Pid and status, as from waitpid."""


def reap(limit: int = MAX_REAPS) -> tuple[list[Ended], bool]:
    """Return at most `limit` children that have ended, and whether there are any other children."""
    found: list[Ended] = []
    while len(found) < limit:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found, False
        if pid == 0:
            break
        found.append((pid, status))
    return found, True


def describe_status(status: int) -> str:
    """Describe in words how a process with waitpid's `status` ended."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def reap_each(pids: Iterable[int]) -> Iterator[Ended]:
    """Return those of `pids` that have ended, without waiting behind thousands of others."""
    for pid in list(pids):
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                yield found, status


def each_child() -> Iterator[int]:
    """Return the pids of this process's own children, the youngest first, adopted orphans and zombies included.

    A child that is born or orphaned during the call may be missing.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            yield from reversed([int(word) for word in file.read().split()])
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN, or no free descriptor
        yield from _each_by_parent()


def _each_by_parent() -> Iterator[int]:
    """Yield each child as soon as it is found, because a process that keeps forking and exiting is gone soon."""
    me = b"%d" % os.getpid()
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            if file.read().rpartition(b")")[2].split(None, 2)[1] == me:
                yield pid


def children() -> list[int]:
    """Return the pids from `each_child`, or none if no descriptor is free to read them."""
    with contextlib.suppress(OSError):
        return list(each_child())
    return []


def kill_descendants(spared: Callable[[], int] = lambda: 0, reaped: Callable[[int, int], None] | None = None) -> None:
    """SIGKILL and reap all descendants of this process, a subreaper, except the process `spared`.

    `reaped` is called for every other child. Without a spared process, waitpid tells that no child is left. With one,
    the list of children tells. That list may miss a child once, but a missed child is listed a moment later or has
    ended.
    """
    clean, killed, pause = 0, 0, _LOOK_AGAIN_S
    raise_priority()
    while clean < 2:
        ended, any_left = reap(MAX_REAPS + 2 * killed)
        for pid, status in ended:
            if reaped is not None:
                reaped(pid, status)
        if not any_left:
            break
        found, but = children(), spared()
        killed = kill_trees(pid for pid in found if pid != but)
        clean = clean + 1 if found and not killed and not ended else 0
        pause = _LOOK_AGAIN_S if ended else min(_LONGEST_S, pause * 1.5)
        time.sleep(pause)
    restore_priority()


def raise_priority() -> None:
    """Run before all ordinary processes until `restore_priority`, to overtake a storm of them.

    If that isn't allowed (single-user mode, some containers), priority stays as it is.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def restore_priority() -> None:
    """Return to ordinary scheduling."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
