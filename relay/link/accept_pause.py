"""The link's listening socket, which can stop taking connections while the process is short of descriptors.

libzmq accepts in its own thread. Without a descriptor it fails, is told at once that a connection waits, and fails
again: a full core, without a line in a log. Unbinding would end the links that are up. So the socket is made here and
handed to libzmq. Once an accepted connection has one of the last descriptors, a socket filter has the kernel drop
what arrives for the listening socket: peers try again by themselves, and links that are up notice nothing. Connections
that wait already are closed. Called by ZmqPlane.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import socket
import struct
from typing import Any

import zmq

from relay.descriptors import DescriptorReserve
from relay.log import RateLimitedLog

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
"""socket(7): Linux has them, Python's socket module has not."""
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""One instruction of the classic BPF: return 0, keep nothing of any packet."""
MIN_RESERVE, MAX_RESERVE = 24, 2048
"""Descriptors that the link leaves to others: a sixteenth of all, within these."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0


class PausableListener:
    """A listening TCP socket. `descriptor` is libzmq's (ZMQ_USE_FD), which closes it."""

    def __init__(self, host: str, port: int) -> None:
        """Bind and listen. Raises OSError."""
        self._reserve = DescriptorReserve(16, MIN_RESERVE, MAX_RESERVE)
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(False)
            self._socket.bind((host, port))
            self._socket.listen(self._reserve.size // 2)  # as many may still be accepted when the pause begins
            self.descriptor = os.dup(self._socket.fileno())
        except OSError:
            self._socket.close()
            raise
        self._limited_log = RateLimitedLog()
        self._paused = False
        self._pause_s = FIRST_PAUSE_S
        self._timer: asyncio.TimerHandle | None = None
        self.pauses = 0
        """How often there was no descriptor for another connection."""

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._socket.getsockname()[1])

    def watch(self, router: zmq.Socket[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Hear of each connection that `router` accepts, or can't."""
        self._loop = loop
        self._monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED)
        loop.add_reader(self._monitor.fileno(), self._heard)
        loop.call_soon(self._heard)

    def close(self, router: zmq.Socket[Any]) -> None:
        """Stop listening, once `router` is not used any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._monitor.fileno())
        router.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def _heard(self) -> None:
        short = False
        while not self._monitor.closed:
            try:
                event, value = struct.unpack("=HI", self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                break
            short = short or event == zmq.EVENT_ACCEPT_FAILED or value > self._reserve.highest
        if short and not self._paused:
            self._pause()

    def _pause(self) -> None:
        self.pauses += 1
        self._limited_log.warning("link: out of descriptors: new connections wait", open=self._reserve.highest)
        self._paused = True
        program = ctypes.create_string_buffer(_DROP_ALL)
        filter_ = struct.pack("HP", 1, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
        self._close_waiting()
        self._later()

    def _close_waiting(self) -> None:
        """Close the connections that wait: while one does, libzmq's thread would try for ever."""
        try:
            while True:
                self._socket.accept()[0].close()
        except OSError:  # none waits any more, or no descriptor is left even for this
            return

    def _later(self) -> None:
        self._timer = self._loop.call_later(self._pause_s * random.uniform(0.75, 1.25), self._again)  # noqa: S311
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)

    def _again(self) -> None:
        if not self._reserve.is_free(self._socket.fileno()):
            self._close_waiting()
            self._later()
            return
        self._socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        self._paused, self._pause_s = False, FIRST_PAUSE_S
