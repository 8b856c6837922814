"""The one helper that waits in tests: `until`, and its form for an event loop.

Standard library only: guests of the VM tests load it too. Deadlines are generous: they matter only where something is
wrong, and the machine may be busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 60.0
_FIRST_LOOK_S = 0.002
LOOK_S = 0.1


def until(
    what: str,
    condition: Callable[[], T],
    seconds: float = WAIT_S,
    *,
    look_s: float = LOOK_S,
    unready: tuple[type[Exception], ...] = (LookupError,),
    details: Callable[[], object] = lambda: "",
) -> T:
    """Return the first true value of `condition`. Raises AssertionError with `what` and `details` after `seconds`.

    `look_s` is the longest pause between two looks; the first ones are a tenth of the time that has passed. An
    exception of a type in `unready` counts as false: a status or a record is written a while after a change.
    """
    start = time.monotonic()
    while True:
        with contextlib.suppress(*unready):
            if value := condition():
                return value
        passed = time.monotonic() - start
        if passed >= seconds:
            raise AssertionError(f"not in time ({seconds:g} s): {what} {details()}".rstrip())
        time.sleep(min(look_s, max(_FIRST_LOOK_S, passed / 10)))


async def until_async(what: str, condition: Callable[[], object], seconds: float = WAIT_S) -> None:
    """Wait in an event loop. Raises AssertionError after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - a test looks at what others own
                await asyncio.sleep(_FIRST_LOOK_S)
    except TimeoutError:
        raise AssertionError(f"not in time ({seconds:g} s): {what}") from None
