"""The store on a PostgreSQL server, for relays that keep their state on another host.

The statements, the transactions and the reads are those of the SQLite store (`relay.store.postgres_sql` translates).
Here are the connections: one for the writer's thread, one for reads, which are in the event loop's thread. A read that
takes READ_S is cut off, and while the server is away reads fail at once. The writer's thread connects again.

A connection that breaks during COMMIT leaves open whether the change is stored. The writer then asks the server for
the fate of the transaction. It trusts the server as its own state.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from psycopg.types.string import StrDumper

from relay.log import logger
from relay.store import postgres_sql
from relay.store.base import Tx
from relay.store.group_commit import Commits, Writer
from relay.store.schema import MIGRATIONS, StateTooNew
from relay.store.sqlite import Row, SqliteTx, SqlReads, unreadable, within
from relay.store.wal_checkpointer import CheckpointFigures

T = TypeVar("T")

READ_S = 2.0
"""Longest that a server's read may take: the event loop waits for it."""
WRITE_S = 30.0
"""Longest that a statement of the writer may take."""
CONNECT_S = 3
RETRY_S = 1.0
"""How long after a failed attempt to connect the next one is made."""
DOUBT_S = 10.0
"""How long changes wait to hear whether their transaction was committed."""
SERVE_LOCK = 0x6D65702D72656C61
"""The advisory lock that only one server may hold in a database ("mep-rela" in ASCII)."""
SERVE_LOCK_S = 5.0
"""How long a relay that starts waits for it: the database may not have noticed yet that the one before has ended."""
PLANNER = (
    # Every query about tasks has an index. Left the choice, EXISTS over an empty queue would read all ended tasks.
    # The same goes for a table of functions or groups, of which a task needs one row.
    "-c enable_seqscan=off -c enable_mergejoin=off -c enable_hashjoin=off "
    # One plan for any values. Without values, PostgreSQL expects of each user endpoint the tasks of an average one.
    # Beside a long queue it finds such a plan too dear, and plans each statement anew, which takes longer than running.
    "-c plan_cache_mode=force_generic_plan "
    # For the same reason it would begin worker processes, or compile, for a query of a few rows.
    "-c max_parallel_workers_per_gather=0 -c jit=off"
)
"""What a server's connections tell PostgreSQL's planner. A test looks at the plans."""
MAX_PREPARED = 500
"""Most statements that one connection keeps prepared. The store has fewer; the driver's default would drop some."""
_CONTROL = ("BEGIN", "SAVEPOINT ", "RELEASE ", "ROLLBACK TO ")
_OURS = (pg.OperationalError, pg.InternalError, pg.InterfaceError)
"""Errors of the server or of the way to it, which concern the whole group of changes."""


class _TextDumper(StrDumper):
    """PostgreSQL's texts have no NUL: a name that has one is the name of nothing, and a report loses it."""

    def dump(self, obj: str) -> Any:
        """Return the bytes of a text."""
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in obj else obj)


def connect(url: str, password: str = "", *, seconds: float, planner: str = "") -> psycopg.Connection[Row]:
    """Connect. No statement may take longer than `seconds`. Raises psycopg.Error."""
    extra: dict[str, Any] = {"password": password} if password else {}
    limit = int(seconds * 1000)
    connection = psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_S,
        application_name="mep-relay",
        tcp_user_timeout=limit,
        keepalives_idle=30,
        client_encoding="utf8",
        options=f"-c statement_timeout={limit} -c lock_timeout={limit} {planner}",
        **extra,
    )
    connection.adapters.register_dumper(str, _TextDumper)
    for dumper in (Int8Dumper, Int8BinaryDumper):  # by default the type depends on the value, and so would the plan
        connection.adapters.register_dumper(int, dumper)
    connection.prepared_max = MAX_PREPARED
    if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
        connection.execute("SET synchronous_commit = on")  # an answer of 2xx means: on the disk
    return connection


def _raise_as_sqlite(error: psycopg.Error) -> NoReturn:
    """Raise the error as sqlite3's class of the same meaning, by which the shared code goes."""
    text = f"{type(error).__name__}: {str(error).strip()}"
    if isinstance(error, pg.IntegrityError):
        raise sqlite3.IntegrityError(text) from error
    if isinstance(error, pg.NumericValueOutOfRange):
        raise OverflowError(text) from error
    if isinstance(error, _OURS):
        raise sqlite3.OperationalError(text) from error
    raise RuntimeError(text) from error


