"""Becoming another account without a moment in which a process of that account could trace us. Standard library only.

The kernel lets a process without CAP_SYS_PTRACE trace another only if the other's real, effective and saved uids and
gids all are its own, and the other is dumpable (ptrace(2), "Ptrace access mode checking"). A change of the effective
uid or gid sets dumpable to fs.suid_dumpable, which a host may have set to 1, and exec of a program that can be read
sets it to 1. prctl(PR_SET_DUMPABLE, 0) comes too late for either: a tracer that attached, or opened /proc/PID/mem,
stays.

Here the real gid differs from the effective gid from before the uid changes until the process is not dumpable. No
process of the account can match both, and exec keeps the difference. The real gid gives no access to anything. A
change of the real gid alone leaves dumpable as it is.

Called by the monitor's children, the command line's children, and manager and mapper at their start.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 3, 4, 38
_NO_GROUPS = (65534, 65533)
"""Groups that no process of an endpoint's accounts is a member of. The second is for accounts with the first as their
own group."""


def _prctl(option: int, second: int = 0) -> int:
    result: int = _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in (second, 0, 0, 0)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
    return result


def other_gid(gid: int) -> int:
    """Return the real gid for a process with effective gid `gid`, until it is not dumpable."""
    return _NO_GROUPS[gid == _NO_GROUPS[0]]


def become(uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """As root, become `uid`, untraceable until `close_to_tracers`, exec or not. Raises OSError."""
    os.setgroups(list(groups))
    os.setresgid(other_gid(gid), gid, gid)
    os.setresuid(uid, uid, uid)


def close_to_tracers() -> None:
    """Make this process not dumpable, then its gids equal: no core file, no ptrace, no mem. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)
    gid = os.getegid()
    os.setresgid(gid, gid, gid)
    if _prctl(_PR_GET_DUMPABLE) != 0:
        raise OSError(f"process {os.getpid()} is still dumpable")


def gain_no_privilege() -> None:
    """Have exec of setuid programs and of file capabilities give nothing from now on. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; a change of uid would undo it. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(f"the parent {parent} ended")
