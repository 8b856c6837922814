"""Virtual time: one heap of events, one random generator, and the event loop that the relay's code runs in.

Nothing here waits, reads a clock or draws from a generator of its own. The same seed therefore gives the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

BEGIN_S = 1_700_000_000.0
TRACE_LINES = 120
"""The last lines of the trace that a failing run shows, unless all are wanted."""


class Handle:
    """One event to come. `owner` is asked whether it still exists."""

    __slots__ = ("args", "call", "cancelled", "owner")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...], owner: Any) -> None:
        self.call, self.args, self.owner, self.cancelled = call, args, owner, False

    def cancel(self) -> None:
        """Have it not happen."""
        self.cancelled = True


class World:
    """The time, the events to come, and the draws."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.waits = random.Random(f"waits {seed}") if seed % 3 == 1 else None
        """Draws which tasks wait for others, in every third episode: those of the others are as they were."""
        self.now = 1000.0
        self.clock_offset = BEGIN_S
        self.steps = 0
        self.trace: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=TRACE_LINES)
        self._heap: list[tuple[float, int, Handle]] = []
        self._ready: deque[Handle] = deque()
        self._count = 0

    def say(self, text: str, *args: Any) -> None:
        """Note an event for the trace of a failing run."""
        self.trace.append((self.now, text, args))

    def monotonic(self) -> float:
        """Return the time by the clock that nobody sets."""
        return self.now

    def wall(self) -> float:
        """Return the time by the clock that is stepped."""
        return self.now + self.clock_offset

    def at(self, when: float, call: Callable[..., object], *args: Any, owner: Any = None) -> Handle:
        """Have `call` happen at a time."""
        handle = Handle(call, args, owner)
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, handle))
        return handle

    def after(self, delay: float, call: Callable[..., object], *args: Any, owner: Any = None) -> Handle:
        """Have `call` happen after a delay."""
        return self.at(self.now + delay, call, *args, owner=owner)

    def soon(self, call: Callable[..., object], args: tuple[Any, ...], owner: Any) -> Handle:
        """Have `call` happen before anything else does."""
        handle = Handle(call, args, owner)
        self._ready.append(handle)
        return handle

    def run(self, steps: int, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let so many events happen, or those up to a time, or until `done`."""
        heap, last = self._heap, self.steps + steps
        while heap and self.steps < last and heap[0][0] <= until and not done():
            when, _, handle = heapq.heappop(heap)
            if handle.cancelled or (handle.owner is not None and handle.owner.dead):
                continue
            self.now = when
            self.steps += 1
            handle.call(*handle.args)
            self._drain()

    def _drain(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle.cancelled and not handle.owner.dead:
                handle.call(*handle.args)

    # --- draws ------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Draw whether something happens."""
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        """Draw a time; short ones are as likely as long ones."""
        return low * (high / low) ** self.rng.random()

    def token(self, size: int = 32) -> bytes:
        """Draw bytes."""
        return self.rng.randbytes(size)


class RelayLoop(asyncio.AbstractEventLoop):
    """The event loop of one life of the relay: `asyncio` on the world's heap. It ends with the relay."""

    def __init__(self, world: World, failed: Callable[[str], None]) -> None:
        self._world, self._failed = world, failed
        self.dead = False
        self._tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self._world.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._world.soon(callback, args, self)

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._world.after(delay, callback, *args, owner=self)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._world.at(when, callback, *args, owner=self)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **_: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        self._tasks.append(task)
        if len(self._tasks) > 500:
            self._tasks = [one for one in self._tasks if not one.done()]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failed(f"{context.get('message')}: {context.get('exception')!r}")

    def kill(self) -> None:
        """The relay dies: nothing of it goes on."""
        self.dead = True
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError):
                task.get_coro().close()  # type: ignore[union-attr]
        self._tasks.clear()


@contextlib.contextmanager
def ruled_by(world: World) -> Iterator[None]:
    """Have every module see the world's time and draws."""
    rng = world.rng
    with (
        mock.patch.object(time, "time", world.wall),
        mock.patch.object(time, "monotonic", world.monotonic),
        mock.patch.object(random, "uniform", rng.uniform),
        mock.patch.object(random, "random", rng.random),
    ):
        try:
            yield
        finally:
            asyncio._set_running_loop(None)
