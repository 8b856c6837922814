"""Upgrades, checks, backs up and restores the relay's database; the same steps for SQLite and PostgreSQL.

A backup is a directory: the database as it was at one moment, the relay's keys, and backup.json with the SHA-256 of
each file. It is made beside a serving relay. Called by `mep-relay db`, as the relay's account.
"""
# ruff: noqa: S608 - numbers of states alone are formatted into the queries

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from mep_wire.states import TaskState
from relay.store import statements
from relay.store.chunks import ChunkMissing, Chunks, digest_in
from relay.store.records import PIECE_USE_BYTES
from relay.store.schema import MIGRATIONS, StateTooNew, migrate

MANIFEST = "backup.json"
CHUNKS = "chunks"
KEYS = ("link.key", "signing.key", "rotations.json")
_END = int(TaskState.SUCCESS)

CHECKS = {
    "tasks of no task group": (
        "SELECT count(*) FROM tasks t LEFT JOIN task_groups g ON g.group_row = t.group_row WHERE g.group_row IS NULL"
    ),
    "waiting tasks without arguments": (
        f"SELECT count(*) FROM tasks t LEFT JOIN inputs i ON i.row = t.row WHERE i.row IS NULL AND t.state < {_END}"
    ),
    "ended tasks without an end": (
        f"SELECT count(*) FROM tasks t LEFT JOIN results r ON r.seq = t.seq WHERE r.seq IS NULL AND t.state >= {_END}"
    ),
    "unfinished tasks of no user endpoint": (
        "SELECT count(*) FROM tasks t LEFT JOIN ueps u ON u.uep_row = t.uep_row "
        f"WHERE u.uep_row IS NULL AND t.state < {_END}"
    ),
    "ends of no task": "SELECT count(*) FROM results r LEFT JOIN tasks t ON t.row = r.row WHERE t.row IS NULL",
    "arguments of no task": "SELECT count(*) FROM inputs i LEFT JOIN tasks t ON t.row = i.row WHERE t.row IS NULL",
    "identities of no account": (
        "SELECT count(*) FROM identities i LEFT JOIN accounts a ON a.account_id = i.account_id "
        "WHERE a.account_id IS NULL"
    ),
    "task groups with a wrong size": (
        "SELECT count(*) FROM task_groups g WHERE g.bytes <> "
        "(SELECT coalesce(sum(length(r.payload)), 0) FROM results r WHERE r.group_row = g.group_row) + "
        "(SELECT coalesce(sum(length(i.payload)), 0) FROM tasks t JOIN inputs i ON i.row = t.row "
        f"WHERE t.group_row = g.group_row) + {PIECE_USE_BYTES} * (SELECT count(*) FROM tasks t "
        "JOIN chunk_uses u ON u.row = t.row WHERE t.group_row = g.group_row)"
    ),
}
"""By the damage: a query that counts it, in the words of both databases."""


Tell = Callable[[str, int, int], None]
"""Is told how far long work has come: a part of it, how much of this part is done, and how much of it there is."""
_BLOCK = 4 * 1024 * 1024
_LOOK_S = 0.2


class CannotRestore(Exception):
    """A backup can't be restored. The text says why."""


class Manifest(msgspec.Struct, kw_only=True):
    """backup.json."""

    kind: str
    """The database: sqlite or postgresql."""
    schema: int
    at: float
    files: dict[str, str]
    """SHA-256 in hexadecimal, by the file's path in the backup."""


_manifest_decoder = msgspec.json.Decoder(Manifest)


class Database(Protocol):
    """One kind of database, closed or beside a server that uses it."""

    kind: str

    def version(self) -> int:
        """Return the version of the schema, 0 where there is no database yet."""

    def upgrade(self) -> None:
        """Bring the schema to the newest version. Raises StateTooNew, sqlite3.Error."""

    def check(self) -> list[str]:
        """Return the damage that was found. Raises sqlite3.Error."""

    def referred_chunks(self) -> set[str]:
        """Return the names of the chunks that tasks and results refer to. Raises sqlite3.Error."""

    def backup(self, directory: Path, tell: Tell) -> int:
        """Write the database as it is at one moment into `directory`; return its schema's version."""

    def restore(self, directory: Path, version: int, tell: Tell) -> None:
        """Put the database of a backup in place of the present one."""


