"""The descriptors that the keeper leaves a user endpoint: 3 verified start, 4 bundle, 5 report channel, 6 account.

The contents of 3 and 4 were sealed before the keeper saw them, and 6 by the keeper. The seals are checked again here.
No process of the same user can change what is read. Called by main.
"""

from __future__ import annotations

import fcntl
import os
import stat

START_FD, BUNDLE_FD, REPORT_FD, ACCOUNT_FD = 3, 4, 5, 6
MAX_START_BYTES = 512 * 1024
MAX_BUNDLE_BYTES = 8 * 1024 * 1024 + 64 * 1024
MAX_ACCOUNT_BYTES = 8 * 1024 * 1024
_F_GET_SEALS = 1034
_ALL_SEALS = 0xF  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, fcntl(2)


class NotInherited(Exception):
    """A descriptor does not come from a keeper: this process was not started by one."""


def read_and_close(descriptor: int, cap: int) -> bytes:
    """Return the content of a sealed memfd, which is closed. Raises NotInherited."""
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        if seals & _ALL_SEALS != _ALL_SEALS:
            raise NotInherited(f"descriptor {descriptor}: seals {seals:#x} of {_ALL_SEALS:#x}")
        if size > cap:
            raise NotInherited(f"descriptor {descriptor}: {size} bytes, cap {cap}")
        return os.pread(descriptor, size, 0)
    except OSError as error:
        raise NotInherited(f"descriptor {descriptor}: {error.strerror}") from None
    finally:
        close_quietly(descriptor)


def read_account() -> bytes:
    """Return the keeper's document on the account; empty from a keeper of an older version. Raises NotInherited."""
    try:
        os.fstat(ACCOUNT_FD)
    except OSError:
        return b""
    return read_and_close(ACCOUNT_FD, MAX_ACCOUNT_BYTES)


def close_quietly(descriptor: int) -> None:
    """Close a descriptor that may not be open."""
    try:
        os.close(descriptor)
    except OSError:
        return


def check_report_channel(descriptor: int) -> int:
    """Return the report channel, made close-on-exec and non-blocking. Raises NotInherited."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise NotInherited(f"descriptor {descriptor}: not a socket")
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
    except OSError as error:
        raise NotInherited(f"descriptor {descriptor}: {error.strerror}") from None
    return descriptor
