"""Sockets with a path in the file system, which the monitor's empty network namespace doesn't hide, and their peers.

Used by the monitor and keepers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

_UCRED = struct.Struct("iII")


class Peer(NamedTuple):
    """The process at the other end: the one that connected, or called listen(2). From the kernel (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Return the peer of a connection."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def listen(directory: str, name: str, kind: int = socket.SOCK_SEQPACKET, *, backlog: int = 8) -> socket.socket:
    """Return a listening socket, non-blocking, in place of an earlier one of that name. Raises OSError.

    Only this process's account may connect.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, name))
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        _at(directory, name, made.bind)
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def connect(directory: str, name: str) -> socket.socket:
    """Return a connection, non-blocking. Raises OSError, also if as many as the other side lets wait are waiting."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        _at(directory, name, made.connect)
    except OSError:
        made.close()
        raise
    return made


def _at(directory: str, name: str, call: Callable[[str], object]) -> None:
    """Make `call` with the socket's address, by way of a descriptor: an address has at most 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
