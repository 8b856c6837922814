"""Sets up a task's environment and cleans up after the task: its worker runs others after it.

Each task finds its own id in GC_TASK_UUID and, where the site wants that, a directory of its own, which is also in
GC_TASK_SANDBOX_DIR. Afterwards the processes that it has left are ended, and directory, environment and the rest of the
process's state (see process_state) are as they were. A change that cannot be undone ends the worker once it has
answered. Called by the worker around each task.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
from typing import Any

from user_endpoint.run_directory import make_below
from user_endpoint.workers.descendants import has_children, kill_descendants, reap_ended
from user_endpoint.workers.process_state import ProcessState, read_environment

TASK_VARIABLE = b"GC_TASK_UUID"
SANDBOX_VARIABLE = b"GC_TASK_SANDBOX_DIR"
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_S = 2.0
_LEAST_BYTES = 128


class TaskEnvironment:
    """A worker's state as it was before its first task."""

    def __init__(self, *, directory: str, run_directory: str, sandbox: bool) -> None:
        """`directory` is where tasks run; empty for where this process is. It is made where it is missing, but not
        the run directory."""
        self._sandbox = sandbox
        self._environ = os.environ
        for name in (TASK_VARIABLE, SANDBOX_VARIABLE):
            self._environ.pop(os.fsdecode(name), None)
        self._raw = _raw_environment(self._environ)
        self._environment = self._raw.copy()
        self._variables = TaskVariables(self._raw)
        self._given: dict[bytes, bytes | None] = {}
        self._run_directory, self._directory, self._path = run_directory, -1, directory or _here()
        self._entered = ""
        self._main = sys.modules["__main__"]
        self._main_was = vars(self._main).copy()
        self._state = ProcessState()

    def before(self, task_id: str, variables: dict[str, str] | None) -> None:
        """Set up the task's own environment and directory. Raises OSError if the directory cannot be made."""
        self._enter()
        self._set(TASK_VARIABLE, os.fsencode(task_id))
        for name, value in (variables or {}).items():
            encoded = os.fsencode(name)
            self._given[encoded] = self._environment.get(encoded)
            self._set(encoded, os.fsencode(value))
        if self._sandbox:
            directory = f"{self._path}/{task_id}"
            os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103 - no pathlib here
            os.chdir(directory)
            self._set(SANDBOX_VARIABLE, os.fsencode(directory))

    def _enter(self) -> None:
        """Be in the directory of tasks, which a task may have removed, or a site that clears its scratch space."""
        if self._directory >= 0:
            with contextlib.suppress(OSError):
                if os.getcwd() == self._entered:  # fails where it has been removed
                    return
            with contextlib.suppress(OSError):
                os.fchdir(self._directory)
                os.getcwd()
                return
        try:
            os.chdir(self._path)
        except FileNotFoundError:
            make_below(self._run_directory, self._path)
            os.chdir(self._path)
        if self._directory >= 0:
            os.close(self._directory)
        self._entered = os.getcwd()
        self._directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _set(self, name: bytes, value: bytes) -> None:
        self._variables.set(name, value)
        self._environment[name] = value

    def after(self) -> bool:
        """Undo the changes that can be undone; return whether those were all. Raises OSError where one cannot be."""
        whole = not (self._state.touched and has_children()) or _end_children()
        if os.environ is not self._environ or self._raw != self._environment:
            self._restore_environment()
        if self._given:
            self._forget_variables()
        sys.modules["__main__"] = self._main
        if vars(self._main) != self._main_was:
            vars(self._main).clear()
            vars(self._main).update(self._main_was)
        return self._state.restore() and whole

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003 - the object that the task has replaced
        wanted = self._environment
        for name in [name for name in self._raw if name not in wanted]:
            self._variables.unset(name)
        own = (TASK_VARIABLE, SANDBOX_VARIABLE, *self._given)
        for name in own:
            self._variables.unset(name)  # the task may have given the C library another string
        for name, value in list(wanted.items()):
            if name in own:
                self._variables.set(name, value)
            elif self._raw.get(name) != value:
                self._environ[os.fsdecode(name)] = os.fsdecode(value)
        read_environment()

    def _forget_variables(self) -> None:
        for name, before in self._given.items():
            if before is None:
                self._variables.unset(name)
                del self._environment[name]
            else:
                self._set(name, before)
        self._given = {}


def _end_children() -> bool:
    """End what the task has left running. Return whether that was no more than multiprocessing's own helper."""
    tracker = getattr(sys.modules.get(_TRACKER), "_resource_tracker", None)
    helper = getattr(tracker, "_pid", None)
    reap_ended()
    killed = kill_descendants(os.getpid(), () if helper is None else (helper,))
    if tracker is not None and helper is not None:
        _let_tracker_end(tracker, helper)
    reap_ended()
    return not killed and not has_children()


def _let_tracker_end(tracker: Any, pid: int) -> None:
    """Let the process end that removes shared memory which no process has removed; its end is end-of-file for it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        os.close(tracker._fd)  # noqa: SLF001 - no public way leaves the next task a working one
        tracker._fd = tracker._pid = None  # noqa: SLF001 - as above
        ended = os.pidfd_open(pid)
        try:
            select.select([ended], [], [], _TRACKER_S)
        finally:
            os.close(ended)


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory is gone, or may not be entered: tasks cannot do without one, but may try
        return "/"


def _raw_environment(environ: os._Environ[str]) -> dict[bytes, bytes]:
    """Return the dictionary inside os.environ, to compare: a copy by the public API costs twenty times as much."""
    found: dict[bytes, bytes] = getattr(environ, "_data")  # noqa: B009 - not part of the public face
    return found


class TaskVariables:
    """The variables of the running task, set without a leak. os.environ, getenv(3) and its programs see them.

    glibc's setenv(3) keeps every distinct value for the life of the process: 97 bytes a task for an id. Here each
    variable has one buffer, given to putenv(3) once and overwritten for each task.
    """

    def __init__(self, raw: dict[bytes, bytes]) -> None:
        """`raw` is the dictionary inside os.environ."""
        self._raw = raw
        self._buffers: dict[bytes, ctypes.Array[ctypes.c_char]] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._putenv, self._unsetenv = libc.putenv, libc.unsetenv
        self._putenv.argtypes = self._unsetenv.argtypes = (ctypes.c_char_p,)

    def set(self, name: bytes, value: bytes) -> None:
        """Set one variable. Raises OSError where there is no memory."""
        text = b"%b=%b" % (name, value)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) <= len(text):
            buffer = ctypes.create_string_buffer(text, max(_LEAST_BYTES, 2 * len(text)))
            self._put(buffer)
            self._buffers[name] = buffer  # frees the one before, which nothing refers to any more
        else:
            buffer.value = text
        self._raw[name] = value

    def _put(self, buffer: ctypes.Array[ctypes.c_char]) -> None:
        if self._putenv(ctypes.cast(buffer, ctypes.c_char_p)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def unset(self, name: bytes) -> None:
        """Remove one variable, where it is set."""
        self._unsetenv(name)
        self._raw.pop(name, None)
        self._buffers.pop(name, None)
