"""One writer for a SQLite database: a thread that commits waiting changes in groups, and a short cut for a
lone one.

If the writer is idle, a change is run and committed in the caller's thread. That saves two thread switches
(0.1-0.2 ms). It is done only while commits are quick: a disk that takes milliseconds to sync must not hold
up the relay's event loop. Called by the SQLite store alone.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from mep_wire.errors import RelayUnavailable
from relay.store.wal_checkpointer import Checkpointer

T = TypeVar("T")

MAX_GROUP = 256
"""Most changes that share one commit."""
QUICK_COMMIT_S = 0.002
"""While a commit takes less than this on average, a lone one may run in the caller's thread."""


class _Commits:
    """Commits groups of changes over `tx` on `connection`, which must be in autocommit mode."""

    def __init__(self, connection: sqlite3.Connection, tx: Any, checkpointer: Checkpointer | None = None) -> None:
        self._connection, self._tx, self._checkpointer = connection, tx, checkpointer
        self.commit_s = 0.0
        """How long a commit takes on average."""

    def commit(self, group: list[tuple[Callable[[Any], Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change, future in group:
                value, error = self._attempt(change)
                outcomes.append((future, value, error))
            before = time.monotonic()
            self._connection.execute("COMMIT")
            self.commit_s += 0.1 * (time.monotonic() - before - self.commit_s)
            if self._checkpointer is not None:
                self._checkpointer.changed()
        except sqlite3.Error as error:  # disk full, I/O error, locked for too long: nothing of the group is durable
            self._roll_back()
            failure = RelayUnavailable(reason="its store cannot write", detail=repr(error))
            outcomes = [(future, None, failure) for _, future in group]
        for future, value, wrong in outcomes:
            if wrong is not None:
                future.set_exception(wrong)
            else:
                future.set_result(value)

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
        return value, None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._tx.forget()


class Writer:
    """Runs changes over `tx` on `connection`, which must be in autocommit mode and used only here."""

    def __init__(self, connection: sqlite3.Connection, tx: Any, checkpointer: Checkpointer | None = None) -> None:
        self._commits = _Commits(connection, tx, checkpointer)
        self._waiting: deque[tuple[Callable[[Any], Any], Future[Any]]] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._writing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[Any], T], *, inline: bool) -> Future[T]:
        """Run `change` in a transaction; see `relay.store.base.Store.submit`."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # who no longer waits must not take the answer from the others
        if (
            inline
            and not self._waiting
            and self._commits.commit_s < QUICK_COMMIT_S
            and self._writing.acquire(blocking=False)
        ):
            try:
                if not self._waiting:
                    self._commits.commit([(change, future)])
                    return future
            finally:
                self._writing.release()
        with self._wake:
            if self._closed:
                raise RuntimeError("the store is closed")
            self._waiting.append((change, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Commit waiting changes, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if not self._waiting:
                    return
            with self._writing:
                # Taken only with the lock held, so that a lone change cannot overtake these.
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
                self._commits.commit(group)


class DirectWriter:
    """Makes each change in its caller's thread, at once: for a database in memory, which waits for nothing."""

    def __init__(self, connection: sqlite3.Connection, tx: Any) -> None:
        self._commits = _Commits(connection, tx)

    def submit(self, change: Callable[[Any], T], *, inline: bool) -> Future[T]:
        """Run `change` in a transaction; see `relay.store.base.Store.submit`."""
        future: Future[T] = Future()
        self._commits.commit([(change, future)])
        return future

    def close(self) -> None:
        """Nothing waits."""
