"""Log lines of the endpoint's processes: `UTC-time level process[pid]: text key=value` on standard error, or JSON.

Standard library only, no threads, no handlers. Both formats are `text.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import re
import select

from mep.boundary.text import HEAD, FieldLog, formatted, is_json, printable

_STDERR = 2
_MAX_LINE = 4096
"""A ready pipe takes this much without blocking (PIPE_BUF)."""
_STAMP, _LEVEL = r"[0-9T:.-]{10,30}Z", r"(?:DEBUG|INFO|WARNING|ERROR)"
_MEMBER = (
    rf', "(?!(?:{"|".join(HEAD[:4])})")[a-z_][a-z_0-9]*": '
    r'(?:"(?:[ !#-\[\]-~]|\\(?:["\\/bfnrt]|u[0-9a-f]{4}))*"|-?[0-9]+|true|false)'
)
_OWN = (
    rf"{_STAMP} {_LEVEL} %s\[[0-9]+\]: .*|"
    rf'{{"at": "{_STAMP}", "level": "{_LEVEL}", "process": "%s", "pid": [0-9]+(?:{_MEMBER})*}}'
)


class Log(FieldLog):
    """The log of one process."""

    def __init__(self, process: str, level: str = "INFO") -> None:
        super().__init__(process, _emit, level)


def own_line(process: str) -> re.Pattern[str]:
    """Return a pattern of whole lines by `process` itself. In JSON: a flat object that names no process twice."""
    return re.compile(_OWN % (re.escape(process), re.escape(process)), re.DOTALL)


def bare_line(process: str, text: str) -> None:
    """Write a text that is no line of a log, at a process's end; as JSON it is an event with time and process."""
    _emit((formatted(process, "ERROR", text, {}) if is_json() else text) + "\n")


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
