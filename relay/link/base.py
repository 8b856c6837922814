"""The link layer's interface (`Plane`): it moves frames between relay and peers, and knows each peer by its key.

Each backend is one file beside this one. It decodes nothing: the dispatcher reads the frames and decides
which messages their senders may send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol


class LinkSession:
    """What the dispatcher has made of a peer: the base of its records. The link layer only checks that it exists."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Peer:
    """One link of one peer. A peer that connects again is another Peer with the same key.

    `session` belongs to the dispatcher; the link layer never reads it.
    """

    key: bytes
    """The peer's proven public key, 32 bytes."""
    address: bytes
    """The address for answers. The link layer chooses it; it proves no identity."""
    last_seen: float
    session: LinkSession | None = None
    waiting: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0
    unsent: deque[tuple[Any, int]] = field(default_factory=deque)
    """Large frames that the link layer has in memory: what says whether it still has one, and its size."""
    unsent_bytes: int = 0


class PlaneHandler(Protocol):
    """The callbacks of a link layer, always called in the event loop's thread."""

    def on_frame(self, peer: Peer, frame: bytes) -> None:
        """A peer sent a frame."""

    def on_gone(self, peer: Peer, reason: str) -> None:
        """A peer with a session is silent, too slow, or was replaced by another link with the same address."""


class RelayLink(Protocol):
    """The methods of every link layer. All of them are called from the event loop's thread."""

    address: str
    """Where peers connect to."""

    def start(self, handler: PlaneHandler) -> None:
        """Begin to listen. Raises OSError when the address cannot be had."""

    def send(self, peer: Peer, frame: bytes) -> bool:
        """Send a frame, or keep it for a moment while the peer is slow. False where the peer is gone."""

    def writable(self, peer: Peer) -> bool:
        """Whether next to nothing waits for this peer: bulk is sent only then."""

    def drop(self, peer: Peer) -> None:
        """Forget a peer: nothing is sent to it any more. `on_gone` is not called."""

    def stop(self) -> None:
        """Stop listening, after sent messages have left (for up to a second)."""
