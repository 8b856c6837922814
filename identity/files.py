"""Reads the files that a mapping depends on, and remembers what each was like, so that a change is noticed.

A file's signature is what stat(2) says of what the path leads to: device, inode, size and both times. So a change
in place, a replacement by rename and a symbolic link that now leads elsewhere all count.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 16 * 1024 * 1024
Signature = tuple[int, int, int, int, int] | None
"""None is for a file that is not there or cannot be looked at."""


class FileRefused(Exception):
    """The file cannot be used; the text says why."""


class Files:
    """The files that were read for one load, with the signature that each had when it was read."""

    def __init__(self) -> None:
        self.signatures: dict[Path, Signature] = {}

    def read(self, path: Path, *, secret: bool = False) -> bytes:
        """Return what the file holds. A `secret` one must be readable by this account alone. Raises FileRefused."""
        self.signatures[path] = None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise FileRefused(f"{path} cannot be read: {_reason(error)}") from None
        try:
            status = os.fstat(descriptor)
            self.signatures[path] = _signature(status)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefused(f"{path} is not a regular file")
            if secret:
                _check_private(path, status)
            return _content(path, descriptor)
        finally:
            os.close(descriptor)

    def changed(self) -> bool:
        """Return whether any of the files is no longer what was read."""
        return any(signature_of(path) != signature for path, signature in self.signatures.items())


def _content(path: Path, descriptor: int) -> bytes:
    try:
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {_reason(error)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FileRefused(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data


def signature_of(path: Path) -> Signature:
    """Return the signature of the file that `path` leads to now."""
    try:
        return _signature(path.stat())
    except (OSError, ValueError):
        return None


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_private(path: Path, status: os.stat_result) -> None:
    """Refuse a file that others may read: it is ours or root's, and its group, if it may read, is ours.

    Root, which only checks files for the mapper's account, leaves the group to that.
    """
    euid = os.geteuid()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o037 or (mode & 0o040 and euid != 0 and status.st_gid != os.getegid()):
        raise FileRefused(
            f"{path} has mode {mode:04o} and group {status.st_gid}: the mapper's account alone may read it; "
            "make it root's with the mapper's group, mode 0640"
        )
    if euid != 0 and status.st_uid not in (0, euid):
        raise FileRefused(f"{path} belongs to uid {status.st_uid}, neither root nor the mapper's account")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
