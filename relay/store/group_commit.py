"""The writer of a SQLite database: a thread that alone uses the writing connection and commits changes in groups.

Whatever a commit waits for (another process's lock, a disk that takes its time), no other thread waits with it. A
change that comes while the writer is idle is committed at once; those that come during a commit share the next one.
Called by the SQLite store alone.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from mep_wire.errors import RelayUnavailable
from relay.log import logger
from relay.store.wal_checkpointer import Checkpointer, with_path

T = TypeVar("T")

MAX_GROUP = 256
"""Most changes that share one commit."""
MAX_WAITING = 50_000
"""Most changes that wait; beyond, they are refused at once."""
LOCK_WAIT_S = 20.0
"""How long a change waits for another process (the command line, a backup) to release the database's lock."""
LOCK_STEP_S = 1.0
"""How long before the log says that there is such a wait."""
SLOW_COMMIT_S = 1.0
"""A commit that takes longer is logged: it is the disk's time."""

_Waiting = tuple[Callable[[Any], Any], Future[Any]]


class Commits:
    """Commits groups of changes over `tx` on `connection`, which must be in autocommit mode."""

    def __init__(self, connection: Any, tx: Any, checkpointer: Checkpointer | None = None) -> None:
        self._connection, self._tx, self._checkpointer = connection, tx, checkpointer
        self.groups = self.changes = self.failed = 0
        """How many groups and changes were committed, and how many groups could not be."""
        self.failing_since = 0.0
        """Since when no group could be committed, in seconds since the epoch; 0 after one that was."""
        self.longest_wait_s = 0.0
        """The longest wait for the lock or the disk since it was last read."""
        self.late_commit: Callable[[], None] = lambda: None
        """Called once it turns out that a change was stored after all whose caller was told that it was not. That
        can't happen with a file."""
        self._rolled_back = False

    def take_longest_s(self) -> float:
        """Return `longest_wait_s`, and set it to 0."""
        found, self.longest_wait_s = self.longest_wait_s, 0.0
        return found

    def commit(self, group: list[_Waiting]) -> None:
        """Commit a group; each future gets its change's own result or error."""
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            self._begin()
            for change, future in group:
                value, error = self._attempt(change)
                outcomes.append((future, value, error))
            self._commit()
            self.failing_since = 0.0
        except sqlite3.Error as error:  # disk full, I/O error, locked for too long: nothing of the group is durable
            self.failed += 1
            self.failing_since = self.failing_since or time.time()
            self._roll_back()
            detail = self._describe(error)
            failure = RelayUnavailable(reason="its store cannot write", detail=detail)
            outcomes = [(future, None, failure) for _, future in group]
        for future, value, wrong in outcomes:
            if wrong is not None:
                future.set_exception(wrong)
            else:
                future.set_result(value)

    def _describe(self, error: sqlite3.Error) -> str:
        """Return what failed, and where, for the administrator."""
        return with_path(error, self._connection)

    def recover(self) -> float | None:
        """Called when nothing waits: return after which time to call again, None for not until the next change."""
        return None

    def _begin(self) -> None:
        """Take the database's lock. Raises sqlite3.OperationalError where another process keeps it for too long."""
        if self._connection.in_transaction:  # a rollback that failed with the disk
            self._connection.rollback()
        since, said = time.monotonic(), False
        while not self._connection.in_transaction:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - since
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited >= LOCK_WAIT_S:
                    raise
                if not said:
                    logger.warning("store: another process holds the database's lock; changes wait for it")
                    said = True
        if self._rolled_back:
            self._tx.forget()
            self._rolled_back = False
        waited = time.monotonic() - since
        self.longest_wait_s = max(self.longest_wait_s, waited)
        if said:
            logger.warning(
                "store: changes waited for the database's lock, which another process held", seconds=round(waited, 1)
            )

    def _commit(self) -> None:
        before = time.monotonic()
        self._connection.execute("COMMIT")
        took = time.monotonic() - before
        self.longest_wait_s = max(self.longest_wait_s, took)
        if took > SLOW_COMMIT_S:
            logger.warning("store: a commit took long: the disk is slow", seconds=round(took, 1))
        self.groups += 1
        if self._checkpointer is not None:
            self._checkpointer.changed()

    def _attempt(self, change: Callable[[Any], Any]) -> tuple[Any, BaseException | None]:
        """Run one change so that its own failure undoes it alone."""
        self._connection.execute("SAVEPOINT change")
        try:
            value = change(self._tx)
        except Exception as error:  # the caller must get the error, and the thread that serves all others goes on
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise  # the disk's, and the whole group's
            self._connection.execute("ROLLBACK TO change")
            self._connection.execute("RELEASE change")
            return None, error
        self._connection.execute("RELEASE change")
        self.changes += 1
        return value, None

    def _roll_back(self) -> None:
        """Undo the group. The same disk may refuse to be read now: cached values are read again with the next group."""
        self._rolled_back = True
        with suppress(sqlite3.Error):
            self._connection.rollback()


class Writer:
    """Runs changes in a thread of its own."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[Any], T]) -> Future[T]:
        """Run `change` in a transaction; see `relay.store.base.Store.submit`."""
        if self._closed:
            raise RuntimeError("the store is closed")
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # who no longer waits must not take the answer from the others
        if self._waiting.qsize() >= MAX_WAITING:
            future.set_exception(RelayUnavailable(reason="its store is behind", detail=f"{MAX_WAITING} changes wait"))
        else:
            self._waiting.put((change, future))
        return future

    @property
    def waiting(self) -> int:
        """How many changes wait."""
        return self._waiting.qsize()

    def wake(self) -> None:
        """Have the thread look after its connections, if nothing waits anyway."""
        if self._waiting.empty():
            self._waiting.put((lambda _: None, Future()))

    def close(self) -> None:
        """Commit waiting changes, and end the thread."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            try:
                group = [self._waiting.get(timeout=self._commits.recover() if self._waiting.empty() else None)]
            except queue.Empty:
                continue
            while len(group) < MAX_GROUP and not self._waiting.empty():
                group.append(self._waiting.get())
            more = group[-1] is not None
            if changes := [one for one in group if one is not None]:
                self._commits.commit(changes)


class DirectWriter:
    """Makes each change in its caller's thread, at once: for a database in memory, which waits for nothing."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits

    def submit(self, change: Callable[[Any], T]) -> Future[T]:
        """Run `change` in a transaction; see `relay.store.base.Store.submit`."""
        future: Future[T] = Future()
        self._commits.commit([(change, future)])
        return future

    @property
    def waiting(self) -> int:
        """None ever waits."""
        return 0

    def close(self) -> None:
        """Nothing waits."""
