"""Seccomp filters of manager and mapper: translates lists of system calls into a program for the kernel.

The filter is assembled here from `syscalls.json` (seccomp(2), linux/filter.h). A site needs no libseccomp, and the
program is the same on every host of an architecture. `packaging/trace_syscalls.py` writes the lists from a traced run.

An unlisted system call fails with EPERM: libraries try calls that they can do without (glibc asks nscd over a
socket, for instance) and then go on. A call that no helper code ever makes (exec, ptrace, mount) kills the process,
because it must be running foreign code. The death is logged with SIGSYS. Calls newer than the lists fail with ENOSYS,
and so do clone3 and openat2, since no filter can see their arguments. Libraries then use the older call.

Standard library only. Called by mep/boundary/confinement.py.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DATA = Path(__file__).with_name("syscalls.json")
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_RET|BPF_K
_JUMP_EQUAL, _JUMP_AT_LEAST = 0x15, 0x35  # BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000
_MAX_INSTRUCTIONS = 4096
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

KILLED = (
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "setns",
    "unshare", "chroot", "mount", "umount2", "pivot_root", "open_tree", "move_mount", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup",
    "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl", "init_module", "finit_module",
    "delete_module", "kexec_load", "kexec_file_load", "open_by_handle_at", "reboot", "swapon", "swapoff",
    "acct", "clock_settime", "settimeofday", "iopl", "ioperm", "setuid", "setgid", "setreuid", "setregid",
    "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capset",
)  # fmt: skip
"""Calls that kill a helper."""
NEEDED_BY_PROGRAMS = frozenset({"execve", "execveat", "add_key", "request_key", "keyctl"})
"""The exceptions for a site's own programs, if the mapper runs any: Kerberos keeps tickets in a keyring."""
_NOT_SUPPORTED = ("clone3", "openat2")

_O_TMPFILE = 0o20000000
_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | _O_TMPFILE
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: what unshare(2) does, by clone(2)."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX (nscd, systemd-resolved), AF_INET, AF_INET6, AF_NETLINK (glibc asks for the host's addresses)."""
_PROTOCOLS = (0, 6, 17)
"""The default, TCP and UDP. Landlock does not see MPTCP; of AF_NETLINK's protocols, 0 is NETLINK_ROUTE."""
_MSG_FASTOPEN = 0x20000000
"""It connects while it sends, and Landlock does not see that either."""
_FCNTL = (0, 1, 2, 3, 4, 1030, 1033, 1034)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS."""
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_PRCTL = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (glibc names its memory)."""


class SeccompUnavailable(Exception):
    """This host can't filter system calls; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Test:
    """A condition on one half of one argument: its bits in `mask` are one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    high: bool = False

    def instructions(self) -> list[bytes]:
        """Return a program that continues if the condition holds, and otherwise fails the call with EPERM."""
        last = len(self.values) - 1
        return [
            _instruction(_LOAD, _ARGUMENTS_AT + 8 * self.argument + 4 * self.high),
            *([] if self.mask == 0xFFFFFFFF else [_instruction(_AND, self.mask)]),
            *(_instruction(_JUMP_EQUAL, value, last - i + 1, 0) for i, value in enumerate(self.values)),
            _instruction(_RETURN, _ERRNO | errno.EPERM),
        ]


def conditions(pid: int) -> dict[str, tuple[Test, ...]]:
    """Return the conditions on the arguments of allowed system calls in the process `pid`."""
    return {
        "openat": (Test(2, (0,), _WRITES),),
        "open": (Test(1, (0,), _WRITES),),
        "clone": (Test(0, (_CLONE_THREAD,), _CLONE_THREAD),),
        "socket": (Test(0, _FAMILIES), Test(2, _PROTOCOLS)),
        "sendto": (Test(3, (0,), _MSG_FASTOPEN),),
        "sendmsg": (Test(2, (0,), _MSG_FASTOPEN),),
        "sendmmsg": (Test(3, (0,), _MSG_FASTOPEN),),
        "fcntl": (Test(1, _FCNTL),),
        "ioctl": (Test(1, _IOCTL),),
        "prctl": (Test(0, _PRCTL),),
        "tgkill": (Test(0, (pid,)),),
        "prlimit64": (Test(0, (0,)), Test(2, (0,)), Test(2, (0,), high=True)),  # may read limits but not set them
    }


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Lists:
    """The data: numbers by architecture and name, and the names that each profile allows."""

    numbers: Mapping[str, Mapping[str, int]]
    profiles: Mapping[str, Sequence[str]]
    instead: Mapping[str, str]
    """The call that replaces an older one on newer architectures."""


