"""Messages that must reach the relay even if the link breaks: answers and ends, kept until the relay has read them.

Pure. The link keeps the order, and the relay answers each Ping with a Pong in turn. A Pong therefore proves that the
relay has read everything sent before its Ping. Unproven messages are sent again on the next link. The outbox is
bounded: if it is full, the oldest message is dropped, and the relay asks again by itself.
"""

from __future__ import annotations

from collections import deque

from mep_wire.messages import StartAnswer, UepEnded, UepRevoked

Kept = StartAnswer | UepEnded | UepRevoked
MAX_KEPT = 4096


class Outbox:
    """Messages in order: first those sent but not proven read, then those not sent."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._unsent: deque[Kept] = deque()
        self._unproven: deque[tuple[float, Kept]] = deque()
        self._max_kept = max_kept
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._unproven)

    def add(self, message: Kept) -> None:
        """Keep a message for sending."""
        if len(self) >= self._max_kept:
            self.dropped += 1
            if self._unproven:
                self._unproven.popleft()
            else:
                self._unsent.popleft()
        self._unsent.append(message)

    def peek(self) -> Kept | None:
        """Return the next message to send, or None."""
        return self._unsent[0] if self._unsent else None

    def sent(self, now: float) -> None:
        """Record that the message that `peek` returned went out at `now`."""
        self._unproven.append((now, self._unsent.popleft()))

    def proven(self, until: float) -> None:
        """Forget the messages sent before `until`: the relay has read them."""
        while self._unproven and self._unproven[0][0] < until:
            self._unproven.popleft()

    def link_lost(self) -> None:
        """Put unproven messages back in front, for the next link."""
        self._unsent.extendleft(message for _, message in reversed(self._unproven))
        self._unproven.clear()