class Connection:
    """One connection, with the methods of a sqlite3.Connection that the store uses, and its errors.

    Statements that open and close parts of a transaction wait for the next other statement and travel together.
    """

    def __init__(self, open_: Callable[[], psycopg.Connection[Row]]) -> None:
        self._open = open_
        self._pg: psycopg.Connection[Row] | None = None
        self._control: list[str] = []
        self.busy_since = 0.0
        """When the statement under way was sent, 0 while there is none."""

    @property
    def broken(self) -> bool:
        """Whether there is no connection at the moment."""
        return self._pg is None or self._pg.closed

    def open(self) -> None:
        """Connect, where there is no connection. Raises sqlite3.OperationalError."""
        if self.broken:
            self._control.clear()
            try:
                self._pg = self._open()
            except psycopg.Error as error:
                raise sqlite3.OperationalError(f"{type(error).__name__}: {str(error).strip()}") from error

    def close(self) -> None:
        """Close the connection."""
        if self._pg is not None:
            self._pg.close()

    def cut(self) -> None:
        """Break the connection, whatever another thread waits for on it."""
        with suppress(OSError, psycopg.Error, AttributeError):
            duplicate = socket.socket(fileno=os.dup(self._pg.fileno()))  # type: ignore[union-attr]
            with duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> psycopg.Connection[Row]:
        if self._pg is None or self._pg.closed:
            raise sqlite3.OperationalError("there is no connection to the database")
        return self._pg

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        """Run a statement of `relay.store.statements`; return a cursor."""
        if statement.startswith(_CONTROL):
            return self._later(statement)
        self.flush()
        return self._run(
            lambda db: db.execute(postgres_sql.statement(statement), parameters or None, binary=bool(parameters))
        )

    def executemany(self, statement: str, parameters: Iterable[Any]) -> Any:
        """Run a statement for each of the parameters; return a cursor with the number of changed rows."""
        each = list(parameters)
        if len(each) == 1:  # most often: without the driver's pipeline it is quicker
            return self.execute(statement, each[0])
        self.flush()

        def run(db: psycopg.Connection[Row]) -> Any:
            cursor = db.cursor()
            cursor.executemany(postgres_sql.statement(statement), each)
            return cursor

        return self._run(run)

    def leading(self, statement: str, parameters: Row, size_of: Callable[[Row], int], most: int) -> list[Row]:
        """Return leading rows; see `relay.store.sqlite.within`."""
        self.flush()
        found = self._run(lambda db: db.execute(postgres_sql.bounded(statement), (*parameters, most), binary=True))
        return within(found, size_of, most)

    def _later(self, statement: str) -> None:
        if statement.startswith("ROLLBACK TO "):  # all that waits since that savepoint has no effect any more
            opened = f"SAVEPOINT {statement.removeprefix('ROLLBACK TO ')}"
            kept = self._control.index(opened) + 1 if opened in self._control else 0
            del self._control[kept:]
        self._control.append(statement)

    def flush(self, *last: str) -> Any:
        """Send the statements that wait, and `last` after them."""
        if self._control or last:
            text = "; ".join([*self._control, *last])
            self._control.clear()
            return self._run(lambda db: db.execute(text))
        return None

    def roll_back(self) -> None:
        """Undo the transaction. Raises sqlite3.Error."""
        self._control.clear()
        if not self.broken:
            self._run(lambda db: db.execute("ROLLBACK"))

    def _run(self, call: Callable[[psycopg.Connection[Row]], Any]) -> Any:
        connection = self._connection()
        self.busy_since = time.monotonic()
        try:
            return call(connection)
        except psycopg.Error as error:
            _raise_as_sqlite(error)
        finally:
            self.busy_since = 0.0


class _Watch:
    """Cuts connections on which a statement takes too long: a server that was stopped answers no time-out."""

    LOOK_S = 0.5

    def __init__(self, limits: dict[Connection, float]) -> None:
        self._limits = limits
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self.LOOK_S):
            for connection, most_s in self._limits.items():
                since = connection.busy_since
                if since and time.monotonic() - since > most_s + self.LOOK_S:
                    logger.warning(
                        "store: the database has not answered: the connection is cut", seconds=round(most_s, 1)
                    )
                    connection.cut()


