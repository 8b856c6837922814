"""What a process is to the kernel and to libc, saved before PAM and put back after.

PAM's modules work on their caller: pam_limits sets its limits (a tiny fsize or nproc would end the keeper),
pam_umask its umask, pam_group its groups, pam_keyinit its keyring, pam_systemd its control group. The child that
becomes the user is forked in between and keeps all that. Called by the keeper (session.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator

from mep.boundary.log import Log
from mep.monitor import syscalls
from mep.monitor.membership import memberships, move_back

_OOM = "/proc/self/oom_score_adj"
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class Context:
    """The calling process as it was when this object was made."""

    def __init__(self) -> None:
        self._ids = os.getresuid(), os.getresgid(), os.getgroups()
        self._limits = {number: resource.getrlimit(number) for number in _LIMITS}
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._environment = dict(os.environb)
        self._groups = memberships()
        self._keyring = syscalls.session_keyring()
        with open(_OOM, "rb") as file:
            self._oom = file.read()

    def keyring_changed(self) -> bool:
        """Tell whether this process has another session keyring than it had."""
        return syscalls.session_keyring() != self._keyring

    def restore(self, log: Log) -> None:
        """Put everything back. What cannot be is logged: the start is the child's matter by then."""
        for what, step in self._steps(log):
            try:
                step()
            except OSError as error:
                log.error("cannot put back what PAM changed", what=what, error=error.strerror)

    def _steps(self, log: Log) -> Iterator[tuple[str, Callable[[], None]]]:
        (uids, gids, groups) = self._ids
        yield "limits", lambda: self._restore_limits(log)
        yield "uid", lambda: os.setresuid(*uids)
        yield "gid", lambda: os.setresgid(*gids)
        yield "groups", lambda: os.setgroups(groups)
        yield "umask", lambda: _ignore(os.umask(self._umask))
        yield "directory", self._restore_directory
        yield "priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        yield "oom_score_adj", self._restore_oom
        yield "signals", self._restore_signals
        yield "environment", self._restore_environment
        yield "cgroup", lambda: move_back(self._groups)
        yield "keyring", self._leave_keyring

    def _restore_limits(self, log: Log) -> None:
        for number, limits in self._limits.items():
            hard = resource.getrlimit(number)[1]
            if resource.getrlimit(number) == limits:
                continue
            try:
                resource.setrlimit(number, limits)
            except ValueError:  # Python's word for EPERM: a hard limit only rises with CAP_SYS_RESOURCE
                resource.setrlimit(number, (hard, hard))
                log.error("the keeper keeps a limit of PAM's: raising it needs CAP_SYS_RESOURCE", limit=number)

    def _restore_directory(self) -> None:
        if self._directory >= 0:
            os.fchdir(self._directory)
            os.close(self._directory)
            self._directory = -1

    def _restore_oom(self) -> None:
        with open(_OOM, "r+b", buffering=0) as file:
            if file.read() != self._oom:
                file.write(self._oom)

    def _restore_signals(self) -> None:
        """Install again what Python believes to be installed: a module's C code may have changed that behind it."""
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            handler = signal.getsignal(number)
            if handler is not None:
                with contextlib.suppress(OSError):
                    signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _restore_environment(self) -> None:
        """libc's own: os.environ is Python's copy, which no C code changes."""
        ctypes.CDLL(None).clearenv()
        for name, value in self._environment.items():
            os.putenv(name, value)

    def _leave_keyring(self) -> None:
        """A keyring that was left cannot be joined again: leave the user's to the user for one of our own."""
        if self.keyring_changed():
            syscalls.join_new_session_keyring()


def _ignore(_value: object) -> None:
    """Drop a result that says nothing."""
