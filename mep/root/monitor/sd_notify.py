"""systemd's notification protocol (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names, if any."""

from __future__ import annotations

import contextlib
import os
import socket


class _Opened:
    sock: socket.socket | None = None


def open_notify_socket() -> None:
    """Open the socket to send from: an abstract NOTIFY_SOCKET is found in the network namespace of now alone."""
    with contextlib.suppress(OSError):
        _Opened.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _Opened.sock.setblocking(False)


def notify(state: str) -> None:
    """Tell the service manager `state`, for instance READY=1. Without one, and where it does not listen, nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if _Opened.sock is None or not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError):
        _Opened.sock.sendto(state.encode(), name)
