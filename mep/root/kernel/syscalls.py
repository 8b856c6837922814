"""System calls that the standard library lacks: prctl(2), capget(2), capset(2), keyctl(2), unshare(2).

Numbers are those of the kernel's headers (linux/prctl.h, linux/capability.h, linux/securebits.h, linux/keyctl.h).
Every function raises OSError. Called by monitor, keeper and by their children between fork and exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 36, 38, 39
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_GET_KEYRING_ID, _KEYCTL_JOIN_SESSION_KEYRING = 0, 1
_KEY_SPEC_SESSION_KEYRING = -3
_NR_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_NR_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120}
_CLONE_FILES, _CLONE_NEWNET = 0x400, 0x40000000
_LAST_CAPABILITY = 63

# NOROOT and NO_CAP_AMBIENT_RAISE are on; NO_SETUID_FIXUP and KEEP_CAPS are off, so that setuid clears the
# capabilities. Each lock bit is set.
SECUREBITS_LOCKED = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x80


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def _prctl(option: int, second: int = 0, third: int = 0) -> int:
    arguments = [ctypes.c_ulong(value) for value in (second, third, 0, 0)]
    return _checked(_libc.prctl(option, *arguments), f"prctl({option})")


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process signal `number` when its parent ends. A change of uid clears it."""
    _prctl(_PR_SET_PDEATHSIG, number)


def set_dumpable(dumpable: bool) -> None:
    """Allow or forbid core files, ptrace and /proc/PID/mem for the process's own account, until exec."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_process_name(name: str) -> None:
    """Set the name that `ps -o comm` shows: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _checked(_libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0), "prctl(PR_SET_NAME)")


def become_subreaper() -> None:
    """Reparent orphaned descendants to this process instead of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privs() -> None:
    """Permanently keep exec of setuid programs and file capabilities from giving privileges."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def no_new_privs() -> bool:
    """Tell whether no_new_privs is set."""
    return _prctl(_PR_GET_NO_NEW_PRIVS) == 1


def _has_bounding(capability: int) -> bool | None:
    try:
        return _prctl(_PR_CAPBSET_READ, capability) == 1
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def empty_bounding_set() -> None:
    """Drop every capability that this kernel knows from the bounding set. Needs CAP_SETPCAP."""
    for capability in range(_LAST_CAPABILITY + 1):
        present = _has_bounding(capability)
        if present is None:
            return
        if present:
            _prctl(_PR_CAPBSET_DROP, capability)


def bounding_set_is_empty() -> bool:
    """Tell whether no capability is left in the bounding set."""
    return not any(_has_bounding(capability) for capability in range(_LAST_CAPABILITY + 1))


def lock_securebits() -> None:
    """Stop uid 0 from giving capabilities, and lock that. Needs CAP_SETPCAP."""
    _prctl(_PR_SET_SECUREBITS, SECUREBITS_LOCKED)


def securebits() -> int:
    """Return this process's securebits."""
    return _prctl(_PR_GET_SECUREBITS)


def clear_capabilities() -> None:
    """Empty the ambient, effective, permitted and inheritable sets."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header, data = _CapHeader(_CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def capabilities_are_empty() -> bool:
    """Tell whether the effective, permitted and inheritable sets are all empty."""
    header, data = _CapHeader(_CAPABILITY_VERSION_3, 0), (_CapData * 2)()
    _checked(_libc.capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    return not any(half.effective | half.permitted | half.inheritable for half in data)


def unshare_network() -> None:
    """Give this process a new network namespace, which is empty. Needs CAP_SYS_ADMIN."""
    _checked(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")


def enter_network(descriptor: int) -> None:
    """Enter the network namespace of `descriptor` (os.setns is of Python 3.12). Needs CAP_SYS_ADMIN."""
    _checked(_libc.setns(descriptor, _CLONE_NEWNET), "setns(CLONE_NEWNET)")


def _keyctl(operation: int, second: int = 0) -> int | None:
    """Return keyctl's result; None if the kernel or container has no keyctl."""
    number = _NR_KEYCTL.get(os.uname().machine)
    if number is None:
        return None
    try:
        arguments = [ctypes.c_long(value) for value in (operation, second, 0, 0, 0)]
        return _checked(_libc.syscall(ctypes.c_long(number), *arguments), f"keyctl({operation})")
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP}:
            raise
    return None


def join_new_session_keyring() -> None:
    """Replace root's session keyring by a new, empty one. Do nothing if the kernel or container has no keyctl."""
    _keyctl(_KEYCTL_JOIN_SESSION_KEYRING)


def session_keyring() -> int | None:
    """Return the serial number of this process's session keyring; None if there is none."""
    try:
        return _keyctl(_KEYCTL_GET_KEYRING_ID, _KEY_SPEC_SESSION_KEYRING)
    except OSError:
        return None


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor not in `keep`. Uses /proc, because kernels before 5.9 have no close_range."""
    wanted = set(keep)
    for name in os.listdir("/proc/self/fd"):
        if (descriptor := int(name)) not in wanted:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(descriptor)


def clone_sharing_descriptors() -> int | None:
    """Fork a child that shares this process's descriptor table: 0 in the child; None on an unknown architecture."""
    number = _NR_CLONE.get(os.uname().machine)
    if number is None:
        return None
    arguments = [ctypes.c_long(value) for value in (_CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)]
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), "clone")


_NR_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "ppc64le": 173, "s390x": 174, "riscv64": 134}
_THREAD_LIBRARY_SIGNALS = (32, 33)


def default_thread_library_signals() -> None:
    """Reset the two signals that libc keeps for itself to their default action.

    libc's own sigaction refuses to touch them, but its posix_spawn leaves them ignored in a child (make starts its
    commands this way). Ignored signals stay ignored over exec. rt_sigaction(2): a zeroed structure is SIG_DFL.
    """
    number = _NR_RT_SIGACTION.get(os.uname().machine)
    if number is None:
        return
    default = ctypes.create_string_buffer(64)
    for signum in _THREAD_LIBRARY_SIGNALS:
        arguments = (ctypes.c_long(signum), default, None, ctypes.c_long(8))
        _checked(_libc.syscall(ctypes.c_long(number), *arguments), "rt_sigaction")
