"""Answers ZeroMQ's authentication requests (ZAP, https://rfc.zeromq.org/spec/27/) of one context.

`admit` decides by the proven CURVE key alone. libzmq gives the user id that it returns to the application as the
`User-Id` of every message of that connection. The caller waits for requests: an event loop in the relay, a thread in
the interchange.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


class ZapHandler:
    """The handler of one context. Its socket belongs to the thread that calls `answer_waiting`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        admit: Callable[[bytes], bytes | None],
        domain: bytes | None = None,
    ) -> None:
        """Bind. `admit` takes a key (32 bytes) and returns the peer's user id, or None to refuse it. A request of
        another domain than `domain` is refused; None takes any."""
        self._admit, self._domain = admit, domain
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable, once, when a request comes."""
        return self._socket.fileno()

    def wait(self, timeout_ms: int) -> bool:
        """Return whether a request has come within this time. Raises zmq.ZMQError once the context has ended."""
        return bool(self._socket.poll(timeout_ms))

    def answer_waiting(self) -> None:
        """Answer every request that has come."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(answer(parts, self._admit, self._domain))

    def close(self) -> None:
        """Stop answering."""
        self._socket.close()


def answer(parts: list[bytes], admit: Callable[[bytes], bytes | None], domain: bytes | None = None) -> list[bytes]:
    """Return the reply to one request, both with the envelope of a ROUTER socket."""
    at = parts.index(b"")
    envelope, request = parts[: at + 1], parts[at + 1 :]
    version, request_id = request[0], request[1]
    curve = version == _VERSION and len(request) == 7 and request[5] == b"CURVE" and len(request[6]) == 32
    if not curve or domain not in (None, request[2]):
        return [*envelope, _VERSION, request_id, b"400", b"CURVE only", b"", b""]
    user_id = admit(request[6])
    if user_id is None:
        return [*envelope, _VERSION, request_id, b"400", b"unknown key", b"", b""]
    return [*envelope, _VERSION, request_id, b"200", b"OK", user_id, b""]
