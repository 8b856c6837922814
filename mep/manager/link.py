"""One connection to the relay: a CURVE DEALER socket and its events. The only module here that holds a socket.

Trusts whoever holds the relay's pinned CURVE key, and only to speak the link's messages. libzmq's own
reconnection is off: the manager decides when to try again, and says so. Called by mep/manager/manager.py.
"""

from __future__ import annotations

import enum
import os

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

MAX_INBOUND_BYTES = 1024 * 1024
"""Largest message that a relay has to send a manager, with room (a start request has at most 256 KiB)."""
CONNECT_TIMEOUT_MS = 10_000
_SEND_QUEUE = 1000


class LinkEvent(enum.Enum):
    """What happened to the connection."""

    UP = "the relay proved its key"
    NO_CONNECTION = "no connection"
    KEY_REFUSED = "the encrypted handshake failed: is this the relay that the endpoint was registered with?"
    LOST = "the connection was closed"


_EVENTS = {
    zmq.Event.HANDSHAKE_SUCCEEDED: LinkEvent.UP,
    zmq.Event.CLOSED: LinkEvent.NO_CONNECTION,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: LinkEvent.KEY_REFUSED,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: LinkEvent.KEY_REFUSED,
    zmq.Event.HANDSHAKE_FAILED_AUTH: LinkEvent.KEY_REFUSED,
    zmq.Event.DISCONNECTED: LinkEvent.LOST,
}


class Link:
    """One attempt to reach the relay, and the connection that may come of it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, server_key: bytes, secret: bytes) -> None:
        """Begin to connect to `address`. Keys are 32 raw bytes. Raises zmq.ZMQError for an impossible address."""
        sock = context.socket(zmq.DEALER)
        self.socket = sock
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, -1)
        sock.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        sock.setsockopt(zmq.HANDSHAKE_IVL, CONNECT_TIMEOUT_MS)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_INBOUND_BYTES)
        sock.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        secret_text = z85.encode(secret)
        sock.curve_secretkey = secret_text
        sock.curve_publickey = zmq.curve_public(secret_text)
        sock.curve_serverkey = z85.encode(server_key)
        self.monitor = sock.get_monitor_socket(sum(_EVENTS))
        try:
            sock.connect(address)
        except zmq.ZMQError:
            self.close()
            raise

    def close(self, linger_ms: int = 0) -> None:
        """Close, giving what is queued up to `linger_ms` to leave."""
        self.socket.disable_monitor()
        self.socket.close(linger=linger_ms)

    def events(self) -> list[tuple[LinkEvent, str]]:
        """Return what has happened, each with the system's reason where there is one."""
        found = []
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            kind = _EVENTS.get(zmq.Event(event["event"]))
            if kind is not None:
                found.append((kind, _reason(kind, int(event["value"]))))
        return found

    def send(self, frame: bytes) -> bool:
        """Queue one frame; False where the queue is full."""
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next frame, or None when there is none. A message of several frames is None's equal: skipped."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""


def _reason(kind: LinkEvent, value: int) -> str:
    if kind is LinkEvent.KEY_REFUSED and 0 < value < 200:
        return f"{kind.value} ({os.strerror(value)})"
    return kind.value