class SqliteDatabase:
    """The SQLite file of a state directory."""

    kind = "sqlite"

    def __init__(self, file: Path) -> None:
        self._file = file

    def version(self) -> int:
        """See Database."""
        if not self._file.exists():
            return 0
        return _version(self._file)

    def upgrade(self) -> None:
        """See Database."""
        connection = sqlite3.connect(self._file, isolation_level=None)
        try:
            migrate(connection)
        finally:
            connection.close()

    def check(self) -> list[str]:
        """See Database."""
        connection = sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True)
        try:
            connection.execute("BEGIN")
            found = [text for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]
            return found + list(_wrong(connection))
        finally:
            connection.close()

    def referred_chunks(self) -> set[str]:
        """See Database."""
        connection = sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True)
        try:
            return {name for (name,) in connection.execute(statements.REFERRED_CHUNKS)}
        finally:
            connection.close()

    def backup(self, directory: Path, tell: Tell) -> int:
        """See Database. One step, so that writers neither wait nor make it begin again."""
        copy = directory / self._file.name
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        source, target = sqlite3.connect(self._file), sqlite3.connect(copy)
        try:
            with _watched(copy, self._file.stat().st_size, tell):
                source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE").fetchone()
        finally:
            target.close()
            source.close()
        return _version(copy)

    def restore(self, directory: Path, version: int, tell: Tell) -> None:
        """See Database."""
        fresh = self._file.with_name(f".{self._file.name}.restored")
        with _watched(fresh, (directory / self._file.name).stat().st_size, tell):
            shutil.copyfile(directory / self._file.name, fresh)
        fresh.chmod(0o600)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        for ending in ("-wal", "-shm"):  # they belong to the one before
            self._file.with_name(self._file.name + ending).unlink(missing_ok=True)
        fresh.replace(self._file)


@contextmanager
def _watched(file: Path, size: int, tell: Tell) -> Iterator[None]:
    """Tell how long a file is that another thread makes in one call: it is to have about `size` bytes."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            with suppress(OSError):
                tell("database: bytes copied", min(size, file.stat().st_size), size)

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    tell("database: bytes copied", size, size)


def counting(tell: Tell, what: str, of: int) -> Callable[[int], None]:
    """Return what adds to how much of a part is done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        tell(what, done, of)

    return more


def _version(file: Path) -> int:
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def _wrong(connection: sqlite3.Connection) -> Iterator[str]:
    for what, query in CHECKS.items():
        (count,) = connection.execute(query).fetchone()
        if count:
            yield f"{count} {what}"


class ChunkReport(msgspec.Struct, kw_only=True):
    """What a check of the chunks has found, by name."""

    checked: int = 0
    missing: list[str] = []
    damaged: list[str] = []
    """Their bytes do not have the SHA-256 of their name."""
    unreferenced: list[str] = []
    """Chunks that nothing refers to: no damage. The relay removes them."""

    def wrong(self) -> list[str]:
        """Return the damage, a line each."""
        found = [(f"chunk {name} is missing", name) for name in self.missing]
        found += [(f"chunk {name} is damaged", name) for name in self.damaged]
        return [text for text, _ in sorted(found, key=lambda each: each[1])]


def check_chunks(database: Database, chunks: Chunks, tell: Tell) -> ChunkReport:
    """Read every chunk that the database refers to, and list those that it does not. A relay may serve.

    Raises ChunksUnavailable, sqlite3.Error.
    """
    stored = {name for name, _ in chunks.names()}  # first: a chunk is there before anything refers to it
    wanted = database.referred_chunks()
    report = ChunkReport(checked=len(wanted), unreferenced=sorted(stored - wanted))
    for number, name in enumerate(sorted(wanted), start=1):
        try:
            if hashlib.sha256(chunks.get(name)).digest() != digest_in(name):
                report.damaged.append(name)
        except ChunkMissing:
            report.missing.append(name)
        tell("chunks read", number, len(wanted))
    if report.missing:  # some may have gone with their tasks in the meantime
        still = database.referred_chunks()
        report.missing = [name for name in report.missing if name in still]
    return report


