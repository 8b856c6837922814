"""systemd's notification protocol (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names, if any."""

from __future__ import annotations

import contextlib
import os
import socket


class _Opened:
    sock: socket.socket | None = None


def open_notify_socket() -> None:
    """Open the sending socket. An abstract NOTIFY_SOCKET can only be found in the current network namespace."""
    with contextlib.suppress(OSError):
        _Opened.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _Opened.sock.setblocking(False)


def notify(state: str) -> None:
    """Send `state` to the service manager, for instance READY=1. Do nothing if there is none or it doesn't listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if _Opened.sock is None or not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError):
        _Opened.sock.sendto(state.encode(), name)
