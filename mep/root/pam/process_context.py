"""What the PAM process is to the kernel, saved before its modules work on it and put back once the child is forked.

PAM's modules change their caller: pam_limits its limits, pam_umask its umask, pam_group its groups, pam_systemd its
control group. The child that becomes the user keeps all that. The PAM process itself is to close the session later,
as root with room to work, and must not stand where the user's processes are counted and killed. Called by
session_process.py. A namespace or a login uid cannot be put back, and need not be: the keeper never had them.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator

from mep.boundary.log import Log
from mep.root.kernel import syscalls
from mep.root.pam.cgroup_membership import memberships, move_back

_OOM = "/proc/self/oom_score_adj"
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class Context:
    """The calling process as it was when this object was made."""

    def __init__(self) -> None:
        self._ids = os.getresuid(), os.getresgid(), os.getgroups()
        self._limits = {number: resource.getrlimit(number) for number in _LIMITS}
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._groups = memberships()
        self._keyring = syscalls.session_keyring()
        with open(_OOM, "rb") as file:
            self._oom = file.read()

    def keyring_changed(self) -> bool:
        """Tell whether this process has another session keyring than it had."""
        return syscalls.session_keyring() != self._keyring

    def restore(self, log: Log) -> None:
        """Put back what can be. What cannot is logged: the child has been forked by then."""
        for what, step in self._steps():
            try:
                step()
            except OSError as error:
                log.error("cannot put back what PAM changed", what=what, error=error.strerror)

    def _steps(self) -> Iterator[tuple[str, Callable[[], object]]]:
        uids, gids, groups = self._ids
        yield "limits", self._restore_limits
        yield "uid", lambda: os.setresuid(*uids)
        yield "gid", lambda: os.setresgid(*gids)
        yield "groups", lambda: os.setgroups(groups)
        yield "umask", lambda: os.umask(0o077)
        yield "directory", lambda: os.chdir("/")  # not in a home directory that is to be unmounted at the close
        yield "priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        yield "oom_score_adj", self._restore_oom
        yield "signals", lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ())
        yield "cgroup", lambda: move_back(self._groups)

    def _restore_limits(self) -> None:
        """A hard limit only rises with CAP_SYS_RESOURCE, which containers take away: then up to what it is."""
        for number, limits in self._limits.items():
            hard = resource.getrlimit(number)[1]
            try:
                resource.setrlimit(number, limits)
            except ValueError:  # Python's word for EPERM
                resource.setrlimit(number, (hard, hard))

    def _restore_oom(self) -> None:
        with open(_OOM, "r+b", buffering=0) as file:
            if file.read() != self._oom:
                file.write(self._oom)
