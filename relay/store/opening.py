"""Opens the relay's store: the SQLite file of its state directory, or the PostgreSQL database of its settings.

Called by the command line and the server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from relay.store.maintenance import Database
from relay.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from relay.store.postgres import PostgresStore

AnyStore: TypeAlias = "SqliteStore | PostgresStore"


class DriverMissing(Exception):
    """The settings name a PostgreSQL database, and its driver is not installed: run `make install WITH=postgresql`."""

    def __init__(self) -> None:
        super().__init__(" ".join((self.__doc__ or "").split()))


def open_store(file: Path, database: str, password: Callable[[], str] = str, *, for_server: bool = False) -> AnyStore:
    """Open the store in `file`, or at the address `database` where that is set.

    Raises StateTooNew, DriverMissing, sqlite3.Error.
    """
    if not database:
        return SqliteStore(file, for_server=for_server)
    try:
        from relay.store.postgres import PostgresStore  # its driver is installed where it is used
    except ImportError as error:
        raise DriverMissing from error
    return PostgresStore(database, password, for_server=for_server)


def postgres_database(url: str, password: Callable[[], str]) -> Database:
    """Return the upkeep of a PostgreSQL database. Raises DriverMissing."""
    try:
        from relay.store.postgres_maintenance import PostgresDatabase
    except ImportError as error:
        raise DriverMissing from error
    return PostgresDatabase(url, password)
