"""The link to the relay: one outbound CURVE connection, made again whenever it breaks.

ZeroMQ would reconnect by itself, silently, and the relay would not know which peer had come back. Each connection
is therefore a socket of its own that begins with a hello. The relay is authenticated by its pinned key, this process
by a key pair of its own, which the join token enrols. Messages come out decoded; a message that can't be decoded
ends the connection. This module knows nothing of tasks. Called by the user endpoint's loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import zmq

from mep_wire import codec, messages
from mep_wire.errors import LinkMessageInvalid
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S, MAX_LINK_MESSAGE_BYTES

ATTEMPT_S: Final = 15.0
"""Longest time from connecting to the relay's welcome."""
_BACKOFF_FIRST_S, _BACKOFF_MOST_S = 0.2, 30.0
_RECEIVE_TURN: Final = 64
_LOST_EVENTS: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Backoff:
    """Doubling pauses with jitter: a relay that comes back doesn't get all connections at once."""

    def __init__(self, first_s: float = _BACKOFF_FIRST_S, most_s: float = _BACKOFF_MOST_S) -> None:
        self._first, self._most, self._next = first_s, most_s, first_s

    def pause(self, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait before the next attempt."""
        pause = self._next * (0.5 + draw() / 2)
        self._next = min(self._most, self._next * 2)
        return pause

    def reset(self) -> None:
        """The last attempt worked."""
        self._next = self._first


class Link:
    """One process's connection to its relay, made again whenever it is lost."""

    def __init__(
        self,
        address: str,
        relay_key: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._clock = address, clock
        self.hello: Callable[[], messages.Join | messages.UepHello] | None = None
        """Asked for the first message of each connection. Set before `greet`."""
        self._relay_key = relay_key
        self._public, self._secret = zmq.curve_keypair()
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._backoff = Backoff()
        self._heartbeat_s = HEARTBEAT_S
        self.welcomed = False
        """Whether the relay has welcomed us on this connection."""
        self._attempt_ends = self._last_heard = self._last_sent = self._retry_at = 0.0
        self.down_reason = ""
        """Why the last connection ended."""

    # --- one connection -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin a connection; ZeroMQ's thread does the handshakes. The hello goes out with `greet`."""
        sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, 0)
        sock.setsockopt(zmq.RCVHWM, 0)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_LINK_MESSAGE_BYTES)
        sock.setsockopt(zmq.RECONNECT_IVL, -1)
        sock.setsockopt(zmq.CONNECT_TIMEOUT, int(ATTEMPT_S * 1000))
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.CURVE_SERVERKEY, self._relay_key)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self._public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        self._socket, self._monitor = sock, sock.get_monitor_socket(_LOST_EVENTS)
        self.welcomed = False
        now = self._clock()
        self._attempt_ends, self._last_heard, self._last_sent = now + ATTEMPT_S, now, now
        sock.connect(self._address)

    def greet(self) -> None:
        """Send the hello on a connection that has begun. ZeroMQ holds it until the handshake is over."""
        if self.hello is not None:
            self.send(self.hello())

    def disconnect(self, reason: str) -> None:
        """End the connection; another is made after a pause."""
        self.down_reason = reason
        self._drop()
        self._retry_at = self._clock() + self._backoff.pause()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._socket = self._monitor = None
        self.welcomed = False

    def close(self, linger_s: float) -> None:
        """Close the link permanently; sent messages get at most `linger_s` seconds to leave."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=int(linger_s * 1000))
            self._socket = self._monitor = None
        self._context.term()

    # --- messages -------------------------------------------------------------------------------------

    def send(self, message: messages.ToRelay) -> None:
        """Queue one message. Without a connection it is dropped: the caller sends it again after a hello."""
        if self._socket is not None:
            self._socket.send(codec.encode(message), zmq.DONTWAIT)
            self._last_sent = self._clock()

    def receive(self) -> list[messages.ToUep]:
        """Return the received messages; answer pings. A malformed message ends the connection."""
        received: list[messages.ToUep] = []
        while self._socket is not None and len(received) < _RECEIVE_TURN:
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                message = codec.decode_to_uep(frame)
            except LinkMessageInvalid as error:
                self.disconnect(error.text)
                break
            self._note(message, received)
        return received

    def _note(self, message: messages.ToUep, received: list[messages.ToUep]) -> None:
        self._last_heard = self._clock()
        if isinstance(message, messages.Ping):
            self.send(messages.Pong(sent_at=message.sent_at))
            return
        if isinstance(message, messages.Pong):
            return
        if isinstance(message, messages.UepWelcome):
            self.welcomed = True
            self._heartbeat_s = min(max(message.heartbeat_s, 0.05), LINK_DEAD_S)
            self._backoff.reset()
        received.append(message)

    # --- time -----------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """Descriptors that become readable when there is something to do here. They change with the connection."""
        return [int(s.getsockopt(zmq.FD)) for s in (self._socket, self._monitor) if s is not None]

    @property
    def pending(self) -> bool:
        """Whether something can be read now. ZeroMQ's descriptor tells of changes only, so ask before waiting."""
        return any(s is not None and int(s.getsockopt(zmq.EVENTS)) & zmq.POLLIN for s in (self._socket, self._monitor))

    def next_deadline(self) -> float:
        """When `tick` must be called next, by the link's clock."""
        if self._socket is None:
            return self._retry_at
        if not self.welcomed:
            return self._attempt_ends
        return min(self._last_sent + self._heartbeat_s, self._last_heard + self._dead_after())

    def _dead_after(self) -> float:
        return min(LINK_DEAD_S, 3.5 * self._heartbeat_s)

    def tick(self) -> None:
        """Do the periodic work: notice a lost connection, begin a new one, send a heartbeat."""
        now = self._clock()
        if self._connection_lost():
            self.disconnect("the connection was lost" if self.welcomed else "the relay cannot be reached")
        if self._socket is None:
            if now >= self._retry_at:
                self.connect()
                self.greet()
        elif not self.welcomed:
            if now >= self._attempt_ends:
                self.disconnect("the relay does not answer")
        elif now >= self._last_heard + self._dead_after():
            self.disconnect("the relay is silent")
        elif now >= self._last_sent + self._heartbeat_s:
            self.send(messages.Ping(sent_at=time.time()))

    def _connection_lost(self) -> bool:
        lost = False
        while self._monitor is not None:
            try:
                self._monitor.recv_multipart(zmq.DONTWAIT)
                lost = True
            except zmq.Again:
                break
        return lost
