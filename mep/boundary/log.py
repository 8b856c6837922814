"""Log lines of the endpoint's processes: `UTC-time level process[pid]: text key=value` on standard error.

Standard library only, no threads, no handlers. Foreign text can't forge a line or a field: values are quoted unless
they are plain, and control characters are escaped (text.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from mep.boundary.text import field_text, printable

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_STDERR = 2
_MAX_LINE = 4096
"""A ready pipe takes this much without blocking (PIPE_BUF)."""


class Log:
    """The log of one process."""

    def __init__(self, process: str, level: str = "INFO") -> None:
        self._process = process
        self._threshold = LEVELS.index(level) if level in LEVELS else LEVELS.index("INFO")

    def debug(self, text: str, /, **fields: object) -> None:
        """Log a message for developers."""
        self.write("DEBUG", text, **fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Log a normal event."""
        self.write("INFO", text, **fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Log an event that an administrator may want to look at."""
        self.write("WARNING", text, **fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Log an event that an administrator must look at."""
        self.write("ERROR", text, **fields)

    def write(self, level: str, text: str, /, **fields: object) -> None:
        """Write one line of `level`, one of LEVELS."""
        if LEVELS.index(level) < self._threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        words = [f"{key}={field_text(value)}" for key, value in fields.items()]
        line = " ".join([stamp, level, f"{self._process}[{os.getpid()}]:", printable(text), *words])
        _emit((line + "\n").encode("utf-8", "backslashreplace"))


def copy_line(text: str) -> None:
    """Write a line from another process, with characters escaped that could split it in two."""
    _emit((printable(text) + "\n").encode("utf-8", "backslashreplace"))


def _emit(line: bytes) -> None:
    """Write to standard error unless that would block (a stopped terminal, a full pipe) or fail (a full disk).

    A lost line is better than a monitor that hangs.
    """
    ready = select.poll()
    ready.register(_STDERR, select.POLLOUT)
    with contextlib.suppress(OSError):
        if ready.poll(0):
            os.write(_STDERR, line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + b"\n")
