"""The threads that call done-callbacks, so that one that waits holds up neither results nor other callbacks.

One thread calls them, one future after another, and a second one stands by. It takes over the queue when no callback
has returned or begun for a while: the running ones wait, perhaps for what a later callback does. While none return, it
does so ever sooner. Surplus threads end once the queue is empty. Results that run code when they are loaded are loaded
in the same way. Used by Submitter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

from mep_sdk.foreign_code import attempt

log = logging.getLogger("mep_sdk")

_PATIENCE_S = 0.1
"""How long to take it that a running callback works rather than waits."""
_LEAST_PATIENCE_S = 0.001
_KEEP_IDLE_S = 5.0
_MOST_FREE = 2
"""Threads that stay without work: one for the next future, one to stand by."""
MOST_THREADS = 4096


class HasCallbacks(Protocol):
    """A future that has ended, with callbacks to be called."""

    def call_callbacks(self) -> None:
        """Call them, in order."""


class CallbackThreads:
    """Calls the callbacks of ended futures, those of each future in order. Thread-safe."""

    def __init__(self, name: str = "mep-callbacks", most_threads: int = MOST_THREADS) -> None:
        self._name, self._most_threads = name, most_threads
        self._change = threading.Condition()
        self._queue: deque[HasCallbacks] = deque()
        self._threads: set[threading.Thread] = set()
        self._running: set[int] = set()
        """Threads that are in callbacks, by their idents."""
        self._waiting: set[int] = set()
        """Those among them that have called `wait`."""
        self._moved = 0.0
        self._patience_s = _PATIENCE_S

    def put(self, future: HasCallbacks) -> None:
        """Have the callbacks of `future` called."""
        with self._change:
            self._queue.append(future)
            self._staff()
            self._change.notify_all()

    def wait(self) -> None:
        """Wait until every callback has returned. Callbacks that call this wait for all but each other."""
        own = threading.get_ident()
        with self._change:
            if own in self._running:
                self._waiting.add(own)  # until it returns
                self._change.notify_all()
                self._change.wait_for(lambda: not self._queue and self._running <= self._waiting)
            else:
                self._change.wait_for(lambda: not self._queue and not self._running)

    def _staff(self) -> None:
        """Start a thread where the queue has none that is free; the caller holds the lock."""
        if len(self._threads) > len(self._running) or len(self._threads) >= self._most_threads:
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        _, failure = attempt(thread.start)
        if failure is None:
            self._threads.add(thread)
        elif not self._threads:
            log.error("callbacks wait, since no thread can be started for them: %s", failure)

    def _run(self) -> None:
        own = threading.get_ident()
        while (future := self._next(own)) is not None:
            attempt(future.call_callbacks)

    def _next(self, own: int) -> HasCallbacks | None:
        """Return the next future for this thread, None where it is to end."""
        with self._change:
            if own in self._running:
                self._running.discard(own)
                self._waiting.discard(own)
                self._move(_PATIENCE_S)
                self._change.notify_all()
            while not (self._queue and self._is_due()):
                spare = len(self._threads) - len(self._running) > _MOST_FREE
                left_s = self._moved + self._patience_s - time.monotonic() if self._queue else _KEEP_IDLE_S
                if spare or not (self._change.wait(max(left_s, _LEAST_PATIENCE_S)) or self._queue):
                    self._threads.discard(threading.current_thread())
                    return None
            if self._running:  # and they all seem to wait
                self._patience_s = max(_LEAST_PATIENCE_S, self._patience_s / 2)
            self._running.add(own)
            self._move(self._patience_s)
            future = self._queue.popleft()
            if self._queue:
                self._staff()
            return future

    def _is_due(self) -> bool:
        return self._running <= self._waiting or time.monotonic() >= self._moved + self._patience_s

    def _move(self, patience_s: float) -> None:
        self._moved, self._patience_s = time.monotonic(), patience_s
