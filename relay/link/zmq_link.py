"""The embedded link layer: one ZeroMQ ROUTER socket with CURVE, served from the event loop's own thread.

Every peer must prove a CURVE key; ZAP's answer makes the key the `User-Id` of each of its messages. A peer
can choose its routing id, and it is therefore never an identity: a peer is (key, routing id). A message with a
key other than the one seen with its routing id starts a new Peer. Answers go only to the routing id that came
with the key. ROUTER_HANDOVER stays off: a connected routing id can't be taken over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import zmq
from zmq.utils import z85

from mep_link.zap import ZapHandler
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S, MAX_LINK_MESSAGE_BYTES
from relay.link.accept_pause import PausableListener
from relay.link.base import Peer, PlaneHandler
from relay.log import RateLimitedLog

ZAP_DOMAIN = b"mep"
SEND_HWM = 32
"""Messages that ZeroMQ itself queues for one peer (bulk is at most a few megabytes a message)."""
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Bytes that wait for a slow peer here before it is dropped."""
LARGE_BYTES = 64 * 1024
"""A frame of so many bytes is not copied, and counts until it has left."""
MAX_UNSENT_BYTES = 16 * 1024 * 1024
"""Above so many bytes of large frames that have not left, a peer is sent no more bulk: SEND_HWM counts messages."""
WRITABLE_BYTES = 64 * 1024
"""Bytes waiting here up to which a peer may be sent more: a burst of short messages doesn't mean that it is slow."""
FIRST_RETRY_S, LAST_RETRY_S = 0.0005, 0.02
"""When a slow peer's waiting messages are tried again: soon after a burst has filled its queue, which its
connection takes in no time, and ever later while it reads nothing. (A ROUTER cannot wait for one peer's room.)"""
FRAMES_A_TURN = 64
"""Most messages taken before the event loop may do something else."""
MAX_PEERS = 50_000
MAX_UNAUTHENTICATED = 4096
"""Most peers of which the dispatcher has made nothing yet; beyond, the one that is so for longest is forgotten."""