def back_up(
    database: Database, state: Path, directory: Path, chunks: Path | None = None, tell: Tell = lambda *_: None
) -> Manifest:
    """Make a backup in `directory`, which must not exist; of `chunks` too, if they are in a directory.

    Raises OSError, sqlite3.Error.
    """
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}")
    fresh.mkdir(mode=0o700)
    try:
        version = database.backup(fresh, tell)
        for name in KEYS:
            if (state / name).exists():
                shutil.copyfile(state / name, fresh / name)
                (fresh / name).chmod(0o600)
        if chunks is not None:
            _copy_chunks(chunks, fresh / CHUNKS, tell)  # none that the database refers to has gone: see KEEP_S
        names = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
        more = counting(tell, "bytes checked", sum((fresh / name).stat().st_size for name in names))
        files = {name: _digest(fresh / name, more) for name in names}
        manifest = Manifest(kind=database.kind, schema=version, at=time.time(), files=files)
        (fresh / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        made = [*fresh.rglob("*"), fresh]
        for number, path in enumerate(made, start=1):
            _sync(path)
            tell("files on the disk", number, len(made))
        if directory.exists():
            raise FileExistsError(f"{directory} exists already")
        fresh.rename(directory)
        _sync(directory.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest


def read_manifest(directory: Path, tell: Tell = lambda *_: None) -> Manifest:
    """Return the manifest of a backup with all its files whole. Raises CannotRestore."""
    try:
        manifest = _manifest_decoder.decode((directory / MANIFEST).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise CannotRestore(f"{directory} is no backup: {error}") from error
    sizes = [path.stat().st_size for name in manifest.files if (path := directory / name).is_file()]
    more = counting(tell, "bytes checked", sum(sizes))
    for name, digest in manifest.files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
            raise CannotRestore(f"{path} is missing")
        if _digest(path, more) != digest:
            raise CannotRestore(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def _copy_chunks(chunks: Path, copy: Path, tell: Tell, *, mend: bool = False) -> None:
    """Copy every chunk that is not there yet. Their bytes never change, so on one file system a link is a copy.

    With `mend`, a chunk that is there and has other bytes is replaced.
    """
    found = list(chunks.glob("*/[!.]*"))
    for number, path in enumerate(found, start=1):
        tell("chunks copied", number, len(found))
        target = copy / path.parent.name / path.name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if mend and target.exists() and _digest(target) != _digest(path):
            target.unlink()
        with suppress(FileExistsError):
            try:
                os.link(path, target)
            except FileNotFoundError:  # it was collected in between: the database did not refer to it
                continue
            except OSError as error:
                if isinstance(error, FileExistsError):
                    raise
                shutil.copyfile(path, target)
                target.chmod(0o600)


def restore(
    database: Database, state: Path, directory: Path, chunks: Path | None = None, tell: Tell = lambda *_: None
) -> Manifest:
    """Put a backup in place of the relay's state. The caller holds the lock of the server.

    Raises CannotRestore, StateTooNew, OSError, sqlite3.Error.
    """
    manifest = read_manifest(directory, tell)
    if manifest.kind != database.kind:
        raise CannotRestore(f"the backup is one of {manifest.kind}, and the relay is set up for {database.kind}")
    if manifest.schema > len(MIGRATIONS):
        raise StateTooNew.versions(manifest.schema, len(MIGRATIONS))
    if chunks is not None and (directory / CHUNKS).is_dir():
        chunks.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy_chunks(directory / CHUNKS, chunks, tell, mend=True)
    database.restore(directory, manifest.schema, tell)
    for name in KEYS:
        if name in manifest.files:
            fresh = state / f".{name}.restored"
            shutil.copyfile(directory / name, fresh)
            fresh.chmod(0o600)
            _sync(fresh)
            fresh.replace(state / name)
    _sync(state)
    return manifest


def _digest(path: Path, more: Callable[[int], None] = lambda _count: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            more(len(block))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
