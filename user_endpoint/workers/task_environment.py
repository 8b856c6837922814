"""Sets up a task's environment and cleans up after the task: its worker runs others after it.

Each task finds its own id in GC_TASK_UUID and, where the site wants that, a directory of its own, which is also in
GC_TASK_SANDBOX_DIR. Afterwards directory, umask, environment, signal handlers and timers are as they were. A
change that can't be undone (threads, closed descriptors, lowered limits) ends the worker once it has answered: another
takes a millisecond to fork. Called by the worker around each task.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # no stub; `signal` itself costs ten times as much
import contextlib
import os
import resource
import signal
import sys

TASK_VARIABLE = "GC_TASK_UUID"
SANDBOX_VARIABLE = "GC_TASK_SANDBOX_DIR"
_LIMITS = tuple(getattr(resource, name) for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE",
                                                     "RLIMIT_NOFILE", "RLIMIT_STACK"))  # fmt: skip
_SIGNALS = tuple(number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP))


class Tidy:
    """A worker's state as it was before its first task."""

    def __init__(self, *, sandbox: bool) -> None:
        self._sandbox = sandbox
        os.environ.pop(SANDBOX_VARIABLE, None)
        self._environment = dict(os.environ)
        self._raw = _raw_environment().copy()
        self._directory, self._path = self._open_directory()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._limits = list(map(resource.getrlimit, _LIMITS))
        self._recursion = sys.getrecursionlimit()
        self._streams = (sys.stdin, sys.stdout, sys.stderr)

    @staticmethod
    def _open_directory() -> tuple[int, str]:
        try:
            return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), os.getcwd()
        except OSError:  # the directory is gone, or may not be entered: tasks cannot do without one, but may try
            return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), "/"

    def before(self, task_id: str, variables: dict[str, str] | None) -> None:
        """Set up the task's own environment and directory. Raises OSError if the directory cannot be made."""
        os.environ[TASK_VARIABLE] = task_id
        if variables:
            os.environ.update(variables)
        if self._sandbox:
            place = f"{self._path}/{task_id}"
            os.makedirs(place, mode=0o700, exist_ok=True)  # noqa: PTH103 - no pathlib here
            os.chdir(place)
            os.environ[SANDBOX_VARIABLE] = place

    def after(self) -> bool:
        """Undo the changes that can be undone; return whether those were all. Raises OSError if it is broken."""
        self._restore_environment()
        os.fchdir(self._directory)
        os.umask(self._umask)
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
        if list(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)
        if sys.getrecursionlimit() != self._recursion:
            sys.setrecursionlimit(self._recursion)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        return self._is_whole()

    def _restore_environment(self) -> None:
        os.environ.pop(TASK_VARIABLE, None)
        if _raw_environment() == self._raw:
            return
        for name in [name for name in os.environ if name not in self._environment]:
            with contextlib.suppress(KeyError):
                del os.environ[name]
        os.environ.update(self._environment)

    def _is_whole(self) -> bool:
        for descriptor in (0, 1, 2):
            os.fstat(descriptor)
        threading = sys.modules.get("threading")
        if threading is not None and threading.active_count() > 1:
            return False
        return list(map(resource.getrlimit, _LIMITS)) == self._limits


def _raw_environment() -> dict[bytes, bytes]:
    """Return the dictionary inside os.environ, to compare: a copy by the public API costs twenty times as much."""
    found: dict[bytes, bytes] = getattr(os.environ, "_data")  # noqa: B009 - not part of the public face
    return found
