"""The audit log: one JSON object per line, appended for every start, refusal and end of a user endpoint.

Values from outside (identities, reasons) are stored in JSON strings. Control characters and non-ASCII characters are
escaped, so a value can't forge a line. Called by the monitor alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable

from mep.boundary.file_trust import descriptor_path, ours
from mep.boundary.log import Log


def open_appending(path: str) -> int:
    """Return a descriptor that appends to the record file at `path`, which is created if missing.

    Raises OSError, also if the file or a directory above it isn't trusted.
    If a crash left half a record at the end of the file, the next record starts on a new line.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = ours().open(path, flags)
    try:
        if not _ends_a_line(descriptor):
            with contextlib.suppress(OSError):  # a full disk is reported when the next record is written
                os.write(descriptor, b"\n")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _ends_a_line(appending: int) -> bool:
    descriptor = os.open(descriptor_path(appending), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
    finally:
        os.close(descriptor)


class Audit:
    """The open audit log; an empty path means none."""

    def __init__(self, path: str, log: Log) -> None:
        self._path, self._log = path, log
        self.observe: Callable[[str, dict[str, object]], None] = lambda _event, _fields: None
        """Called with each record, written or not."""
        self._descriptor = -1
        self._torn = False
        self.reopen()

    def reopen(self, path: str | None = None) -> None:
        """Reopen the file by name, after logrotate has moved it, or open another one. Raises OSError."""
        if path is not None:
            self._path = path
        if not self._path:
            return
        descriptor = open_appending(self._path)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor

    def write(self, event: str, **fields: object) -> bool:
        """Append a record of `event`. If that fails, log an error and return False."""
        self.observe(event, fields)
        if self._descriptor < 0:
            return False
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = json.dumps({"time": stamp, "event": event, **fields}).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            self._log.error("the audit log cannot be written", path=self._path, error=error.strerror)
            return False
        # If the disk is full, part of a record may have been written: start the next one on a new line.
        self._torn = written < len(line)
        if self._torn:
            self._log.error("the audit log cannot be written", path=self._path, error="the disk is full")
        return not self._torn
