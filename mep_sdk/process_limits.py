"""Tells whether a function failed at a limit on processes and threads: the system's own message doesn't help.

"Resource temporarily unavailable" is what fork says, and "can't start new thread" Python's threads. The limits
are the control group's (pids.events, which is world-readable; pids.max of it or of one above) and RLIMIT_NPROC. If
neither shows a refusal, neither is blamed. Called by task_runner.py when a function has failed so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from mep_wire.errors import TooManyProcesses

_ROOT = "/sys/fs/cgroup"
_LEVELS = 3
"""The groups that may set the limit: the user endpoint's, the account's, the endpoint's."""
_NO_THREAD = "can't start new thread"
_DEPTH = 8
"""How many causes of an exception to follow."""


class ProcessWatch:
    """Watches for processes refused by the limits of this process's control group."""

    def __init__(self, membership: str = "/proc/self/cgroup", root: str = _ROOT) -> None:
        self._membership, self._root = membership, root
        self._seen: dict[str, int] = {}

    def explain(self, error: BaseException) -> str:
        """Return that a limit on processes is behind `error`, which its function ended with; empty where it is not.

        A refusal that was there before the last failure is not taken for a new one.
        """
        if not _refused(error):
            return ""
        limit = self._group_limit() or _account_limit()
        return f"{TooManyProcesses.code}: {TooManyProcesses(limit=limit).text}" if limit else ""

    def _group_limit(self) -> str:
        directories = self._directories()
        refused = [each for each in directories if self._rose(each)]
        limits = [value for each in directories if (value := _read(f"{each}/pids.max").strip()).isdigit()]
        return f"limit {min(map(int, limits))}" if refused and limits else ""

    def _directories(self) -> list[str]:
        """Return the group of this process and those above it, as far as they can be limits of a user endpoint's."""
        for line in _read(self._membership).splitlines():
            if line.startswith("0::/") and (parts := [part for part in line[4:].split("/") if part]):
                lowest = range(len(parts), max(0, len(parts) - _LEVELS), -1)
                return ["/".join([self._root, *parts[:count]]) for count in lowest]
        return []

    def _rose(self, directory: str) -> bool:
        for line in _read(f"{directory}/pids.events").splitlines():
            name, _, value = line.partition(" ")
            if name == "max":
                before, self._seen[directory] = self._seen.get(directory, 0), int(value)
                return int(value) > before
        return False


def _refused(error: BaseException | None) -> bool:
    """Whether `error`, or one of its causes, can be a refused process or thread. Only exceptions of the system's own
    types are inspected: a class of the person's may answer as it likes."""
    for _ in range(_DEPTH):
        if error is None:
            return False
        if type(error) is BlockingIOError and error.errno == errno.EAGAIN:
            return True
        if type(error) is RuntimeError and error.args == (_NO_THREAD,):
            return True
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return False


def _account_limit() -> str:
    """Return RLIMIT_NPROC where the account has as many by now."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY or _tasks_of(os.getuid()) < limit:
        return ""
    return f"limit of your account {limit}"


def _tasks_of(uid: int) -> int:
    """Return how many processes and threads an account has, as RLIMIT_NPROC counts."""
    found = 0
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                found += int(_read(f"{entry.path}/stat").rpartition(")")[2].split()[17])
    return found


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""
