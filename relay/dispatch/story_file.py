"""Keeps the events of `mep why` in STATE/stories.sqlite: they outlive a restart, and a busy endpoint's later ones.

A file of its own beside the store: its loss costs explanations and nothing else, it makes no commit of tasks wait, and
it is the same with PostgreSQL. One thread writes, in batches; a crash loses the last fraction of a second. What can't
be written is dropped and said in the log, since the story must never hold up the work. The file is bounded in events
of an endpoint, in all, and in age. Refused submissions have bounds of their own: a person can cause any number.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from relay.log import RateLimitedLog

MAX_OF_ENDPOINT: Final = 20_000
"""Events that are kept of one endpoint, and again of its refused submissions."""
MAX_REFUSALS: Final = 50_000
MAX_ALL: Final = 500_000
"""Events of all endpoints, without the refused submissions: about 150 MB."""
RETENTION_S: Final = 30 * 86400.0
LINK_LINES: Final = 32
"""Most events of the link as a whole in one answer."""
_MAX_WAITING: Final = 10_000
_BATCH_S: Final = 0.2
_PRUNE_EVERY: Final = 5_000
_LINK_S: Final = 60.0
_VERSION: Final = 1
_SCHEMA: Final = f"""\
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    endpoint TEXT NOT NULL,
    refusal INTEGER NOT NULL,
    at REAL NOT NULL,
    level TEXT NOT NULL,
    text TEXT NOT NULL,
    uep_id TEXT NOT NULL,
    correlation_id TEXT NOT NULL
) STRICT;
CREATE INDEX event_of_endpoint ON event (endpoint, refusal, id);
CREATE INDEX event_of_uep ON event (uep_id) WHERE uep_id <> '';
CREATE INDEX event_of_start ON event (correlation_id) WHERE correlation_id <> '';
CREATE INDEX event_of_link ON event (endpoint, at) WHERE uep_id = '' AND correlation_id = '';
PRAGMA user_version = {_VERSION};
"""
_ADD: Final = (
    "INSERT INTO event (endpoint, refusal, at, level, text, uep_id, correlation_id) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_OWN: Final = """\
SELECT id, at, level, text, uep_id, correlation_id FROM event
WHERE +endpoint = ? AND (uep_id = ? AND uep_id <> '' OR correlation_id = ? AND correlation_id <> '')
ORDER BY id DESC LIMIT ?"""
"""The plus keeps SQLite from reading all of an endpoint's events: the few of an id have indices of their own."""
_LINK: Final = """\
SELECT id, at, level, text, uep_id, correlation_id FROM event
WHERE endpoint = ? AND uep_id = '' AND correlation_id = '' AND at >= ? ORDER BY at DESC LIMIT ?"""
_FULL: Final = "SELECT endpoint, refusal FROM event GROUP BY endpoint, refusal HAVING count(*) > ?"
_TOO_OLD: Final = "DELETE FROM event WHERE at < ?"
_TOO_MANY: Final = """\
DELETE FROM event WHERE refusal = ? AND id <= (
    SELECT id FROM event WHERE refusal = ? ORDER BY id DESC LIMIT 1 OFFSET ?)"""
_TOO_MANY_OF_ONE: Final = """\
DELETE FROM event WHERE endpoint = ? AND refusal = ? AND id <= (
    SELECT id FROM event WHERE endpoint = ? AND refusal = ? ORDER BY id DESC LIMIT 1 OFFSET ?)"""


class StoryEvent(NamedTuple):
    """Something that happened at one endpoint. `level` is a log level."""

    at: float
    level: str
    text: str
    uep_id: str
    correlation_id: str


class StoryFile:
    """The events on disk. Every method is for the relay's event loop; none raises."""

    def __init__(self, path: Path, *, of_endpoint: int = MAX_OF_ENDPOINT, refusals: int = MAX_REFUSALS) -> None:
        self._path, self._of_endpoint, self._refusals = path, of_endpoint, refusals
        self._log = RateLimitedLog()
        self._waiting: deque[tuple[str, bool, StoryEvent]] = deque(maxlen=_MAX_WAITING)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._since_prune = _PRUNE_EVERY  # at once: a restart after a long time
        self._reader = self._open()
        self._thread = threading.Thread(target=self._write, name="stories", daemon=True)
        self._thread.start()

    def add(self, endpoint_id: str, event: StoryEvent, *, refusal: bool = False) -> None:
        """Have an event written soon."""
        self._waiting.append((endpoint_id, refusal, event))
        self._wake.set()

    def about(self, endpoint_id: str, names: Iterable[str], most: int) -> list[StoryEvent]:
        """Return the latest events of these ids, and those of the link since shortly before the first, in order."""
        if self._reader is None:
            return []
        try:
            found = {
                number: StoryEvent(*rest)
                for name in names
                for number, *rest in self._reader.execute(_OWN, (endpoint_id, name, name, most))
            }
            if not found:
                return []
            since = min(one.at for one in found.values()) - _LINK_S
            for number, *rest in self._reader.execute(_LINK, (endpoint_id, since, LINK_LINES)):
                found[number] = StoryEvent(*rest)
            return [found[number] for number in sorted(found)]
        except sqlite3.Error as error:
            self._log.warning("the stories of mep why cannot be read", file=self._path, error=error)
            return []

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout=10)
        if self._reader is not None:
            self._reader.close()

    def _open(self) -> sqlite3.Connection | None:
        """Return a connection; a file that is damaged or of another version is made anew. None if that fails too."""
        for last in (False, True):
            try:
                return _connection(self._path)
            except sqlite3.Error as error:
                self._log.warning("the stories of mep why cannot be opened", file=self._path, error=error)
                if last:
                    break
                for suffix in ("", "-wal", "-shm"):
                    try:
                        self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                    except OSError:
                        break
        return None

    def _write(self) -> None:
        """Write until the end, in the thread."""
        connection = self._open() if self._reader is not None else None
        while connection is not None:
            self._wake.wait()
            self._wake.clear()
            ended = self._ended.is_set() or self._ended.wait(_BATCH_S)
            try:
                self._write_batch(connection)
            except sqlite3.Error as error:
                connection.rollback()
                self._log.warning("events of mep why were not written", file=self._path, error=error)
            if ended:
                connection.close()
                return

    def _write_batch(self, connection: sqlite3.Connection) -> None:
        rows = []
        while self._waiting:
            endpoint_id, refusal, one = self._waiting.popleft()
            rows.append((endpoint_id, int(refusal), one.at, one.level, one.text, one.uep_id, one.correlation_id))
        if not rows:
            return
        with connection:
            connection.executemany(_ADD, rows)
            self._since_prune += len(rows)
            if self._since_prune >= min(_PRUNE_EVERY, self._of_endpoint):
                self._since_prune = 0
                self._prune(connection)

    def _prune(self, connection: sqlite3.Connection) -> None:
        connection.execute(_TOO_OLD, (time.time() - RETENTION_S,))
        for refusal, most in ((0, MAX_ALL), (1, self._refusals)):
            connection.execute(_TOO_MANY, (refusal, refusal, most))
        for endpoint_id, refusal in connection.execute(_FULL, (self._of_endpoint,)).fetchall():
            connection.execute(_TOO_MANY_OF_ONE, (endpoint_id, refusal, endpoint_id, refusal, self._of_endpoint))


def _connection(path: Path) -> sqlite3.Connection:
    """Open the file, or make it. Raises sqlite3.Error for a damaged file, and for one of another version."""
    with suppress(OSError):  # SQLite says it better
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 8388608")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE;\n{_SCHEMA}\nCOMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it has version {version}, and this relay knows {_VERSION}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
