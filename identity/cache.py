"""Remembers answers for a while: found ones for one time, not-found ones for another. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")
MAX_ENTRIES = 10_000


class AnswerCache(Generic[V]):
    """Answers by key; None is the answer that there is none. Lifetimes are in seconds, 0 keeps nothing."""

    def __init__(
        self,
        found_s: float,
        not_found_s: float,
        clock: Callable[[], float] = time.monotonic,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._lifetimes = (found_s, not_found_s)
        self._clock = clock
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, V | None]] = OrderedDict()

    def get(self, key: str) -> tuple[bool, V | None]:
        """Return (True, answer) where one is remembered, else (False, None)."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False, None
            if entry[0] <= self._clock():
                del self._entries[key]
                return False, None
            return True, entry[1]

    def drop(self, key: str) -> None:
        """Forget what is remembered of `key`."""
        with self._lock:
            self._entries.pop(key, None)

    def put(self, key: str, answer: V | None) -> None:
        """Remember `answer`. The oldest entry makes room."""
        lifetime = self._lifetimes[answer is None]
        with self._lock:
            self._entries.pop(key, None)
            if lifetime <= 0:
                return
            self._entries[key] = (self._clock() + lifetime, answer)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
