"""Signals as readable bytes: the self-pipe, by signal.set_wakeup_fd. Used by monitor and keeper."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Sequence


class Wakeup:
    """Catches `signals` and makes `fileno()` readable. `take` returns the signals that came."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._caught: set[int] = set()
        self._ours, self._theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._theirs, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, self._note)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._ours

    def take(self) -> set[int]:
        """Return the signals that came since the last call.

        The pipe's bytes only wake the poll: thousands of SIGCHLD may fill it, and another signal's byte may be lost.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._ours, 65536)
        caught, self._caught = self._caught, set()
        return caught

    def _note(self, number: int, _frame: object) -> None:
        self._caught.add(number)


def wait_readable(descriptors: Sequence[int], seconds: float | None, urgent: Sequence[int] = ()) -> bool:
    """Wait until one of `descriptors` is readable or at its end; False after `seconds` (None: no limit).

    `urgent` are kernel files that report by POLLPRI that their content has changed.
    """
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    for descriptor in urgent:
        poller.register(descriptor, select.POLLPRI)
    return bool(poller.poll(None if seconds is None else seconds * 1000))
