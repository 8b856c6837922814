"""The one helper that waits in tests: `until`.

Deadlines are generous: they matter only where something is wrong, and the machine may be busy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 60.0
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.1


def until(
    what: str,
    condition: Callable[[], T],
    seconds: float = WAIT_S,
    *,
    unready: tuple[type[Exception], ...] = (LookupError,),
    details: Callable[[], object] = lambda: "",
) -> T:
    """Return the first true value of `condition`. Raises AssertionError with `what` and `details` after `seconds`.

    An exception of a type in `unready` counts as false: a status or a record is written a while after a change.
    """
    end, look_s = time.monotonic() + seconds, _FIRST_LOOK_S
    while True:
        with contextlib.suppress(*unready):
            if value := condition():
                return value
        if time.monotonic() >= end:
            raise AssertionError(f"not in time ({seconds:g} s): {what} {details()}".rstrip())
        time.sleep(look_s)
        look_s = min(2 * look_s, _LONGEST_LOOK_S)
