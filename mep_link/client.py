"""The link of a manager or a user endpoint: one outbound CURVE connection, made again whenever it breaks.

ZeroMQ would reconnect by itself, silently, and the relay would not know which peer had come back. Each connection is
therefore a socket of its own that begins with a hello. The relay is authenticated by its pinned key, this process by a
key pair of its own. Messages come out decoded; pings are answered here. This module knows nothing of tasks or starts.

The owner's loop waits for `descriptors` (if nothing is `pending`) until `next_deadline`, then calls `receive` and
`tick`. All calls come from one thread.
"""

from __future__ import annotations

import enum
import os
import struct
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import zmq
from zmq.utils import z85

from mep.boundary import fd_reserve
from mep_link.backoff import Backoff
from mep_wire import codec, messages
from mep_wire.errors import LinkMessageInvalid
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S

CONNECT_TIMEOUT_S: Final = 2.0
"""Time limit for TCP's handshake. It allows one repeated SYN. TCP's later ones come too far apart."""
ATTEMPT_S: Final = 15.0
"""Longest time from connecting to the handshake's end, and from the hello to the welcome."""
PROVEN_S: Final = HEARTBEAT_S
"""A link that lasted this long has worked, and the pauses start over. A welcome alone does not count."""
SLOW_HANDSHAKE_S: Final = 3.0
"""A handshake that fails after this time failed because the relay did not answer, not because of a key."""
STALLED: Final = "the relay took the connection and did not answer in time: it is overloaded, or was stopped"
TOO_FEW_DESCRIPTORS: Final = "too few file descriptors are free here"
_RECEIVE_TURN: Final = 64
_HEARTBEAT_LEAST_S: Final = 0.05
_EVENT: Final = struct.Struct("=hi")

M = TypeVar("M", bound=object)


class LinkState(enum.Enum):
    """The stages of a connection."""

    DOWN = "down"
    CONNECTING = "connecting"
    GREETING = "greeting"
    UP = "up"


class _Event(enum.Enum):
    UP = "the relay proved its key"
    NO_CONNECTION = "no connection"
    KEY_REFUSED = "the encrypted handshake failed: is this the relay that the endpoint was registered with?"
    LOST = "the connection was closed"


_EVENTS: Final = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): _Event.UP,
    int(zmq.EVENT_CLOSED): _Event.NO_CONNECTION,
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): _Event.KEY_REFUSED,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): _Event.KEY_REFUSED,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): _Event.KEY_REFUSED,
    int(zmq.EVENT_DISCONNECTED): _Event.LOST,
}