def read_lists() -> Lists:
    """Return the content of `syscalls.json`."""
    data = json.loads(_DATA.read_bytes())
    return Lists(data["numbers"], data["profiles"], data["instead"])


def allowing(names: Iterable[str], lists: Lists, machine: str, pid: int) -> bytes:
    """Return the program that allows `names` and nothing else."""
    numbers, tests = lists.numbers[machine], conditions(pid)
    wanted = {*names} | {lists.instead[name] for name in names if name in lists.instead}
    program = _beginning(machine, numbers)
    program += _answers(numbers, KILLED, _KILL) + _answers(numbers, _NOT_SUPPORTED, _ERRNO | errno.ENOSYS)
    for name in sorted(wanted - {*KILLED, *_NOT_SUPPORTED}):
        if name in numbers:
            program += _answer(numbers[name], tests.get(name, ()), _ALLOW)
    return _checked([*program, _instruction(_RETURN, _ERRNO | errno.EPERM)])


def forbidding(lists: Lists, machine: str) -> bytes:
    """Return the program for a mapper that runs a site's programs, which inherit it: all but KILLED is allowed.

    Forbidden calls fail with EPERM here, because a site's program may try one and go on without it. No program can make
    a user namespace, where it would have every capability. clone3 fails with ENOSYS, because a filter can't see its
    flags.
    """
    numbers = lists.numbers[machine]
    names = [name for name in KILLED if name not in NEEDED_BY_PROGRAMS]
    program = _beginning(machine, numbers, newer=_ALLOW) + _answers(numbers, names, _ERRNO | errno.EPERM)
    program += _answers(numbers, ["clone3"], _ERRNO | errno.ENOSYS)
    program += _answer(numbers["clone"], (Test(0, (0,), _CLONE_NEW),), _ALLOW)
    return _checked([*program, _instruction(_RETURN, _ALLOW)])


def _beginning(machine: str, numbers: Mapping[str, int], newer: int = _ERRNO | errno.ENOSYS) -> list[bytes]:
    """Kill callers that use another architecture's numbers; handle calls newer than the lists."""
    program = [
        _instruction(_LOAD, _ARCH_AT),
        _instruction(_JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_instruction(_JUMP_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _KILL)]
    return [*program, _instruction(_JUMP_AT_LEAST, max(numbers.values()) + 1, 0, 1), _instruction(_RETURN, newer)]


def _answers(numbers: Mapping[str, int], names: Iterable[str], action: int) -> list[bytes]:
    return [part for name in names if name in numbers for part in _answer(numbers[name], (), action)]


def _answer(number: int, tests: Sequence[Test], action: int) -> list[bytes]:
    body = [part for test in tests for part in test.instructions()]
    return [_instruction(_JUMP_EQUAL, number, 0, len(body) + 1), *body, _instruction(_RETURN, action)]


def _checked(program: list[bytes]) -> bytes:
    if len(program) > _MAX_INSTRUCTIONS:
        raise SeccompUnavailable(
            f"the filter has {len(program)} instructions, and the kernel takes {_MAX_INSTRUCTIONS}"
        )
    return b"".join(program)


def filter_for(profile: str, *, programs: bool = False) -> bytes:
    """Return the filter of a profile of `syscalls.json`, or with `programs`, the one for a mapper that runs programs.

    Raises SeccompUnavailable on an architecture without lists.
    """
    machine, lists = os.uname().machine, read_lists()
    if machine not in AUDIT_ARCH or machine not in lists.numbers or struct.calcsize("P") != 8:
        raise SeccompUnavailable(f"there is no list of system calls for {machine}")
    return forbidding(lists, machine) if programs else allowing(lists.profiles[profile], lists, machine, os.getpid())


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Install the filter on every thread of this process. Needs no_new_privs. Raises SeccompUnavailable."""
    number = read_lists().numbers[os.uname().machine]["seccomp"]
    libc = ctypes.CDLL(None, use_errno=True)
    described = _Program(len(program) // 8, program)
    arguments = (ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(_SECCOMP_FILTER_FLAG_TSYNC))
    result = libc.syscall(ctypes.c_long(number), *arguments, ctypes.byref(described))
    if result != 0:
        reason = os.strerror(ctypes.get_errno()) if result < 0 else f"thread {result} has a filter of its own"
        raise SeccompUnavailable(f"the kernel refuses the filter: {reason}")
