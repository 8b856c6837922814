"""Writes the log of a SQLite database back into it, beside the writer instead of inside its commits.

A checkpoint takes milliseconds, which a commit in the event loop's thread must not. `PASSIVE` ones hold up
neither writer nor readers; where they cannot keep up, SQLite's own (see WAL_PAGES) takes place in a commit.
Called by the SQLite store of a server.
"""

from __future__ import annotations

import sqlite3
import threading

from relay.log import logger

INTERVAL_S = 0.5
"""How long changes gather before the next checkpoint."""


class Checkpointer:
    """A thread that checkpoints over `connection`, for its use only, some time after each `changed`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-checkpointer", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Something was committed."""
        if not self._changed.is_set():
            self._changed.set()

    def close(self) -> None:
        """End the thread and close the connection."""
        self._closed.set()
        self._changed.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            if self._closed.wait(INTERVAL_S):
                return
            self._changed.clear()
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:  # a full disk, say: the log keeps everything until it works again
                logger.error("store: checkpoint: %r", error)
