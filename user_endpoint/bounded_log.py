"""Log files of bounded size for a user endpoint and its workers.

Python's logging costs 13 ms and a megabyte at start, too much for the few lines that this process logs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from mep_wire.text import FieldLog, json_line, printable_lines

LIMIT_BYTES = 1024 * 1024
"""A log is moved aside to NAME.1 (replacing it) when it has grown to this."""


MAX_HALF_LINE = 4096
"""So much of a line is waited for; a longer one becomes two."""
MAX_JSON_LINE = 64 * 1024
"""Characters of a line of JSON, which has room for MAX_HALF_LINE characters, each as two escapes."""


def escape_output(data: bytes) -> bytes:
    """Return the output of a task or library as lines without control characters; the last one ends with a newline."""
    if not data:
        return b""
    text = printable_lines(data.decode("utf-8", "backslashreplace"))
    return (text if text.endswith("\n") else text + "\n").encode()


def json_output(data: bytes) -> bytes:
    """Return the output of a task or library as lines of JSON: those of `library_log` as they are."""
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    return "".join(made + "\n" for line in lines for made in _as_json(line)).encode("ascii", "backslashreplace")


def _as_json(line: str) -> list[str]:
    if line.startswith('{"at": "') and line.isascii() and line.isprintable() and _is_object(line):
        return [line]
    parts = [line[at : at + MAX_HALF_LINE] for at in range(0, len(line), MAX_HALF_LINE)]
    return [json_line("mep-uep", "INFO", "output", {"line": part}, limit=MAX_JSON_LINE) for part in parts]


def _is_object(line: str) -> bool:
    import json  # for this format alone

    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class BoundedFile:
    """An append-only file that never takes more than twice `limit` bytes on the disk. A full disk loses lines.

    Other processes and libraries print to descriptors that `stand_for` has given them. That output goes to NAME.raw,
    and `trim` copies it into the file, line by line and escaped. A pipe would need no NAME.raw, but a process
    that reads its own output hangs once the pipe is full.
    """

    def __init__(
        self, path: str, limit: int = LIMIT_BYTES, *, escape: Callable[[bytes], bytes] = escape_output
    ) -> None:
        """`escape` makes whole lines of others' output."""
        self._path = path
        self._raw_limit = limit // 8
        self._limit = limit - self._raw_limit
        self._escape = escape
        self._raw, self._copied = -1, 0
        self._descriptor = self._open(path)

    def stand_for(self, *descriptors: int) -> None:
        """Copy the output on these descriptors (1 and 2) to this file. Raises OSError."""
        self._raw = self._open(self._path + ".raw", os.O_RDWR)
        self._collect()  # the last words of a process that was killed
        for each in descriptors:
            os.dup2(self._raw, each)

    def _open(self, path: str, mode: int = os.O_WRONLY) -> int:
        return os.open(path, mode | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def fileno(self) -> int:
        """The descriptor now written to."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Append `data`. Never raises, since an error could not be reported anywhere."""
        with contextlib.suppress(OSError):
            self.trim(len(data))
            os.write(self._descriptor, data[: self._limit])

    def trim(self, more: int = 0) -> None:
        """Copy others' output; move the file aside if `more` bytes would make it too large. Raises OSError."""
        if self._raw >= 0:
            self._collect()
        self._make_room(more)

    def _make_room(self, more: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if not size or size + more <= self._limit:
            return
        os.truncate(self._descriptor, min(size, self._limit))
        os.rename(self._path, self._path + ".1")  # noqa: PTH104  # pathlib costs 9 ms at start
        fresh = self._open(self._path)
        os.dup2(fresh, self._descriptor, inheritable=False)
        os.close(fresh)

    def _collect(self, *, all_of_it: bool = False) -> None:
        """Copy the whole lines in NAME.raw, and the half line at its end with `all_of_it` or where it is long."""
        size = os.fstat(self._raw).st_size
        if size <= self._copied:
            return
        data = os.pread(self._raw, min(size - self._copied, self._limit), self._copied)
        whole = data.rfind(b"\n") + 1
        taken = len(data) if all_of_it or len(data) - whole > MAX_HALF_LINE else whole
        text = self._escape(data[:taken])
        if len(text) > self._limit and self._escape is not escape_output:
            text = text[: text.rfind(b"\n", 0, self._limit) + 1]  # no line of JSON is cut
        if text:
            self._make_room(len(text))
            os.write(self._descriptor, text[: self._limit])
        self._copied += taken
        if size - self._copied > self._limit or (size > self._raw_limit and self._copied == size):
            os.ftruncate(self._raw, 0)  # output printed just now may be lost
            self._copied = 0

    def close(self) -> None:
        """Copy the rest of others' output, and close."""
        if self._raw >= 0:
            with contextlib.suppress(OSError):
                self._collect(all_of_it=True)
                os.ftruncate(self._raw, 0)
            os.close(self._raw)
            self._raw = -1
        os.close(self._descriptor)


class BoundedLog(FieldLog):
    """The log of a user endpoint, in a file."""

    def __init__(self, out: BoundedFile, *, debug: bool = False) -> None:
        super().__init__("mep-uep", self._append, "DEBUG" if debug else "INFO")
        self._out = out

    def trim(self) -> None:
        """Keep the file in its bounds whatever other code has printed to it."""
        with contextlib.suppress(OSError):
            self._out.trim()

    def _append(self, line: str) -> None:
        self._out.write(line.encode("utf-8", "backslashreplace"))
