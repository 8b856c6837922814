"""Texts that fit a regular expression of the administrator's schema, made up by rstr. For `mep check` alone.

rstr draws at random and knows less than `re` does: it passes over word boundaries, takes look-ahead for text, and fails
at some newer syntax. Its texts are therefore proposals, and each is held against the pattern before it is used. The
draws begin at a fixed number, so that the same schema gives the same texts. A pattern may ask for endless work, in
rstr (`((a{99}){99}){99}`) or in the match itself (`^(a+)+$`); both end after PATTERN_CPU_S.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

PATTERN_CPU_S = 0.5
"""Most processor time for one pattern."""
MAX_CHARACTERS = 4096
MAX_MADE = 4
"""Most texts for one pattern."""
_SURPLUSES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
"""How often `*` and its kind repeat beyond their least number, one draw after another."""
_DRAWS = 3


class _OutOfTime(Exception):
    """The pattern's processor time is used up."""


class _Repeats(random.Random):
    """Draws for rstr, which asks `randint` for nothing but the number of repeats."""

    surplus = 0

    def randint(self, a: int, b: int) -> int:
        """Return the least number and the surplus. `b`, where rstr cuts, may be below the least."""
        return max(a, min(b, a + self.surplus))


def texts_for(pattern: str, limits: Mapping[str, Any]) -> list[str]:
    """Return a few texts that fit `pattern` and the `minLength` and `maxLength` of `limits`.

    The shortest one comes first, then the longest. Empty if none could be made. It uses SIGVTALRM, so call it in the
    main thread.
    """
    found: set[str] = set()
    with contextlib.suppress(_OutOfTime), _limited_time():
        for text in _proposals(pattern):
            if _fits(text, pattern, limits):
                found.add(text)
    by_length = sorted(found, key=lambda text: (len(text), text))
    return [*by_length[:1], *by_length[:0:-1]][:MAX_MADE]


def _proposals(pattern: str) -> Iterator[str]:
    from rstr import Rstr

    draws = _Repeats(0)
    maker = Rstr(draws)
    for surplus in _SURPLUSES:
        draws.surplus = surplus
        for _ in range(_DRAWS):
            try:
                yield maker.xeger(pattern)
            except (re.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                return  # syntax that rstr does not know


def _fits(text: str, pattern: str, limits: Mapping[str, Any]) -> bool:
    least, most = limits.get("minLength", 0), limits.get("maxLength", MAX_CHARACTERS)
    return least <= len(text) <= min(most, MAX_CHARACTERS) and text.isprintable() and bool(re.search(pattern, text))


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Raise _OutOfTime inside after PATTERN_CPU_S of this process's own time: waiting for a processor costs nothing."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATTERN_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