class PostgresCommits(Commits):
    """Commits groups of changes, and connects again."""

    def __init__(self, write: Connection, tx: SqliteTx, read: Connection, *, serving: bool) -> None:
        super().__init__(write, tx)
        self._write, self._read, self._serving = write, read, serving
        self._transaction = self._doubtful = ""
        self._retry_at = 0.0
        self._away = False

    def _describe(self, error: sqlite3.Error) -> str:
        return str(error)

    def recover(self) -> float | None:
        """Connect again where a connection is broken."""
        if not (self._write.broken or self._read.broken):
            return None
        with suppress(sqlite3.Error):
            self._connect()
            return None
        return RETRY_S

    def _connect(self) -> None:
        """Have both connections. Raises sqlite3.OperationalError, at once where an attempt failed a moment ago."""
        if not (self._write.broken or self._read.broken):
            return
        if time.monotonic() < self._retry_at:
            raise sqlite3.OperationalError("the database is away")
        try:
            self._open()
        except sqlite3.Error as error:
            self._retry_at = time.monotonic() + RETRY_S
            if not self._away:
                logger.error("store: the database is away", reason=error)
            self._away = True
            raise
        if self._away:
            logger.info("store: the database is back")
        self._away = False

    def _open(self) -> None:
        fresh = self._write.broken
        self._write.open()
        if fresh and self._serving:
            take_serve_lock(self._write)
        if fresh and self._doubtful:
            fate = self._fate(self._doubtful)
            if fate is None:
                self._write.close()
                raise sqlite3.OperationalError("a transaction of before is still under way")
            self._doubtful = ""
            if fate:
                self.late_commit()
        self._read.open()

    def _begin(self) -> None:
        since = time.monotonic()
        self._connect()
        # The transaction's id is needed if the answer to COMMIT is lost.
        found = self._write.flush("BEGIN", "SELECT pg_current_xact_id()")
        found.nextset()  # that of SELECT
        self._transaction = str(found.fetchone()[0])
        if self._rolled_back:
            self._tx.forget()
            self._rolled_back = False
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - since)

    def _commit(self) -> None:
        before = time.monotonic()
        try:
            done = self._write.flush("COMMIT")
            while done.nextset():
                pass
            if done.statusmessage == "ROLLBACK":
                raise sqlite3.OperationalError("the transaction had failed")
        except sqlite3.Error:
            if not self._write.broken or not self._was_committed():
                raise
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - before)
        self.groups += 1

    def _was_committed(self) -> bool:
        """The connection broke during COMMIT: ask for the transaction's fate, for DOUBT_S at most."""
        until = time.monotonic() + DOUBT_S
        self._doubtful, pause = self._transaction, 0.02
        while time.monotonic() < until:
            time.sleep(pause)
            pause = min(2 * pause, RETRY_S)
            with suppress(sqlite3.Error):
                self._write.open()
                if self._serving:
                    take_serve_lock(self._write)
                fate = self._fate(self._doubtful)
                if fate is not None:
                    self._doubtful = ""
                    logger.warning("store: the answer to a commit was lost", made=bool(fate))
                    return fate
            self._write.close()
        logger.error("store: the answer to a commit was lost, and the database is away")
        return False

    def _fate(self, transaction: str) -> bool | None:
        """Return whether a transaction was committed; None while it is under way. Raises sqlite3.Error."""
        (found,) = self._write.execute("SELECT pg_xact_status(?::text::xid8)", (transaction,)).fetchone()
        return None if found == "in progress" else found == "committed"

    def _roll_back(self) -> None:
        self._rolled_back = True
        try:
            self._write.roll_back()
        except (sqlite3.Error, RuntimeError):
            self._write.close()


def take_serve_lock(connection: Connection, within_s: float = 0.0) -> None:
    """Take the lock of the one server. Raises sqlite3.OperationalError where another keeps it."""
    until = time.monotonic() + within_s
    while not connection.execute("SELECT pg_try_advisory_lock(?)", (SERVE_LOCK,)).fetchone()[0]:
        if time.monotonic() >= until:
            connection.close()
            raise sqlite3.OperationalError("another mep-relay serves this database")
        time.sleep(RETRY_S / 10)


