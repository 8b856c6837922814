"""Watches the event loop: how late it is, and which call held it up.

Everything of the relay that is not the store's or the log's thread runs in the loop, so one call that waits stops every
link and request. The loop beats; a thread sees when a beat is overdue, and notes where the loop stands at that moment.
Called by the server.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from relay.log import RateLimitedLog

BEAT_S = 0.25
"""Interval of the loop's beats, and of the thread's looks at them."""
STALL_S = 0.25
"""A beat that is later than this is a stall: it is logged and counted."""
FORGET_S = 60.0
"""How long the longest lateness is shown."""
UNSEEN = "a call that let no other thread run"


class LoopWatch:
    """The watch over one running loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limited_log = RateLimitedLog()
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._beat = self._due = clock()
        self._lags: list[tuple[float, float]] = []
        self._where = ""
        self.stalls = 0
        """How many beats were later than STALL_S."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._next(self._clock())
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._timer.cancel()
        self._thread.join()

    @property
    def longest_s(self) -> float:
        """The latest beat of the last minute: by how much it was late, in seconds."""
        now = self._clock()
        return max([now - self._due, 0.0, *(lag for at, lag in self._lags if now - at < FORGET_S)])

    def _next(self, now: float) -> None:
        self._beat, self._due = now, now + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._beats)

    def _beats(self) -> None:
        """The loop is here."""
        now = self._clock()
        lag, where = now - self._due, self._where
        self._where = ""
        self._lags = [(at, other) for at, other in self._lags if now - at < FORGET_S and other > lag]
        self._lags.append((now, lag))  # later ones that are shorter replace none before them: at most a few remain
        if lag > STALL_S:
            self.stalls += 1
            self._limited_log.warning("event loop: stood still", seconds=round(lag, 2), where=where or UNSEEN)
        self._next(now)

    def _look(self) -> None:
        """Note where the loop stands while a beat is overdue, once a stall."""
        looked = self._clock()
        while not self._stopped.wait(BEAT_S):
            now, before = self._clock(), looked
            looked = now
            if now - before > BEAT_S + STALL_S:
                self._where = self._where or "the host or a stopped process, not a call: the watch was late too"
            elif now - self._due > STALL_S and not self._where:
                self._where = stands_in(sys._current_frames().get(self._thread_id))  # noqa: SLF001


def stands_in(frame: FrameType | None) -> str:
    """Return where a thread stands: the innermost line of the relay, and the call that it is in."""
    innermost = frame
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("relay."):
        frame = frame.f_back
    if frame is None or innermost is None:
        frame = innermost
    if frame is None or innermost is None:
        return ""
    line = f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} {frame.f_code.co_qualname}"
    inside = innermost.f_code.co_qualname
    return line if frame is innermost else f"{line} (in {inside})"