class ZmqLink:
    """`relay.link.base.Plane` over ZeroMQ."""

    def __init__(self, host: str, port: int, secret_key: bytes) -> None:
        self._context = zmq.Context()
        self._zap = ZapHandler(self._context, _user_id, ZAP_DOMAIN)
        self._socket = self._context.socket(zmq.ROUTER)
        self._host, self._port = host, port
        self._configure(z85.encode(secret_key))
        self._peers: dict[bytes, Peer] = {}
        self._unauthenticated: deque[Peer] = deque()
        """Peers in order of arrival, until they are examined."""
        self._limited_log = RateLimitedLog()
        self._slow: set[Peer] = set()
        self._retry_s = FIRST_RETRY_S
        self._scheduled = False
        self._stopped = False
        self._listener: PausableListener | None = None
        self.address = ""

    def _configure(self, secret: bytes) -> None:
        options: dict[int, Any] = {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_SECRETKEY: secret,
            zmq.ZAP_DOMAIN: ZAP_DOMAIN,
            zmq.MAXMSGSIZE: MAX_LINK_MESSAGE_BYTES,
            zmq.ROUTER_MANDATORY: 1,
            zmq.SNDHWM: SEND_HWM,
            zmq.RCVHWM: 1000,
            zmq.HEARTBEAT_IVL: int(HEARTBEAT_S * 1000),
            zmq.HEARTBEAT_TIMEOUT: int(LINK_DEAD_S * 1000),
            zmq.HANDSHAKE_IVL: 10_000,
            zmq.LINGER: 1000,
            zmq.IPV6: int(":" in self._host),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)

    def start(self, handler: PlaneHandler) -> None:
        """Bind (port 0: any free one) and begin to listen. Raises OSError."""
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._zap.fileno(), self._zap.answer_waiting)
        self._loop.call_soon(self._zap.answer_waiting)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._listener = PausableListener(self._host, self._port)
            self._socket.setsockopt(zmq.USE_FD, self._listener.descriptor)
            self._listener.watch(self._socket, self._loop)
            self._socket.bind(f"tcp://{host}:{self._listener.port}")
        except (OSError, zmq.ZMQError) as error:
            raise OSError(error.errno, f"cannot listen on {host}:{self._port}: {error}") from error
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        self.address = bytes(endpoint).rstrip(b"\0").decode() if isinstance(endpoint, bytes) else ""
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._loop.call_later(HEARTBEAT_S / 2, self._check_silence)
        self._again()

    @property
    def pauses(self) -> int:
        """How often there was no descriptor for another link."""
        return 0 if self._listener is None else self._listener.pauses

    # --- receiving --------------------------------------------------------------------------------

    def _again(self) -> None:
        """Look at the socket once more: its descriptor is edge-triggered, and any call on it may eat the edge."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        for _ in range(FRAMES_A_TURN):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._take(parts)
        self._again()

    def _take(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 2:
            self._limited_log.warning("link: a message was dropped", frames=len(parts))
            return
        key = bytes.fromhex(str(parts[1].get("User-Id")))
        address = parts[0].bytes
        peer = self._peers.get(address)
        if peer is not None and peer.key != key:
            self._lose(peer, "its routing id is now another peer's")
            peer = None
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                self._limited_log.warning("link: too many peers; one is not heard", limit=MAX_PEERS, peer=key.hex())
                return
            peer = self._peers[address] = Peer(key, address, 0.0)
            self._make_room(peer)
        peer.last_seen = time.monotonic()
        self._handler.on_frame(peer, parts[1].bytes)

    def _make_room(self, unauthenticated: Peer) -> None:
        """Let no more than MAX_STRANGERS be there that have not been welcomed."""
        self._unauthenticated.append(unauthenticated)
        if len(self._unauthenticated) <= MAX_UNAUTHENTICATED:
            return
        oldest = self._unauthenticated.popleft()
        if oldest.session is None and self._peers.get(oldest.address) is oldest:
            self._limited_log.warning("link: too many strangers; the first is forgotten", limit=MAX_UNAUTHENTICATED)
            self.drop(oldest)

    def _check_silence(self) -> None:
        if self._stopped:
            return
        dead = time.monotonic() - LINK_DEAD_S
        for peer in [peer for peer in self._peers.values() if peer.last_seen < dead]:
            self._lose(peer, f"silent for {LINK_DEAD_S:.0f} s")
        self._loop.call_later(HEARTBEAT_S / 2, self._check_silence)

    def _lose(self, peer: Peer, reason: str) -> None:
        if self._peers.get(peer.address) is peer:
            self.drop(peer)
        if peer.session is not None:
            self._handler.on_gone(peer, reason)

    # --- sending ----------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> bool:
        """See `relay.link.base.Plane.send`."""
        if self._peers.get(peer.address) is not peer:
            return False
        if peer.waiting:
            return self._wait(peer, frame)
        if self._try(peer, frame):
            return True
        return self._peers.get(peer.address) is peer and self._wait(peer, frame)

    def writable(self, peer: Peer) -> bool:
        """See `relay.link.base.Plane.writable`."""
        _forget_sent(peer)
        return peer.waiting_bytes < WRITABLE_BYTES and peer.unsent_bytes < MAX_UNSENT_BYTES

    def _try(self, peer: Peer, frame: bytes) -> bool:
        """Send now. False where the peer's queue is full or its connection closed."""
        try:
            if len(frame) < LARGE_BYTES:
                self._socket.send_multipart((peer.address, frame), zmq.NOBLOCK)
            else:
                tracker = self._socket.send_multipart((peer.address, frame), zmq.NOBLOCK, copy=False, track=True)
                _forget_sent(peer)
                peer.unsent.append((tracker, len(frame)))
                peer.unsent_bytes += len(frame)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self.drop(peer)
                self._loop.call_soon(self._lose, peer, "its connection is closed")
            elif error.errno != zmq.EAGAIN:
                raise
            return False
        finally:
            self._again()
        return True

    def _wait(self, peer: Peer, frame: bytes) -> bool:
        peer.waiting.append(frame)
        peer.waiting_bytes += len(frame)
        if peer.waiting_bytes > MAX_WAITING_BYTES and len(peer.waiting) > 1:
            self._loop.call_soon(self._lose, peer, "it does not read what it is sent")
            return False
        if not self._slow:
            self._retry_s = FIRST_RETRY_S
            self._loop.call_later(self._retry_s, self._retry)
        self._slow.add(peer)
        return True

    def _retry(self) -> None:
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        for peer in list(self._slow):
            while peer.waiting and self._peers.get(peer.address) is peer and self._try(peer, peer.waiting[0]):
                peer.waiting_bytes -= len(peer.waiting.pop(0))
                self._retry_s = FIRST_RETRY_S
            if not peer.waiting or self._peers.get(peer.address) is not peer:
                self._slow.discard(peer)
        if self._slow and not self._stopped:
            self._loop.call_later(self._retry_s, self._retry)

    def drop(self, peer: Peer) -> None:
        """See `relay.link.base.Plane.drop`."""
        if self._peers.get(peer.address) is peer:
            del self._peers[peer.address]
        peer.waiting.clear()
        peer.unsent.clear()
        peer.waiting_bytes = peer.unsent_bytes = 0

    def stop(self) -> None:
        """See `relay.link.base.Plane.stop`."""
        self._stopped = True
        self._loop.remove_reader(self._socket.fileno())
        if self._listener is not None:
            self._listener.close(self._socket)
        self._socket.close()
        self._loop.remove_reader(self._zap.fileno())
        self._zap.close()
        self._context.term()


def _forget_sent(peer: Peer) -> None:
    while peer.unsent and peer.unsent[0][0].done:
        peer.unsent_bytes -= peer.unsent.popleft()[1]


def _user_id(key: bytes) -> bytes:
    """Any peer that proves a key may connect; the dispatcher decides, message by message, what this key may send."""
    return key.hex().encode()
