"""The user endpoint's one thread: waits for the relay, the engine, signals, the keeper's end and time.

Each turn reads everything that is ready, then sends the outcome in as few messages as possible. A busy
endpoint therefore batches by itself, and a lone task waits for nothing. Called by main.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable

from mep_link.client import LinkClient
from mep_wire import messages
from user_endpoint.bounded_log import BoundedLog
from user_endpoint.engines.base import TICK_S, Engine
from user_endpoint.lifecycle.shutdown import RUN_GRACE_S
from user_endpoint.user_endpoint import UserEndpoint

_HANGUP = select.POLLHUP | select.POLLERR
_LONGEST_WAIT_S = 3600.0


class Signals:
    """SIGTERM and SIGINT (stop) and SIGUSR2 (drain) as flags and a readable descriptor."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stop: str | None = None
        self.drain = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGUSR2, self._note_drain)
        signal.signal(signal.SIGHUP, lambda _number, _frame: self.clear())  # ignored, it would be so in blocks too

    def _note(self, number: int, _frame: object) -> None:
        self.stop = signal.Signals(number).name
        with contextlib.suppress(BlockingIOError):  # a SIGHUP of the same moment has cleared it
            os.write(self._write, b"\0")

    def _note_drain(self, _number: int, _frame: object) -> None:
        self.drain = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read

    def clear(self) -> None:
        """Make the descriptor quiet again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)


class EventLoop:
    """Runs `endpoint` until it has ended."""

    def __init__(
        self,
        endpoint: UserEndpoint,
        link: LinkClient[messages.ToUep],
        engine: Engine,
        signals: Signals,
        keeper_fd: int,
        log: BoundedLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint, self._link, self._engine = endpoint, link, engine
        self._signals, self._keeper_fd, self._log, self._clock = signals, keeper_fd, log, clock
        self._poll = select.poll()
        self._link_descriptors: list[int] = []
        self._link_down = ""
        self._engine_fd, self._engine_polled, self._engine_heeded = engine.fileno(), True, True
        for descriptor in (self._engine_fd, signals.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(keeper_fd, 0)  # hang-up alone, which poll always tells

    def run(self) -> None:
        """Return when the endpoint has ended and said goodbye."""
        while True:
            self._wait()
            self._turn()
            if self._endpoint.tick():
                break
            if self._engine_stopped and self._engine_polled:
                self._engine_polled = False
                self._poll.unregister(self._engine_fd)
        self._endpoint.goodbye()

    def _turn(self) -> None:
        if self._signals.stop is not None:
            self._signals.clear()
            self._endpoint.stop("STOPPED", f"stopped by {self._signals.stop}", self._grace_s())
        elif self._signals.drain:
            self._signals.clear()
            self._endpoint.drain()
        while True:
            self._endpoint.take(self._link.receive())
            collected = self._endpoint.collect() if not self._engine_stopped else False
            self._endpoint.flush()
            self._link.tick()
            if not collected and not self._link.pending:
                break
        self._note_link()
        self._log.trim()

    def _grace_s(self) -> float | None:
        """Return how long tasks may run on after a signal: one that comes during a drain ends the drain, once."""
        stopping = self._endpoint.stopping
        return RUN_GRACE_S if stopping is not None and stopping.run_until == math.inf else None

    @property
    def _engine_stopped(self) -> bool:
        return self._endpoint.stopping is not None and self._endpoint.stopping.engine_stopped

    def _note_link(self) -> None:
        down = "" if self._link.welcomed else self._link.down_reason
        if down and down != self._link_down:
            self._log.warning("the relay link is down, trying again", reason=down)
        self._link_down = down

    def _wait(self) -> None:
        self._register_link()
        self._heed_engine(heed=not (self._engine.fed and self._endpoint.gathers))
        for descriptor, event in self._poll.poll(self._timeout_ms()):
            if descriptor == self._keeper_fd and event & _HANGUP:
                self._poll.unregister(self._keeper_fd)
                self._endpoint.stop("STOPPED", "its keeper has ended")

    def _heed_engine(self, *, heed: bool) -> None:
        """Wait for the engine, or for the time alone: under load one turn takes what ended in a millisecond."""
        if heed is not self._engine_heeded and self._engine_polled:
            self._engine_heeded = heed
            self._poll.modify(self._engine_fd, select.POLLIN if heed else 0)

    def _register_link(self) -> None:
        descriptors = self._link.descriptors()
        if descriptors == self._link_descriptors:
            return
        for descriptor in self._link_descriptors:
            with contextlib.suppress(KeyError, OSError):
                self._poll.unregister(descriptor)
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)
        self._link_descriptors = descriptors

    def _timeout_ms(self) -> float:
        if self._link.pending:
            return 0
        now = self._clock()
        due = min(now + _LONGEST_WAIT_S, self._link.next_deadline(), self._endpoint.next_deadline() or math.inf)
        if self._endpoint.held and not self._engine_stopped:
            due = min(due, now + TICK_S)
        return max(0.0, due - now) * 1000  # which poll() rounds up
