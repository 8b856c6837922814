"""Upgrades, checks, backs up and restores a PostgreSQL database; see `relay.store.maintenance`.

A backup is PostgreSQL's own COPY of each table, in one transaction that sees one moment. Called by `mep-relay db`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from relay.store import postgres
from relay.store.maintenance import CHECKS, CannotRestore, Tell, counting
from relay.store.postgres_sql import schema
from relay.store.statements import REFERRED_CHUNKS

_TABLES = (
    "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() "
    "AND table_type = 'BASE TABLE' ORDER BY table_name"
)
_IDENTITIES = (
    "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = current_schema() AND is_identity = 'YES'"
)
_SIZE = (
    "SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
)
"""About as many bytes as the copies of the tables have."""
_HOURS_S = 6 * 3600.0
"""Longest that one step may take."""


class PostgresDatabase:
    """The database at one address."""

    kind = "postgresql"

    def __init__(self, url: str, password: Callable[[], str]) -> None:
        self._url, self._password = url, password

    @contextmanager
    def _open(self) -> Iterator[postgres.Connection]:
        connection = postgres.Connection(lambda: postgres.connect(self._url, self._password(), seconds=_HOURS_S))
        connection.open()
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _driver(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A connection of the driver itself, for COPY. Raises sqlite3.OperationalError."""
        try:
            with postgres.connect(self._url, self._password(), seconds=_HOURS_S) as connection:
                yield connection
        except psycopg.Error as error:
            raise sqlite3.OperationalError(f"{type(error).__name__}: {str(error).strip()}") from error

    def version(self) -> int:
        """See Database."""
        with self._open() as connection:
            return postgres.schema_version(connection)

    def upgrade(self) -> None:
        """See Database."""
        with self._open() as connection:
            postgres.migrate(connection)

    def check(self) -> list[str]:
        """See Database."""
        found = []
        with self._open() as connection:
            connection.flush("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            for what, query in CHECKS.items():
                (count,) = connection.execute(query).fetchone()
                found += [f"{count} {what}"] if count else []
        return found

    def referred_chunks(self) -> set[str]:
        """See Database."""
        with self._open() as connection:
            return {name for (name,) in connection.execute(REFERRED_CHUNKS)}

    def backup(self, directory: Path, tell: Tell) -> int:
        """See Database."""
        with self._driver() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone() or (0,)
            (size,) = connection.execute(_SIZE).fetchone() or (0,)
            more = counting(tell, "database: bytes copied", int(str(size)))
            for table in _names(connection):
                command = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(table))
                descriptor = os.open(directory / f"{table}.copy", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as file, connection.cursor().copy(command) as copy:
                    for data in copy:
                        file.write(data)
                        more(len(data))
        return int(str(version))

    def restore(self, directory: Path, version: int, tell: Tell) -> None:
        """See Database. All of it is one transaction: it is the backup, or as it was."""
        with self._driver() as connection:
            free = connection.execute("SELECT pg_try_advisory_lock(%s)", [postgres.SERVE_LOCK]).fetchone()
            if free != (True,):
                raise CannotRestore("a relay serves this database: stop it first")
            with connection.transaction():
                for table in _names(connection):
                    connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(table)))
                for number in range(1, version + 1):
                    connection.execute(schema(number).encode())
                connection.execute(postgres.VERSIONS.encode())
                paths = _in_order(directory)
                more = counting(tell, "database: bytes copied", sum(path.stat().st_size for path in paths))
                for path in paths:
                    command = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(path.stem))
                    with path.open("rb") as file, connection.cursor().copy(command) as copy:
                        while data := file.read(1 << 20):
                            copy.write(data)
                            more(len(data))
                for row in connection.execute(_IDENTITIES.encode()).fetchall():
                    _go_on_after(connection, str(row[0]), str(row[1]))


def _names(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    return [str(row[0]) for row in connection.execute(_TABLES.encode())]


def _in_order(directory: Path) -> list[Path]:
    """Return the tables' files; that of `accounts` first, which others refer to."""
    return sorted(directory.glob("*.copy"), key=lambda path: (path.stem != "accounts", path.stem))


def _go_on_after(connection: psycopg.Connection[tuple[object, ...]], table: str, column: str) -> None:
    """Have the next generated number follow the highest one."""
    connection.execute(
        sql.SQL("SELECT setval(pg_get_serial_sequence({}, {}), coalesce(max({}), 0) + 1, false) FROM {}").format(
            sql.Literal(table), sql.Literal(column), sql.Identifier(column), sql.Identifier(table)
        )
    )
