"""Log lines of the endpoint's processes: `UTC-time level process[pid]: text key=value` on standard error.

Standard library only, no threads, no handlers. The line's format is `text.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import select

from mep.boundary.text import FieldLog, printable

_STDERR = 2
_MAX_LINE = 4096
"""A ready pipe takes this much without blocking (PIPE_BUF)."""


class Log(FieldLog):
    """The log of one process."""

    def __init__(self, process: str, level: str = "INFO") -> None:
        super().__init__(process, _emit, level)


def copy_line(text: str) -> None:
    """Write a line from another process, with characters escaped that could split it in two."""
    _emit(printable(text) + "\n")


def _emit(line: str) -> None:
    """Write to standard error unless that would block (a stopped terminal, a full pipe) or fail (a full disk).

    A lost line is better than a monitor that hangs.
    """
    data = line.encode("utf-8", "backslashreplace")
    ready = select.poll()
    ready.register(_STDERR, select.POLLOUT)
    with contextlib.suppress(OSError):
        if ready.poll(0):
            os.write(_STDERR, data if len(data) <= _MAX_LINE else data[: _MAX_LINE - 1] + b"\n")
