"""Log lines of the endpoint's processes: `UTC-time level process[pid]: text key=value` on standard error.

Standard library only, no threads, no handlers. Foreign text in a field cannot forge a line or a field: what is
not plain is written as a JSON string.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_STDERR = 2
_MAX_LINE = 4096
"""A pipe that is ready takes as much without blocking (PIPE_BUF)."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+,%*")


def field_text(value: object) -> str:
    """Return `value` as it stands after `key=`."""
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text)


class Log:
    """The log of one process."""

    def __init__(self, process: str, level: str = "INFO") -> None:
        self._process = process
        self._threshold = LEVELS.index(level) if level in LEVELS else LEVELS.index("INFO")

    def debug(self, text: str, /, **fields: object) -> None:
        """Write for developers."""
        self.write("DEBUG", text, **fields)

    def info(self, text: str, /, **fields: object) -> None:
        """Write what happened."""
        self.write("INFO", text, **fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Write what an administrator may want to look at."""
        self.write("WARNING", text, **fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Write what an administrator must look at."""
        self.write("ERROR", text, **fields)

    def write(self, level: str, text: str, /, **fields: object) -> None:
        """Write one line of `level`, one of LEVELS."""
        if LEVELS.index(level) < self._threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        words = [f"{key}={field_text(value)}" for key, value in fields.items()]
        line = " ".join([stamp, level, f"{self._process}[{os.getpid()}]:", _flat(text), *words])
        _emit((line + "\n").encode("utf-8", "backslashreplace"))


def _flat(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def copy_line(text: str) -> None:
    """Write a line that another process has made. What could make two of it is escaped."""
    _emit((_flat(text) + "\n").encode("utf-8", "backslashreplace"))


def _emit(line: bytes) -> None:
    """Write to standard error unless that would block (a stopped terminal, a full pipe) or fail (a full disk).

    A line that is lost is better than a monitor that hangs.
    """
    ready = select.poll()
    ready.register(_STDERR, select.POLLOUT)
    with contextlib.suppress(OSError):
        if ready.poll(0):
            os.write(_STDERR, line if len(line) <= _MAX_LINE else line[: _MAX_LINE - 1] + b"\n")
