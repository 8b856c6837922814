"""The PAM process's state in the kernel: saved before PAM modules run, restored after the child is forked.

PAM modules change their caller: pam_limits its limits, pam_umask its umask, pam_group its groups, pam_systemd its
control group. The child that becomes the user keeps all of that. The PAM process closes the session later, as root,
and needs room to work. It must not stay in the group where the user's processes are counted and killed. Called by
session_process.py. A namespace or a login uid can't be restored, and need not be: the keeper never had them. Control
groups of cgroup v2, of v1 and of both at once are restored.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator

from mep.boundary.log import Log
from mep.root.kernel import syscalls

_OOM = "/proc/self/oom_score_adj"
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))


class Context:
    """The state of the calling process at the time this object was created."""

    def __init__(self) -> None:
        self._ids = os.getresuid(), os.getresgid(), os.getgroups()
        self._limits = {number: resource.getrlimit(number) for number in _LIMITS}
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._groups = _memberships()
        self._keyring = syscalls.session_keyring()
        with open(_OOM, "rb") as file:
            self._oom = file.read()

    def keyring_changed(self) -> bool:
        """Tell whether this process's session keyring has changed."""
        return syscalls.session_keyring() != self._keyring

    def restore(self, log: Log) -> None:
        """Restore as much as possible. Failures are only logged, because the child has already been forked."""
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
        yield "directory", lambda: os.chdir("/")  # not a home directory, which the close may unmount
        yield "priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        yield "oom_score_adj", self._restore_oom
        yield "signals", lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ())
        yield "cgroup", lambda: _move_back(self._groups)

    def _restore_limits(self) -> None:
        """Raising a hard limit needs CAP_SYS_RESOURCE, which containers drop. Then raise the soft limit up to it."""
        for number, limits in self._limits.items():
            hard = resource.getrlimit(number)[1]
            try:
                resource.setrlimit(number, limits)
            except ValueError:  # Python raises this for EPERM
                resource.setrlimit(number, (hard, hard))

    def _restore_oom(self) -> None:
        with open(_OOM, "r+b", buffering=0) as file:
            if file.read() != self._oom:
                file.write(self._oom)


def _memberships() -> dict[str, str]:
    """Return the group of this process in each hierarchy: controllers (empty for v2) to path."""
    found = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found[controllers] = path
    return found


def _move_back(before: dict[str, str]) -> None:
    """Enter those groups of `before` that this process is no longer in."""
    now = _memberships()
    for controllers, path in before.items():
        if now.get(controllers, path) != path and (directory := _directory(controllers, path)):
            with open(os.path.join(directory, "cgroup.procs"), "w") as file:
                file.write(str(os.getpid()))


def _directory(controllers: str, path: str) -> str:
    """Return the mount point of the hierarchy's group `path`; empty if it isn't mounted."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            root, point = left.split(" ")[3:5]
            if _is_mount_of(controllers, kind, options.strip().split(",")) and path.startswith(root.rstrip("/")):
                return point + path[len(root.rstrip("/")) :]
    return ""


def _is_mount_of(controllers: str, kind: str, options: list[str]) -> bool:
    if not controllers:
        return kind == "cgroup2"
    return kind == "cgroup" and set(controllers.split(",")) <= set(options)