def schema_version(connection: Connection) -> int:
    """Return the version of the schema, 0 in an empty database. Raises sqlite3.Error."""
    (there,) = connection.execute("SELECT to_regclass('schema_version') IS NOT NULL").fetchone()
    if not there:
        return 0
    (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(version or 0)


VERSIONS = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, at TIMESTAMPTZ DEFAULT now())"


def migrate(connection: Connection) -> None:
    """Bring the database to the newest version, each step in a transaction. Raises StateTooNew, sqlite3.Error.

    A step may take as long as it needs: one that reads millions of tasks would be cut off at each start.
    """
    connection.execute("SELECT pg_advisory_lock(?)", (SERVE_LOCK + 1,))
    try:
        version = schema_version(connection)
        if version > len(MIGRATIONS):
            raise StateTooNew.versions(version, len(MIGRATIONS))
        for number in range(version + 1, len(MIGRATIONS) + 1):
            note = f"INSERT INTO schema_version VALUES ({number})"  # noqa: S608 - a number
            script = postgres_sql.schema(number).strip().rstrip(";")
            connection.flush("BEGIN", "SET LOCAL statement_timeout = 0", script, VERSIONS, note, "COMMIT")
    except sqlite3.Error:
        connection.roll_back()
        raise
    finally:
        if not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(?)", (SERVE_LOCK + 1,))


class PostgresStore(SqlReads):
    """`relay.store.base.Store` in a PostgreSQL database."""

    checkpoints: CheckpointFigures | None = None
    """The server makes its own."""

    def __init__(self, url: str, password: Callable[[], str] = str, *, for_server: bool = False) -> None:
        """Connect, and bring the schema up to date. Raises StateTooNew, sqlite3.Error."""
        planner, read_s = (PLANNER, READ_S) if for_server else ("", WRITE_S)  # an administrator may read every task
        self._write = Connection(lambda: connect(url, password(), seconds=WRITE_S, planner=planner))
        self._read = Connection(lambda: connect(url, password(), seconds=read_s, planner=planner))
        try:
            self._write.open()
            if for_server:
                take_serve_lock(self._write, SERVE_LOCK_S)
            migrate(self._write)
            self._read.open()
            tx = SqliteTx(self._write, self._write.leading)
        except Exception:
            self._write.close()
            raise
        self.commits = PostgresCommits(self._write, tx, self._read, serving=for_server)
        self._watch = _Watch({self._write: WRITE_S, self._read: read_s})
        self._writer = Writer(self.commits)
        self._asked_to_recover = 0.0

    def submit(self, change: Callable[[Tx], T]) -> Future[T]:
        """See `relay.store.base.Store.submit`."""
        return self._writer.submit(change)

    @property
    def waiting(self) -> int:
        """How many changes wait for the writer."""
        return self._writer.waiting

    def failing_since(self) -> float:
        """Return since when no group of changes could be committed; 0 after one that was."""
        return self.commits.failing_since

    def close(self) -> None:
        """Finish submitted changes and close."""
        self._writer.close()
        self._watch.close()
        self._read.close()
        self._write.close()

    def _reading(self, read: Callable[[Connection], T]) -> T:
        """Read. Raises RelayUnavailable; the writer's thread then connects again."""
        try:
            return read(self._read)
        except sqlite3.Error as error:
            if self._read.broken and time.monotonic() - self._asked_to_recover > RETRY_S:
                self._asked_to_recover = time.monotonic()
                self._writer.wake()
            raise unreadable(error) from error

    def _one(self, statement: str, *parameters: Any) -> Any:
        return self._reading(lambda db: db.execute(statement, parameters).fetchone())

    def _all(self, statement: str, *parameters: Any) -> list[Any]:
        found: list[Any] = self._reading(lambda db: db.execute(statement, parameters).fetchall())
        return found

    def _leading(self, statement: str, parameters: Row, size_of: Callable[[Row], int], most: int) -> list[Row]:
        return self._reading(lambda db: db.leading(statement, parameters, size_of, most))
