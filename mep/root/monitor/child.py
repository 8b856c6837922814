"""One child as the monitor sees it: its channel, its phase, and the messages it has sent and how fast.

Trusts nothing about the child. Sending never blocks: messages that the child hasn't read wait in a bounded queue. A
child that lets the queue fill up, or sends too fast, gets a `fault`, for which the monitor kills it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence

from mep.boundary.channel import Channel, close_descriptors
from mep.boundary.messages import Message
from mep.root.monitor.event_loop import READ, WRITE, PollLoop

MAX_QUEUED = 2048
MAX_RATE, MAX_BURST = 100.0, 4000.0
"""Messages per second that a child may send, sustained and in a burst. Each may cause a line in the audit log, so a
faster child could fill the disk."""


class ChildKind(enum.StrEnum):
    """The kind of a child."""

    MANAGER = "manager"
    MAPPER = "mapper"
    KEEPER = "keeper"
    ADMIN = "administrator"
    """A command at the administrators' socket; no child of the monitor's."""


class Phase(enum.Flag):
    """A phase of a child's life. Each message is allowed in some phases only."""

    BEGINNING = enum.auto()
    """Manager or mapper: exec'd, not ready."""
    SERVING = enum.auto()
    """Manager or mapper: ready."""
    ADMITTING = enum.auto()
    """Keeper: looking the account up."""
    SPAWNING = enum.auto()
    """Keeper: admitted, its user endpoint not exec'd."""
    STARTING = enum.auto()
    """Keeper: its user endpoint exec'd, not ready."""
    RUNNING = enum.auto()
    """Keeper: its user endpoint ready."""
    ENDING = enum.auto()
    """Has sent its last message; no further one is allowed."""


class Bucket:
    """A token bucket: `rate` tokens per second, at most `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()

    def take(self) -> bool:
        """Take one token; return False if there is none."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Child:
    """A running manager, mapper or keeper."""

    def __init__(
        self, kind: ChildKind, pid: int, channel: Channel, phase: Phase, loop: PollLoop, *, pidfd: int = -1
    ) -> None:
        """`pidfd` is of an adopted keeper, which another process has forked and reaps."""
        self.kind, self.pid, self.channel, self.phase, self.pidfd = kind, pid, channel, phase, pidfd
        self.name = f"{kind}[{pid}]"
        self.seen: set[type[Message]] = set()
        self.bucket = Bucket(MAX_RATE, MAX_BURST, loop.clock)
        self.fault = ""
        self.uep_id = ""
        self.open = True
        self._loop = loop
        self._queue: deque[tuple[Message, list[int]]] = deque()
        self._waiting = self._paused = False
        self._deaf = False

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send or queue a message. `descriptors` are the child's to close."""
        if not self.open or self.fault or self._deaf:
            close_descriptors(descriptors)
        elif len(self._queue) >= MAX_QUEUED:
            close_descriptors(descriptors)
            self.fault = f"does not read: {MAX_QUEUED} messages wait for it"
        else:
            self._queue.append((message, list(descriptors)))
            self.flush()

    def flush(self) -> None:
        """Send queued messages as far as the child reads them."""
        while self._queue and self.open:
            message, descriptors = self._queue[0]
            try:
                self.channel.send(message, descriptors)
            except BlockingIOError:
                break
            except OSError:
                # The child has ended or closed its end. Earlier messages from it are still to be read.
                self._deaf = True
                self._drop_queue()
                break
            self._queue.popleft()
            close_descriptors(descriptors)
        if self.open and self._waiting != bool(self._queue):
            self._waiting = bool(self._queue)
            self._want()

    def pause(self, *, paused: bool = True) -> None:
        """Read no further messages until this is called with False. They wait in the channel."""
        self._paused = paused
        if self.open:
            self._want()

    def _want(self) -> None:
        self._loop.want(self.channel.fileno(), (0 if self._paused else READ) | (WRITE if self._waiting else 0))

    def _drop_queue(self) -> None:
        for _, descriptors in self._queue:
            close_descriptors(descriptors)
        self._queue.clear()

    def close(self) -> None:
        """Close the channel and drop the queue."""
        if not self.open:
            return
        self.open = False
        self._loop.unwatch(self.channel.fileno())
        self.channel.close()
        self._drop_queue()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child. Only allowed before it is reaped, because its pid may be reused afterwards."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
