"""The socket on which the manager takes questions of the endpoint's administrator (`mep why`).

The monitor makes it, since the manager's account may not write to the runtime directory. Its mode lets only root (or
the owner of a single-user endpoint) connect. The monitor itself never reads from it.
"""

from __future__ import annotations

import contextlib
import os
import socket

from mep.boundary.runtime_files import MANAGER_SOCKET

_BACKLOG = 8


def manager_socket(directory: str) -> socket.socket:
    """Return a new listening socket named MANAGER_SOCKET in `directory`, in place of an earlier one. Raises OSError."""
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MANAGER_SOCKET, dir_fd=parent)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            made.bind(f"/proc/self/fd/{parent}/{MANAGER_SOCKET}")  # a socket's name is short; a home's may not be
            made.listen(_BACKLOG)
        except OSError:
            made.close()
            raise
        finally:
            os.umask(before)
        return made
    finally:
        os.close(parent)
