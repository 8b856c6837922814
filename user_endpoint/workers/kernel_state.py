"""What the kernel keeps for a worker's process and only C code, `resource`, a few calls or another program can change.

A look at it costs a task ten times as much as one at the rest. Pure Python reaches none of it without a call that
process_state notices, a module of _MEANS, or a library that is no part of Python. `resource` and `ctypes`, which a
worker needs for itself, are therefore taken out of sys.modules before the first task; a task's own import finds them
anew. Changes that cannot be put back tell the worker to end (see process_state). Linux, standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_MEANS = ("resource", "ctypes", "_posixsubprocess", "_interpreters")  # an interpreter of its own has its own os
_HIDDEN = ("resource", "ctypes", "ctypes._endian")
_LIMITS = tuple(sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}))
_STATUS = (b"Uid", b"Gid", b"Groups", b"Cap", b"NoNewPrivs", b"Seccomp:")
_SIGNALS = (b"SigIgn", b"SigCgt")
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_GET_TIMERSLACK, _PR_GET_THP_DISABLE = 1, 3, 30, 42
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
_PR_GET_CHILD_SUBREAPER, _SIGKILL = 37, 9
_OF_GLIBC = 1 << 31 | 1 << 32  # signals 32 and 33, which it takes with the first thread
_LIBC = ctypes.PyDLL(None)  # these calls do not wait: no other thread needs to run meanwhile
_Limits = list[tuple[int, int]]


class KernelState:
    """The state as it was when this object was made: before the worker's first task."""

    def __init__(self) -> None:
        for name in _HIDDEN:
            sys.modules.pop(name, None)
        self._limits: _Limits = list(map(resource.getrlimit, _LIMITS))
        self._limits_file = os.open("/proc/self/limits", os.O_RDONLY | os.O_CLOEXEC)
        self._status_file = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._limits_text, self._name = self._read_limits(), _name()
        self._status, self._signals = self._read_status()
        self._attributes, self._subreaper = _attributes(), _is_subreaper()
        self._library = False

    @property
    def reachable(self) -> bool:
        """Whether C code has been there that may have changed it, or that starts programs."""
        return self._library or any(name in sys.modules for name in _MEANS)

    def restore(self, *, library: bool, called: bool) -> bool:
        """Undo the changes that can be undone; return whether those were all. `library`: the task has imported one,
        whose signal handlers stay. `called`: it has made a call that may change it, or a process. Raises OSError,
        ValueError where a limit was lowered for good."""
        self._library = self._library or library
        if not (called or self.reachable):
            return True
        if _is_subreaper() != self._subreaper:
            return False  # what the task has left is the fork server's already, which ends it when a worker ends
        _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if self._read_limits() != self._limits_text:
            for number, limit in zip(_LIMITS, self._limits, strict=True):
                resource.setrlimit(number, limit)
        if _name() != self._name:
            with open("/proc/self/comm", "wb", buffering=0) as file:
                file.write(self._name.removesuffix(b"\n"))
        status, signals = self._read_status()
        if library:
            self._signals = signals
        return (status, signals, _attributes()) == (self._status, self._signals, self._attributes)

    def _read_limits(self) -> bytes:
        return os.pread(self._limits_file, 4096, 0)

    def _read_status(self) -> tuple[list[bytes], list[int]]:
        lines = os.pread(self._status_file, 8192, 0).splitlines()
        status = [line for line in lines if line.startswith(_STATUS)]
        signals = [int(line.split()[1], 16) & ~_OF_GLIBC for line in lines if line.startswith(_SIGNALS)]
        return status, signals


def _is_subreaper() -> bool:
    answer = ctypes.c_int()
    return _LIBC.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) != 0 or answer.value != 0


def _name() -> bytes:
    with open("/proc/self/comm", "rb", buffering=0) as file:
        return file.read()


def _attributes() -> tuple[int, ...]:
    number = _IOPRIO_GET.get(os.uname().machine)
    priority = 0 if number is None else _LIBC.syscall(number, 1, 0)
    getters = (_PR_GET_DUMPABLE, _PR_GET_TIMERSLACK, _PR_GET_THP_DISABLE)
    others = (os.getpgrp(), _LIBC.personality(0xFFFFFFFF))
    return (priority, *others, *(_LIBC.prctl(each, 0, 0, 0, 0) for each in getters))
