"""A keeper's link to the monitor: the channel that it inherited, and the socket at which a later monitor connects.

The keeper holds the lock of its directory from here on, for life. A process with another uid that connects is turned
away (SO_PEERCRED); a later monitor takes the place of the former one. Trusts the monitor's messages as far as the
channel checks them. Called by keeper.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

from mep.boundary.channel import Channel, DescriptorsLost
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.boundary.messages import Message
from mep.boundary.runtime_files import KEEPER_LOCK, KEEPER_SOCKET
from mep.root.kernel.unix_socket import listen, peer_of


class MonitorLink:
    """The messages to and from the monitor, which may be gone and come back."""

    def __init__(self, channel: Channel, log: Log) -> None:
        self._channel: Channel | None = channel
        self._log = log
        self._lock = -1
        self._listener: socket.socket | None = None
        self.is_new = False
        """Whether the monitor is a later one. It has adopted this keeper, and knows nothing of a start."""

    def open(self, directory: str) -> None:
        """Lock `directory`, and listen there. Raises OSError.

        The lock is this process's own: its children don't have it. To close any descriptor of the file frees it.
        """
        self._lock = os.open(f"{directory}/{KEEPER_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._listener = listen(directory, KEEPER_SOCKET)

    @property
    def is_first(self) -> bool:
        """Whether the monitor that forked this keeper is still there."""
        return self._channel is not None and not self.is_new

    def descriptors(self) -> list[int]:
        """Return the descriptors to poll for messages."""
        return [one.fileno() for one in (self._listener, self._channel) if one is not None]

    def send(self, message: Message) -> None:
        """Send `message`, if a monitor runs."""
        if self._channel is not None:
            try:
                self._channel.send(message)
            except OSError:
                self._lose()

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors; None if there is none now."""
        self._accept()
        if self._channel is None:
            return None
        try:
            received = self._channel.receive()
        except (BlockingIOError, DescriptorsLost):
            return None
        except (OSError, BoundaryViolation):
            received = None
        if received is None:
            self._lose()
        return received

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if (uid := peer_of(connection).uid) != os.geteuid():
                self._log.error("another account connected to a keeper: turned away", uid=uid)
                connection.close()
                return
            self._lose()
            self._channel, self.is_new = Channel(connection), True

    def _lose(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
