"""Writes this user endpoint's figures for `mep status` and `mep top`: one page of memory that its keeper left open.

A write is a system call of a microsecond, at most once in INTERVAL_S and only after a change. A user endpoint with a
keeper of an older version has no page, and writes nothing. Called by the user endpoint in each turn of its loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from mep.boundary.figures import Figures, encode, is_page

INTERVAL_S: Final = 1.0
FIGURES_FD: Final = 7


class FiguresPage:
    """The page. `descriptor` is -1 for none."""

    def __init__(
        self, descriptor: int, *, values: str = "", log_path: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._descriptor, self._values, self._log_path, self._clock = descriptor, values, log_path, clock
        self._number, self._written_at = 0, float("-inf")
        self._said: tuple[object, ...] = ()
        self.due: float | None = None
        """When a change is to be written that came too soon after the last one."""
        self.done = self.failed = 0
        self.failure = ""

    def ended(self, code: str, text: str) -> None:
        """Count a task that has ended. `code` is empty for a success."""
        self.done += 1
        if code:
            self.failed += 1
            self.failure = f"{code}: {text}"

    def tell(self, waiting: int, running: int, trouble: str, blocks: Callable[[], str]) -> None:
        """Write the figures, now or when INTERVAL_S is over."""
        if self._descriptor < 0:
            return
        now = self._clock()
        counts = (waiting, running, self.done, trouble)
        if counts == self._said and self.due is None:
            return
        if now < self._written_at + INTERVAL_S:
            self.due = self._written_at + INTERVAL_S
            return
        self._write(Figures(
            time.time(), waiting, running, self.done, self.failed, self._values, blocks(), trouble, self.failure,
            self._log_path,
        ))  # fmt: skip
        self._said, self._written_at, self.due = counts, now, None

    def _write(self, figures: Figures) -> None:
        self._number += 1
        try:
            os.pwrite(self._descriptor, encode(figures, self._number), 0)
        except OSError:
            self._descriptor = -1


def inherited_page() -> int:
    """Return the page that the keeper left, made close-on-exec; -1 if it left none."""
    if not is_page(FIGURES_FD):
        return -1
    os.set_inheritable(FIGURES_FD, False)
    return FIGURES_FD