class _Connection:
    """One attempt to reach the relay, and the connection if it succeeds."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, options: dict[int, int | bytes]) -> None:
        """Start connecting. Raises zmq.ZMQError for an impossible address."""
        self.socket = context.socket(zmq.DEALER)
        for option, value in options.items():
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(sum(_EVENTS))
        try:
            self.socket.connect(address)
        except zmq.ZMQError:
            self.close(0)
            raise

    def close(self, linger_ms: int) -> None:
        """Close the socket. Queued messages have up to `linger_ms` to be sent."""
        self.socket.disable_monitor()
        self.socket.close(linger=linger_ms)

    def event(self) -> tuple[_Event, str] | None:
        """Return the next event with the system's reason if there is one; None if nothing has happened."""
        try:
            frame = self.monitor.recv_multipart(zmq.NOBLOCK)[0]
        except zmq.Again:
            return None
        number, value = _EVENT.unpack(frame[: _EVENT.size])
        kind = _EVENTS[number]
        reason = f" ({os.strerror(value)})" if kind is _Event.KEY_REFUSED and 0 < value < 200 else ""
        return kind, kind.value + reason

    def frame(self) -> bytes | None:
        """Return the next frame; None if there is none; b"" for a message of several frames, which the relay never
        sends."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""

    def readable(self) -> bool:
        """Whether a frame or an event has come."""
        return any(int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN for each in (self.socket, self.monitor))


def options(
    relay_key: bytes, secret: bytes | None = None, *, max_inbound_bytes: int, queue: int = 0
) -> dict[int, int | bytes]:
    """Return the socket options of a client. Keys are 32 raw bytes; without `secret` a key pair is made.

    `queue`: the most messages that wait in each direction, 0 for no limit.
    """
    public, private = zmq.curve_keypair() if secret is None else _key_pair(secret)
    return {
        zmq.LINGER: 0,
        zmq.IPV6: 1,
        zmq.RECONNECT_IVL: -1,
        zmq.CONNECT_TIMEOUT: int(CONNECT_TIMEOUT_S * 1000),
        zmq.HANDSHAKE_IVL: int(ATTEMPT_S * 1000),
        zmq.MAXMSGSIZE: max_inbound_bytes,
        zmq.SNDHWM: queue,
        zmq.RCVHWM: queue,
        zmq.TCP_KEEPALIVE: 1,
        zmq.CURVE_SERVERKEY: z85.encode(relay_key),
        zmq.CURVE_PUBLICKEY: public,
        zmq.CURVE_SECRETKEY: private,
    }


def _key_pair(secret: bytes) -> tuple[bytes, bytes]:
    text = z85.encode(secret)
    return zmq.curve_public(text), text


class LinkClient(Generic[M]):
    """One process's link to its relay. `M` is the union of messages that it receives."""

    def __init__(
        self,
        address: str,
        socket_options: dict[int, int | bytes],
        decode: Callable[[bytes], M],
        *,
        malformed: Callable[[LinkMessageInvalid], None] | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`malformed` is told of a frame that can't be decoded, which is then dropped. Without it the connection ends:
        right where a lost message would leave both sides with different books."""
        self._address, self._options, self._decode, self._clock = address, socket_options, decode, clock
        self._malformed = malformed
        self.hello: Callable[[], messages.ToRelay] | None = None
        """Asked for the first message of each connection. While it is None, a connection waits without greeting."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._connection: _Connection | None = None
        self._backoff = backoff or Backoff()
        self.state = LinkState.DOWN
        self.connections = 0
        """How many connections have been begun: names the present one."""
        self.losses = 0
        """How many have ended."""
        self.down_reason = ""
        """Why the last one ended."""
        self._heartbeat_s = HEARTBEAT_S
        self._attempt_ends = self._last_heard = self._next_ping = self._up_since = self._retry_at = 0.0

    @property
    def welcomed(self) -> bool:
        """Whether the relay has welcomed us on this connection."""
        return self.state is LinkState.UP

    # --- one connection -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin a connection now; ZeroMQ's thread does the handshakes."""
        self.connections += 1
        self._proceed(LinkState.CONNECTING)
        if fd_reserve.is_touched():  # libzmq aborts the process where it finds none
            self.disconnect(TOO_FEW_DESCRIPTORS)
            return
        try:
            self._connection = _Connection(self._context, self._address, self._options)
        except zmq.ZMQError as error:
            self.disconnect(str(error))

    def greet(self) -> None:
        """Say hello, again if need be; the relay's welcome follows. Before the handshake is over, it is put off."""
        if self.hello is not None and self.state in (LinkState.GREETING, LinkState.UP):
            self._proceed(LinkState.GREETING)
            self.send(self.hello())

    def _proceed(self, state: LinkState) -> None:
        self.state, self._attempt_ends = state, self._clock() + ATTEMPT_S

    def disconnect(self, reason: str, *, wait_s: float | None = None, patient: bool = False) -> None:
        """End the connection; another is made after a pause: `wait_s` if given, else the back-off's.

        `patient`: the relay has answered with a refusal.
        """
        now = self._clock()
        if self.welcomed and now >= self._up_since + PROVEN_S:
            self._backoff.reset()
        if self._connection is not None:
            self._connection.close(0)
            self._connection = None
        self.losses += 1
        self.state, self.down_reason = LinkState.DOWN, reason
        self._retry_at = now + (self._backoff.next_pause_s(patient=patient) if wait_s is None else wait_s)

    def longest_pause_s(self) -> float:
        """Return the longest time until the next attempt begins, in seconds, for a message to people."""
        return max(self._retry_at - self._clock(), self._backoff.longest_pause_s())

    def close(self, linger_s: float) -> None:
        """Close the link permanently; sent messages get at most `linger_s` seconds to leave."""
        self.hang_up(linger_s)
        self._context.term()

    def hang_up(self, linger_s: float = 0.0) -> None:
        """End the connection and make no other before `connect`."""
        if self._connection is not None:
            self._connection.close(int(linger_s * 1000))
            self._connection = None
        self.state, self._retry_at = LinkState.DOWN, float("inf")

    # --- messages -------------------------------------------------------------------------------------

    def send(self, message: messages.ToRelay) -> bool:
        """Queue one message. False where the queue is full or no connection exists: after its hello, the caller sends
        again what the relay has to have."""
        if self._connection is None:
            return False
        try:
            self._connection.socket.send(codec.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[M]:
        """Return the messages that have come: some of them, or all if the connection has ended, since its last one
        may say why."""
        received: list[M] = []
        lost = self._events()
        while self._connection is not None and (lost or len(received) < _RECEIVE_TURN):
            frame = self._connection.frame()
            if frame is None:
                break
            self._take(frame, received)
        if lost and self._connection is not None:
            self.disconnect(lost)
        return received

    def _events(self) -> str:
        """Handle the connection's events; return why it has ended, or an empty text."""
        while self._connection is not None and (event := self._connection.event()) is not None:
            kind, reason = event
            if kind is not _Event.UP:
                # A wrong key is refused at once. A relay that stands still takes the connection all the same.
                taken = self._clock() - self._attempt_ends + ATTEMPT_S
                return STALLED if kind is _Event.KEY_REFUSED and taken > SLOW_HANDSHAKE_S else reason
            self._proceed(LinkState.GREETING)
            self.greet()
        return ""

    def _take(self, frame: bytes, received: list[M]) -> None:
        self._last_heard = self._clock()
        try:
            message = self._decode(frame)
        except LinkMessageInvalid as error:
            if self._malformed is None:
                self.disconnect(error.text)
            else:
                self._malformed(error)
            return
        if isinstance(message, messages.Ping):
            self.send(messages.Pong(sent_at=message.sent_at))
            return
        if isinstance(message, messages.UepWelcome | messages.ManagerWelcome):
            self._welcome(message.heartbeat_s)
        received.append(message)

    def _welcome(self, heartbeat_s: float) -> None:
        self._heartbeat_s = min(max(heartbeat_s, _HEARTBEAT_LEAST_S), LINK_DEAD_S / 3)
        self.state, self._up_since = LinkState.UP, self._last_heard
        self._next_ping = self._last_heard + self._heartbeat_s

    # --- time -----------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """Descriptors that become readable when there is something to do here. They change with the connection."""
        if self._connection is None:
            return []
        return [int(each.getsockopt(zmq.FD)) for each in (self._connection.socket, self._connection.monitor)]

    @property
    def pending(self) -> bool:
        """Whether something can be read now. ZeroMQ's descriptor tells of changes only, so ask before waiting."""
        return self._connection is not None and self._connection.readable()

    def next_deadline(self) -> float:
        """When `tick` must be called next, by the link's clock."""
        if self.state is LinkState.DOWN:
            return self._retry_at
        if self.state is LinkState.UP:
            return min(self._next_ping, self._last_heard + self._dead_after())
        return self._attempt_ends

    def _dead_after(self) -> float:
        return min(LINK_DEAD_S, 3.5 * self._heartbeat_s)

    def tick(self) -> None:
        """Do the periodic work: begin a new connection, notice a silent one, send a heartbeat."""
        now = self._clock()
        if now < self.next_deadline():
            return
        if self.state is LinkState.DOWN:
            self.connect()
        elif self.pending:
            return  # this process slept: read first
        elif self.state is not LinkState.UP:
            self.disconnect("the relay doesn't answer")
        elif now >= self._last_heard + self._dead_after():
            self.disconnect(f"nothing heard for {self._dead_after():g} s")
        else:
            self._next_ping = now + self._heartbeat_s
            self.send(messages.Ping(sent_at=now))
