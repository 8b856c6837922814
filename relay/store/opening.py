"""Opens the relay's store: the SQLite file of its state directory, or the PostgreSQL database of its settings.

Called by the command line and the server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from relay.store.chunks import ChunkDirectory, Chunks
from relay.store.maintenance import Database
from relay.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from relay.store.postgres import PostgresStore

AnyStore: TypeAlias = "SqliteStore | PostgresStore"


class DriverMissing(Exception):
    """The settings name a PostgreSQL database, and its driver is not installed. It is the package mep-postgresql; an
    installation from a checkout gets it by `make install WITH=postgresql`.
    """

    def __init__(self) -> None:
        super().__init__(" ".join((self.__doc__ or "").split()))


class ChunkDriverMissing(DriverMissing):
    """`chunks` names an S3 bucket, and its driver is not installed. It is the package mep-s3; an installation from a
    checkout gets it by `make install WITH=s3`.
    """


class ChunkSettings(Protocol):
    """The keys of RelaySettings that say where large payloads are kept."""

    @property
    def chunks(self) -> str:
        """A directory, or s3://BUCKET/PREFIX."""

    @property
    def s3_endpoint(self) -> str:
        """The storage's address."""

    @property
    def s3_region(self) -> str:
        """The bucket's region."""

    @property
    def s3_key_id(self) -> str:
        """The access key's id."""


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


def open_chunks(settings: ChunkSettings, secret: Callable[[], str]) -> Chunks | None:
    """Return the storage of large payloads, None where the database keeps them. Raises DriverMissing."""
    if not settings.chunks:
        return None
    if not settings.chunks.startswith("s3://"):
        return ChunkDirectory(Path(settings.chunks))
    try:
        from relay.store.s3_chunks import S3Chunks
    except ImportError as error:
        raise ChunkDriverMissing from error
    bucket, _, prefix = settings.chunks.removeprefix("s3://").partition("/")
    return S3Chunks(
        bucket,
        prefix,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        key_id=settings.s3_key_id,
        secret=secret(),
    )


def postgres_database(url: str, password: Callable[[], str]) -> Database:
    """Return the upkeep of a PostgreSQL database. Raises DriverMissing."""
    try:
        from relay.store.postgres_maintenance import PostgresDatabase
    except ImportError as error:
        raise DriverMissing from error
    return PostgresDatabase(url, password)
