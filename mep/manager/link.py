"""One connection to the relay: a CURVE DEALER socket and its events. The only module here that holds a socket.

Trusts the holder of the relay's pinned CURVE key, and only to speak the link's messages. libzmq's own reconnection
is off: the manager decides when to try again, and logs it. Called by mep/manager/manager.py.
"""

from __future__ import annotations

import enum
import os

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

MAX_INBOUND_BYTES = 1024 * 1024
"""Largest message that a relay sends to a manager, with a margin (a start request has at most 256 KiB)."""
CONNECT_TIMEOUT_MS = 10_000
_SEND_QUEUE = 1000


class LinkEvent(enum.Enum):
    """An event of the connection."""

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
    """One attempt to reach the relay, and the connection if it succeeds."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, server_key: bytes, secret: bytes) -> None:
        """Start connecting to `address`. Keys are 32 raw bytes. Raises zmq.ZMQError for an impossible address."""
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
        """Close the socket. Queued messages have up to `linger_ms` to be sent."""
        self.socket.disable_monitor()
        self.socket.close(linger=linger_ms)

    def events(self) -> list[tuple[LinkEvent, str]]:
        """Return the new events, each with the system's reason if there is one."""
        found = []
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            kind = _EVENTS.get(zmq.Event(event["event"]))
            if kind is not None:
                found.append((kind, _reason(kind, int(event["value"]))))
        return found

    def send(self, frame: bytes) -> bool:
        """Queue one frame; return False if the queue is full."""
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next frame, or None if there is none. A multi-frame message is skipped and also returns None."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""


def _reason(kind: LinkEvent, value: int) -> str:
    if kind is LinkEvent.KEY_REFUSED and 0 < value < 200:
        return f"{kind.value} ({os.strerror(value)})"
    return kind.value
