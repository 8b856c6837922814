"""Environment variables that differ from task to task, set without a leak.

glibc's setenv(3) keeps every distinct value for the life of the process: 97 bytes a task for an id. Here each variable
has one buffer, given to putenv(3) once and overwritten for each task. Called by task_environment.
"""

from __future__ import annotations

import ctypes
import os

_LEAST_BYTES = 128


class TaskVariables:
    """The variables of the running task. os.environ, getenv(3) and the programs that it starts all see them."""

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
            self._place(buffer)
            self._buffers[name] = buffer  # frees the one before, which nothing refers to any more
        else:
            buffer.value = text
        self._raw[name] = value

    def _place(self, buffer: ctypes.Array[ctypes.c_char]) -> None:
        if self._putenv(ctypes.cast(buffer, ctypes.c_char_p)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def unset(self, name: bytes) -> None:
        """Remove one variable, where it is set."""
        self._unsetenv(name)
        self._raw.pop(name, None)
        self._buffers.pop(name, None)
