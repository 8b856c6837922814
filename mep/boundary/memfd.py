"""Sealed memfds: carry documents across the boundary without being read on the way.

A sealed memfd can't change after it was checked and can't block its reader. It can't be a device, a pipe or a file
on a hostile file system. `read_sealed` accepts nothing else (memfd_create(2), fcntl(2) F_ADD_SEALS).
"""

from __future__ import annotations

import fcntl
import os

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE = 1, 2, 4, 8
_ALL = _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW | _SEAL_WRITE


class NotSealed(Exception):
    """A descriptor is not a memfd with every seal, or holds more than the reader allows."""


def sealed_memfd(name: str, data: bytes) -> int:
    """Return a descriptor (close-on-exec) of a new memfd with `data`, sealed against every change."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def seal(descriptor: int) -> None:
    """Seal the memfd against every change and go back to its start. Raises OSError."""
    fcntl.fcntl(descriptor, _F_ADD_SEALS, _ALL)
    os.lseek(descriptor, 0, os.SEEK_SET)


def check_sealed(descriptor: int, cap: int) -> int:
    """Return the size of the sealed memfd. Raises NotSealed if it isn't one or is larger than `cap` bytes."""
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError as error:
        raise NotSealed(f"not a memfd: {error.strerror}") from None
    if seals & _ALL != _ALL:
        raise NotSealed(f"seals {seals:#x} of {_ALL:#x}")
    size = os.fstat(descriptor).st_size
    if size > cap:
        raise NotSealed(f"{size} bytes, cap {cap}")
    return size


def read_sealed(descriptor: int, cap: int) -> bytes:
    """Return the whole content of a sealed memfd of at most `cap` bytes. Raises NotSealed."""
    return os.pread(descriptor, check_sealed(descriptor, cap), 0)
