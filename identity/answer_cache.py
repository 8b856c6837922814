"""Remembers answers for a while: found ones for one time, not-found ones for another. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
MAX_ENTRIES = 10_000


class AnswerCache(Generic[V]):
    """Answers by key; None is the answer that there is none. Lifetimes are in seconds, 0 keeps nothing.

    Of two look-ups that overlap, the one that began later is believed, whichever ends last.
    """

    def __init__(
        self,
        found_s: float,
        not_found_s: float,
        clock: Callable[[], float] = time.monotonic,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._lifetimes = (found_s, not_found_s)
        self.clock = clock
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry[V]] = OrderedDict()

    def get(self, key: str) -> tuple[bool, V | None]:
        """Return (True, answer) where one is remembered, else (False, None)."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_answer:
                return False, None
            if entry.until <= self.clock():
                del self._entries[key]
                return False, None
            return True, entry.answer

    def drop(self, key: str, began: float) -> None:
        """Drop the cached answer for `key`, and ignore the answers of look-ups that began before `began`."""
        with self._lock:
            self._keep(key, _Entry(0.0, None, began, is_answer=False))

    def put(self, key: str, answer: V | None, began: float) -> None:
        """Remember `answer`, of a look-up that began at `began` on our clock. The oldest entry makes room."""
        lifetime = self._lifetimes[answer is None]
        with self._lock:
            self._keep(key, _Entry(self.clock() + lifetime, answer, began, is_answer=lifetime > 0))

    def _keep(self, key: str, entry: _Entry[V]) -> None:
        known = self._entries.get(key)
        if known is not None and known.began > entry.began:
            return
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    until: float
    answer: V | None
    began: float
    is_answer: bool
    """False: the entry holds no answer, and only invalidates answers remembered before `began`."""
