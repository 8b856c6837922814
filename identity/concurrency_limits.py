"""Limits how many people are looked up at once by mappers that may be slow: callouts and directories.

Each document runs `limit` lookups at once; further ones wait. Each lookup, running or waiting, occupies a mapper
thread. At most MAX_AT_ONE run or wait per document, MAX_SLOW in total for a chain, and MAX_OF_ONE per person. Further
lookups fail at once with SourceBusy, and are retried a little later. Lookups by expressions, domains or from the cache
therefore never wait for slow mappers. Re-checks of running user endpoints (`background`) take at most half of a
document's permits; their caller bounds their number. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from identity.base import LookupOptions
from identity.errors import SourceBusy

MAX_SLOW = 20
"""People who may be with all callouts and directories of a chain at once, re-checks not counted."""
MAX_OF_ONE = 4
"""How many of them may be the same person, with several starts at once. It keeps one person from taking them all."""
MAX_AT_ONE = 16
"""Lookups of one callout or directory, waiting ones included, above which further ones are refused."""


class PersonLimit:
    """All people being looked up by any slow mapper of one process."""

    def __init__(self, most: int = MAX_SLOW, most_of_one: int = MAX_OF_ONE) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def join(self, person: str) -> Iterator[None]:
        """Count one more look-up for the person. Raises SourceBusy if there are too many."""
        with self._lock:
            if self._inside.total() >= self._most:
                raise SourceBusy(f"{self._most} people are being looked up by callouts and directories already")
            if self._inside[person] >= self._most_of_one:
                raise SourceBusy(f"this person is being looked up {self._most_of_one} times already")
            self._inside[person] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[person] -= 1
                self._inside += Counter()  # drops people with no look-up left


class ConcurrencyLimit:
    """The concurrency limit of one document."""

    def __init__(self, limit: int, person_limit: PersonLimit) -> None:
        self._limit = limit
        self._person_limit = person_limit
        self._changed = threading.Condition()
        self._held = 0
        self._held_in_background = 0
        self._waiting = 0

    @contextlib.contextmanager
    def hold(self, wait_s: float, how: LookupOptions) -> Iterator[None]:
        """Hold a permit, waiting up to `wait_s` for it. Raises SourceBusy."""
        background = how.background
        with contextlib.nullcontext() if background else self._person_limit.join(how.person):
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
                raise SourceBusy(f"all its {self._limit} permits are taken, and {self._waiting} people wait for one")
            self._waiting += not background
            try:
                while not self._is_free(background):
                    left = until - time.monotonic()
                    if left <= 0:
                        raise SourceBusy(
                            f"none of its {self._limit} permits became free within {wait_s:g} s: no permit"
                        )
                    self._changed.wait(left)
            finally:
                self._waiting -= not background
            self._held += 1
            self._held_in_background += background

    def _is_free(self, background: bool) -> bool:
        if background and self._held_in_background >= max(1, self._limit // 2):
            return False
        return self._held < self._limit
