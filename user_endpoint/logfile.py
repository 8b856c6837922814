"""Files of bounded size for what a user endpoint and its workers have to say.

Python's logging costs 13 ms and a megabyte at start, which is more than the rest of this process has to say.
"""

from __future__ import annotations

import contextlib
import os
import time

LIMIT_BYTES = 1024 * 1024
"""A log is moved aside to NAME.1 (replacing it) when it has grown to this."""


def escape(text: str) -> str:
    """Return `text` on one line, with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class BoundedFile:
    """An append-only file that never takes more than twice `limit` bytes on the disk. A full disk loses lines.

    What others write to its descriptor counts as well, once `write` or `trim` is called.
    """

    def __init__(self, path: str, limit: int = LIMIT_BYTES) -> None:
        self._path, self._limit = path, limit
        self._also: tuple[int, ...] = ()
        self._descriptor = self._open()

    def stand_for(self, *descriptors: int) -> None:
        """Make these descriptors (1 and 2) write to this file, also after it was moved aside. Raises OSError."""
        self._also = descriptors
        for each in descriptors:
            os.dup2(self._descriptor, each)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def fileno(self) -> int:
        """The descriptor now written to."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Append `data`. Never raises: there is nobody to tell."""
        with contextlib.suppress(OSError):
            self.trim(len(data))
            os.write(self._descriptor, data[: self._limit])

    def trim(self, more: int = 0) -> None:
        """Move the file aside if it would be too large with `more` bytes. Raises OSError."""
        size = os.fstat(self._descriptor).st_size
        if not size or size + more <= self._limit:
            return
        os.truncate(self._descriptor, min(size, self._limit))
        os.rename(self._path, self._path + ".1")  # noqa: PTH104  # pathlib costs 9 ms at start
        fresh = self._open()
        os.dup2(fresh, self._descriptor, inheritable=False)
        for each in self._also:
            os.dup2(fresh, each)
        os.close(fresh)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class Log:
    """Plain lines: `UTC-time level mep-uep[pid]: text key=value`."""

    def __init__(self, out: BoundedFile, *, debug: bool = False) -> None:
        self._out, self._debug = out, debug

    def info(self, text: str, /, **fields: object) -> None:
        """Something that an administrator wants to know."""
        self._line("INFO", text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        """Something that is not as it should be, and that this process goes on with."""
        self._line("WARNING", text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        """Something that ends this process, or a task, or a link."""
        self._line("ERROR", text, fields)

    def debug(self, text: str, /, **fields: object) -> None:
        """Something that only the author of a template or of this code wants to know."""
        if self._debug:
            self._line("DEBUG", text, fields)

    def trim(self) -> None:
        """Keep the file in its bounds whatever other code has printed to it."""
        with contextlib.suppress(OSError):
            self._out.trim()

    def _line(self, level: str, text: str, fields: dict[str, object]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        extra = "".join(f" {key}={escape(str(value))}" for key, value in fields.items())
        self._out.write(f"{stamp} {level} mep-uep[{os.getpid()}]: {escape(text)}{extra}\n".encode())
