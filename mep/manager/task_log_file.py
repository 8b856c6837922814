"""The file of task records, appended to by a thread, so that a full or hanging disk delays no start.

The monitor opens the file, in a directory where only root may create one, and passes a descriptor for appending. This
process couldn't open it itself. One page is in progress at a time, and a failed write is retried until it succeeds.
Called by mep/manager/task_records.py.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable

RETRY_S = 2.0
"""Pause between attempts to write to a full disk."""


class TaskLog:
    """The file, once the monitor has passed its descriptor."""

    def __init__(self, retry_s: float = RETRY_S) -> None:
        self._retry_s = retry_s
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="task-log", daemon=True)
        self._written: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.problem = "the monitor has not handed over the file"
        """Why writing isn't possible now; empty if it is. Set by the thread."""
        # From here on, used by the thread alone.
        self._descriptor = -1
        self._page = b""
        self._done = 0
        self._thread.start()

    def fileno(self) -> int:
        """The descriptor that polls readable when `written` or `problem` have changed."""
        return self._bell

    def use(self, descriptor: int) -> None:
        """Take over this descriptor: the first one, or a new one after the file was rotated."""
        self._work.put(lambda: self._take(descriptor))

    def write(self, page: bytes) -> None:
        """Append whole lines after all earlier ones, and sync them to the disk."""
        self._work.put(lambda: self._begin(page))

    def written(self) -> int:
        """Return how many pages have reached the disk since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        count = 0
        with contextlib.suppress(queue.Empty):
            while True:
                self._written.get_nowait()
                count += 1
        return count

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                self._work.get(timeout=self._retry_s if self._page else None)()
            if self._page and self._descriptor >= 0:
                self._attempt()

    def _take(self, descriptor: int) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._done = descriptor, 0  # a page half-written to the old file goes whole into the new one
        self._say("")

    def _begin(self, page: bytes) -> None:
        self._page, self._done = page, 0

    def _attempt(self) -> None:
        try:
            while self._done < len(self._page):
                self._done += os.write(self._descriptor, self._page[self._done :])
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._say(error.strerror or str(error))
            return
        page, self._page = self._page, b""
        self._written.put(page)
        self._say("")

    def _say(self, problem: str) -> None:
        self.problem = problem
        os.eventfd_write(self._bell, 1)
