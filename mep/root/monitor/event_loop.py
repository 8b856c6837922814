"""The monitor's poll loop: descriptors and timers, one thread. Nothing blocks except the poll itself."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
_FEW = 64


class Timer:
    """A future call that can be cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Cancel the call."""
        self.callback = None


class PollLoop:
    """Watched descriptors and timers. Callbacks run one at a time, in `turn`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._tidy_at = _FEW
        self._numbers = itertools.count()
        self.clock = clock

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `descriptor` is readable or at its end."""
        self._epoll.register(descriptor, READ)
        self._callbacks[descriptor] = callback

    def want(self, descriptor: int, events: int) -> None:
        """Change what `descriptor` is watched for: READ, or READ | WRITE."""
        self._epoll.modify(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """Forget `descriptor`; call this before closing it."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `seconds` from now."""
        timer = Timer(callback)
        if len(self._timers) >= self._tidy_at:
            self._tidy()
        heapq.heappush(self._timers, (self.clock() + seconds, next(self._numbers), timer))
        return timer

    def _tidy(self) -> None:
        """Forget cancelled timers: most are cancelled long before they are due."""
        self._timers = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._tidy_at = max(_FEW, 2 * len(self._timers))

    def turn(self) -> None:
        """Wait for an event and run its callbacks."""
        for descriptor, _ in self._epoll.poll(self._wait_s()):
            if (callback := self._callbacks.get(descriptor)) is not None:
                callback()
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if (due := timer.callback) is not None:
                due()

    def _wait_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self.clock()) if self._timers else None
