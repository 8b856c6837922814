"""Answers ZeroMQ's authentication requests (ZAP, RFC 27): any peer that proves a CURVE key may connect.

The dispatcher decides, message by message, which ones a key may send. The answer gives libzmq the key as
the `User-Id` of every message of that connection. Served from the event loop's thread; called by ZmqPlane.
"""

from __future__ import annotations

import asyncio

import zmq

DOMAIN = b"mep"
_VERSION = b"1.0"


class Zap:
    """The ZAP handler of one ZeroMQ context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._answer)
        loop.call_soon(self._answer)

    def stop(self) -> None:
        """Stop answering."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(answer(parts))


def answer(parts: list[bytes]) -> list[bytes]:
    """Return the reply to one ZAP request, both with the envelope of a ROUTER socket."""
    at = parts.index(b"")
    envelope, request = parts[: at + 1], parts[at + 1 :]
    version, request_id = request[0], request[1]
    ok = version == _VERSION and len(request) == 7 and request[2] == DOMAIN and request[5] == b"CURVE"
    if ok and len(request[6]) == 32:
        return [*envelope, _VERSION, request_id, b"200", b"OK", request[6].hex().encode(), b""]
    return [*envelope, _VERSION, request_id, b"400", b"CURVE only", b"", b""]
