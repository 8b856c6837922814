"""Writes the log of a SQLite database back into it, beside the writer instead of inside its commits.

`PASSIVE` checkpoints hold up neither writer nor readers; where they cannot keep up, SQLite's own (see WAL_PAGES) takes
place in a commit. While a foreign reader (a backup) holds an old state, the log can't be written back, and it grows.
The checkpoint is then tried again with back-off, and the file is cut once the reader has left. Called by the
SQLite store of a server.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from relay.log import logger

INTERVAL_S = 0.5
"""How long changes gather before the next checkpoint."""
WAL_PAGES = 8000
"""Pages of write-ahead log (32 MB) after which a commit itself writes back into the database."""
WAL_BYTES = WAL_PAGES * 4096
"""Length to which a log that was longer is cut."""
LAST_RETRY_S = 30.0
SAY_S = 60.0
"""How long a log must be too long before the log says so, and how often it does."""


@dataclass(kw_only=True, slots=True)
class CheckpointFigures:
    """What the checkpoints have done since the relay's start."""

    done: int = 0
    incomplete: int = 0
    """A reader still needed the rest of the log."""
    failed: int = 0
    cut: int = 0
    """How often a log that was too long was cut."""
    log_bytes: int = 0
    """Length of the log."""
    waiting_pages: int = 0
    """Pages of the log that are not in the database yet."""


class Checkpointer:
    """A thread that checkpoints over `connection`, for its use only, some time after each `changed`."""

    def __init__(self, connection: sqlite3.Connection, database: Path) -> None:
        self._connection, self._log = connection, database.with_name(database.name + "-wal")
        self._connection.execute("PRAGMA busy_timeout = 0")  # while a cut waits for a reader, no commit can be made
        self.figures = CheckpointFigures()
        self._too_long_since = 0.0
        self._changed = threading.Event()
        self._changed.set()  # a log that an earlier process left too long is cut without any change
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
        retry_s = 0.0
        while not self._closed.is_set():
            self._changed.wait(retry_s or None)
            if self._closed.wait(INTERVAL_S):
                return
            self._changed.clear()
            done = self._checkpoint()
            retry_s = 0.0 if done else min(max(2 * retry_s, INTERVAL_S), LAST_RETRY_S)

    def _checkpoint(self) -> bool:
        """Write the log back. False where something of it remains, or the file is still too long."""
        figures = self.figures
        try:
            _, pages, written = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            figures.done += 1
            figures.waiting_pages = max(0, pages - written)
            figures.incomplete += bool(figures.waiting_pages)
            figures.log_bytes = self._log.stat().st_size
            if figures.log_bytes > WAL_BYTES and not figures.waiting_pages:
                self._cut()
        except (sqlite3.Error, OSError) as error:  # a full disk, say: the log keeps everything until it works again
            figures.failed += 1
            logger.error("store: no checkpoint", reason=with_path(error, self._connection))
            return False
        self._say_if_too_long()
        return not figures.waiting_pages and figures.log_bytes <= WAL_BYTES

    def _cut(self) -> None:
        """Make the log empty; at once, or not at all while somebody reads from it."""
        busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.figures.cut += not busy
        self.figures.log_bytes = self._log.stat().st_size

    def _say_if_too_long(self) -> None:
        now, size = time.monotonic(), self.figures.log_bytes
        if size <= WAL_BYTES:
            self._too_long_since = 0.0
        elif not self._too_long_since:
            self._too_long_since = now
        elif now - self._too_long_since > SAY_S:
            self._too_long_since = now
            logger.warning(
                "store: the log is large: another process still reads an old state",
                path=self._log.name,
                megabytes=size >> 20,
            )


def with_path(error: sqlite3.Error | OSError, connection: sqlite3.Connection) -> str:
    """Return SQLite's text, which names no file, with the path of the database: the disk that is full is its own."""
    path = ""
    with contextlib.suppress(sqlite3.Error):
        path = connection.execute("PRAGMA database_list").fetchone()[2]
    return f"{type(error).__name__}: {error} ({path})" if path else f"{type(error).__name__}: {error}"
