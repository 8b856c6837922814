"""Accepts HTTP connections, as long as there are descriptors for them.

asyncio's own accepting goes on trying, and logs each try, when the process has no descriptor left: as often as there
are waiting connections. Here accepting pauses: connections wait in the kernel's queue. It pauses before the last
descriptors are taken, which are left to links and files. Called by the server.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Callable

from relay.descriptors import DescriptorReserve
from relay.log import RateLimitedLog

ACCEPTS_A_TURN = 64
"""Most connections accepted before the event loop may do something else."""
MIN_RESERVE, MAX_RESERVE = 48, 4096
"""Descriptors that HTTP connections leave to links and files: an eighth of all, within these."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0
HANDSHAKE_S = 10.0
"""How long a client may take for TLS's handshake."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Hands each connection of `listener` to a new protocol."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None
    ) -> None:
        self._listener, self._protocol, self._tls = listener, protocol, tls
        self._loop = asyncio.get_running_loop()
        self._limited_log = RateLimitedLog()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S
        self._reserve = DescriptorReserve(8, MIN_RESERVE, MAX_RESERVE)
        self.pauses = 0
        """How often there was no descriptor for another connection."""

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept nothing more, and close the listener."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                self._pause_s = FIRST_PAUSE_S
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error.strerror or "")
                return
            task = self._loop.create_task(self._connect(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if connection.fileno() > self._reserve.highest:
                self._pause(f"{self._reserve.highest} are open")
                return

    async def _connect(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            handshake_s = HANDSHAKE_S if self._tls else None
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except OSError:  # it is gone already, or speaks no TLS
            connection.close()

    def _pause(self, reason: str) -> None:
        self.pauses += 1
        self._limited_log.warning("http: out of descriptors: new connections wait until others end", reason=reason)
        self._loop.remove_reader(self._listener.fileno())
        self._resume = self._loop.call_later(self._pause_s * random.uniform(0.75, 1.25), self._again)  # noqa: S311
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)

    def _again(self) -> None:
        self._resume = None
        if self._reserve.is_free(self._listener.fileno()):
            self._loop.add_reader(self._listener.fileno(), self._accept)
        else:
            self._pause(f"{self._reserve.highest} are open")
