"""Links between the relay and its peers, in order and without repetition, until they are cut.

A cut loses what is under way in both directions. Each side learns of it when it learns of it: at once, at its next
message, or after the silence that its own rule allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mep_wire.limits import LINK_DEAD_S
from relay.link.base import Peer, PlaneHandler

from .world import RelayLoop, World

FASTEST_S, SLOWEST_S = 0.0002, 0.02
SWEEP_S = 5.0


class Connection:
    """One connection of a peer. `on_frame` and `on_lost` are the peer's."""

    def __init__(
        self, world: World, network: Network, key: bytes, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._world, self.key = world, key
        self._on_frame, self._on_lost = on_frame, on_lost
        self.cut_off = self.closed = False
        """Nothing passes any more; and the peer's host says so."""
        self.link_ = network.link_
        self.peer: Peer | None = None
        self._up_at = self._down_at = world.now
        self._slowest = world.between(0.001, SLOWEST_S)
        if self.link_ is None:
            self.cut(silent=False)

    def _arrival(self, last: float) -> float:
        return max(last, self._world.now + self._world.rng.uniform(FASTEST_S, self._slowest))

    def send(self, frame: bytes) -> None:
        """The peer sends a frame."""
        if not self.cut_off:
            self._up_at = self._arrival(self._up_at)
            self._world.at(self._up_at, self._at_relay, frame)

    def _at_relay(self, frame: bytes) -> None:
        if not self.cut_off and self.link_ is not None and not self.link_.loop.dead:
            self._world.say("%s to the relay: %s", self.key[:3].hex(), frame)
            self.link_.take(self, frame)

    def answer(self, frame: bytes) -> None:
        """The relay sends a frame."""
        if not self.cut_off:
            self._down_at = self._arrival(self._down_at)
            self._world.at(self._down_at, self._at_peer, frame)

    def _at_peer(self, frame: bytes) -> None:
        if not self.cut_off:
            self._world.say("the relay to %s: %s", self.key[:3].hex(), frame)
            self._on_frame(frame)

    def cut(self, *, silent: bool) -> None:
        """Nothing passes any more. `silent`: neither side is told, as by a cable that is pulled."""
        if self.cut_off:
            return
        self.cut_off, self.closed = True, not silent
        delay = self._world.between(0.001, 0.05) if not silent else self._world.between(1.0, LINK_DEAD_S)
        self._world.after(delay, self._on_lost)
        self._tell_relay(silent=silent)

    def close(self) -> None:
        """The peer closes its side: it is told nothing more."""
        if not self.cut_off:
            self.cut_off = self.closed = True
            self._tell_relay(silent=False)

    def _tell_relay(self, *, silent: bool) -> None:
        """The relay learns of it by the peer's silence, unless it tries to send before."""
        if self.link_ is not None and self.peer is not None and not silent and self._world.chance(0.5):
            delay = self._world.between(0.01, 1.0)  # a heartbeat is just about to be sent
            self._world.after(delay, self.link_.lose, self.peer, "silent", owner=self.link_.loop)


class SimPlane:
    """`relay.link.base.Plane`: one life of the relay's side."""

    address = "sim"

    def __init__(self, world: World, loop: RelayLoop) -> None:
        self._world, self.loop = world, loop
        self._peers: dict[Peer, Connection] = {}
        self._handler: PlaneHandler | None = None
        self._sweep()
        self.watch: Callable[[Peer, bytes], None] = lambda _peer, _frame: None
        """Told of each frame that the relay sends."""

    def start(self, handler: PlaneHandler) -> None:
        self._handler = handler

    def stop(self) -> None:
        """Nothing to end."""

    def take(self, connection: Connection, frame: bytes) -> None:
        """A frame has come."""
        peer = connection.peer
        if peer is None or peer not in self._peers:
            peer = connection.peer = Peer(connection.key, self._world.token(5), self._world.now)
            self._peers[peer] = connection
        peer.last_seen = self._world.now
        if self._handler is not None:
            self._handler.on_frame(peer, frame)

    def send(self, peer: Peer, frame: bytes) -> bool:
        connection = self._peers.get(peer)
        if connection is None:
            return False
        if connection.closed:
            self.drop(peer)
            self.loop.call_soon(self._gone, peer, "its connection is closed")
            return False
        self.watch(peer, frame)
        connection.answer(frame)
        return True

    def writable(self, peer: Peer) -> bool:
        return True

    def drop(self, peer: Peer) -> None:
        self._peers.pop(peer, None)

    def _sweep(self) -> None:
        """Lose the peers that are silent: those with a connection send a heartbeat."""
        before = self._world.now - LINK_DEAD_S
        for peer, connection in list(self._peers.items()):
            if connection.cut_off and peer.last_seen < before:
                self.lose(peer, "silent")
        self._world.after(SWEEP_S, self._sweep, owner=self.loop)

    def lose(self, peer: Peer, reason: str) -> None:
        """A peer is silent."""
        if self._peers.pop(peer, None) is not None:
            self._gone(peer, reason)

    def _gone(self, peer: Peer, reason: str) -> None:
        if self._handler is not None and peer.session is not None:
            self._handler.on_gone(peer, reason)

    def connections(self) -> list[Connection]:
        """Return the connections of known peers."""
        return list(self._peers.values())


class Network:
    """How peers reach the relay; `link_` is None while it is down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.link_: SimPlane | None = None
        self._all: list[Connection] = []

    def connect(self, key: bytes, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> Connection:
        """Begin a connection. It is lost at once where the relay is down."""
        made = Connection(self._world, self, key, on_frame, on_lost)
        self._all = [one for one in self._all if not one.cut_off]
        self._all.append(made)
        return made

    def relay_is_gone(self) -> None:
        """The relay's process has ended: its host says so to all."""
        self.link_ = None
        for connection in self._all:
            connection.cut(silent=self._world.chance(0.1))

    @property
    def live(self) -> list[Any]:
        """Connections that are up."""
        return [one for one in self._all if not one.cut_off]
