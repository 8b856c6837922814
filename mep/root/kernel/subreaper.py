"""How a subreaper ends what came back to it: kill first and reap a bounded number, again and again.

Whoever runs something can have it fork and exit as fast as the kernel lets it, thousands at once. Reaping all of
that first would never come to an end, so no turn here waits for there to be nothing more to reap. Only own children are
signalled: those cannot be another process's pid, since nobody else reaps them; their children then come to this
process. Called by keepers and by the monitor.
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
    """Return at most `limit` children that have ended, and whether there are any more children."""
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
    """Return those of `pids` that have ended, which so need not wait behind thousands of others."""
    for pid in list(pids):
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                yield found, status


def each_child() -> Iterator[int]:
    """Return the pids of this process's own children, the youngest first, adopted orphans and zombies included.

    One that is born or orphaned meanwhile may be missed.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            yield from reversed([int(word) for word in file.read().split()])
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN, or no descriptor is left
        yield from _each_by_parent()


def _each_by_parent() -> Iterator[int]:
    """Return each at once when it is found: what forks and ends all the time is not there for long."""
    me = b"%d" % os.getpid()
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            if file.read().rpartition(b")")[2].split(None, 2)[1] == me:
                yield pid


def children() -> list[int]:
    """Return what `each_child` does; nothing where there is no descriptor left to look with."""
    with contextlib.suppress(OSError):
        return list(each_child())
    return []


def kill_descendants(spared: Callable[[], int] = lambda: 0, reaped: Callable[[int, int], None] | None = None) -> None:
    """SIGKILL and reap until nothing is left of what this process is subreaper of, but for the process `spared`.

    `reaped` is told of every other child. That none is left is what waitpid says. Where one is spared, the list of
    children says it, which misses nobody for long: what it missed was there a moment later, or had ended by then.
    """
    clean, killed, pause = 0, 0, _LOOK_AGAIN_S
    hurry()
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
    calm()


def hurry() -> None:
    """Go before everybody's ordinary processes, until `calm`: a storm of them is to be overtaken.

    Where that is not allowed (single-user mode, some containers), it goes without.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def calm() -> None:
    """Take a place among the others again."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
