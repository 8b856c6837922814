"""How many people may be looked up at once by what may be slow: callouts and directories.

Each of their documents has `limit` places; who finds none waits. Everybody who is in one or waits for one holds a
thread of the mapper, so both are bounded: while MAX_AT_ONE people are with a document nobody more waits for it, and no
more than MAX_SLOW people are with all the documents of a chain together, one and the same person no more than
MAX_OF_ONE times. Whoever comes on top is sent away at once (MapperBusy), to be
asked about again a little later, and so whoever is mapped by expressions, domains or from memory never waits for them.
Re-checks of what runs (`background`) hold at most half of a document's places; how many there are at once is for their
caller to bound. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from identity.base import How
from identity.errors import MapperBusy

MAX_SLOW = 20
"""People who may be with all callouts and directories of a chain at once, re-checks not counted."""
MAX_OF_ONE = 4
"""Of them, how many may be one and the same person, with several starts at once: nobody crowds the others out."""
MAX_AT_ONE = 16
"""People with one callout or directory, those who wait included, from which on nobody more waits for a place of it."""


class Crowd:
    """Everybody who is with any of the slow mappers of one process."""

    def __init__(self, most: int = MAX_SLOW, most_of_one: int = MAX_OF_ONE) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def join(self, person: str) -> Iterator[None]:
        """Be one of them. Raises MapperBusy where there are too many."""
        with self._lock:
            if self._inside.total() >= self._most:
                raise MapperBusy(f"{self._most} people are being looked up by callouts and directories already")
            if self._inside[person] >= self._most_of_one:
                raise MapperBusy(f"this person is being looked up {self._most_of_one} times already")
            self._inside[person] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[person] -= 1
                self._inside += Counter()  # which drops those who are inside no more


class Places:
    """The places of one document."""

    def __init__(self, limit: int, crowd: Crowd) -> None:
        self._limit = limit
        self._crowd = crowd
        self._changed = threading.Condition()
        self._held = 0
        self._held_in_background = 0
        self._waiting = 0

    @contextlib.contextmanager
    def hold(self, wait_s: float, how: How) -> Iterator[None]:
        """Have a place, waiting up to `wait_s` for it. Raises MapperBusy."""
        background = how.background
        with contextlib.nullcontext() if background else self._crowd.join(how.person):
            self._take(wait_s, background)
            try:
                yield
            finally:
                with self._changed:
                    self._held -= 1
                    self._held_in_background -= background
                    self._changed.notify_all()

    def _take(self, wait_s: float, background: bool) -> None:
        until = time.monotonic() + wait_s
        with self._changed:
            if not self._is_free(background) and not background and self._held + self._waiting >= MAX_AT_ONE:
                raise MapperBusy(f"all its {self._limit} places are taken, and {self._waiting} people wait for one")
            self._waiting += not background
            try:
                while not self._is_free(background):
                    left = until - time.monotonic()
                    if left <= 0:
                        raise MapperBusy(f"none of its {self._limit} places became free within {wait_s:g} s: no place")
                    self._changed.wait(left)
            finally:
                self._waiting -= not background
            self._held += 1
            self._held_in_background += background

    def _is_free(self, background: bool) -> bool:
        if background and self._held_in_background >= max(1, self._limit // 2):
            return False
        return self._held < self._limit
