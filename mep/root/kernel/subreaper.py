"""How a subreaper ends the orphans that came back to it: kill first and reap a bounded number, in turns.

A user can have processes fork and exit as fast as the kernel allows, thousands at once. Reaping all of them first
might never end, so no turn waits until nothing is left to reap. Only our own children are signalled. Their pids can't
be reused, because only this process reaps them. Their children then become children of this process. Called by
keepers and by the monitor.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator

from mep.root.kernel.process_tree import kill_trees

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
