"""The embedded store: one SQLite file in WAL mode with synchronous=FULL, so that a commit is on the disk.

Reads run on their own connection in the caller's thread (they see every commit that has been reported
done); writes go through `Writer`. The command line's own short changes share the file: SQLite's lock and a
busy timeout keep them apart.
"""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mep_wire.identity import Identity, IdentitySet
from mep_wire.states import TaskState
from relay.store import statements as sql
from relay.store.base import Tx
from relay.store.group_commit import Writer
from relay.store.records import (
    Caller,
    Completion,
    EndpointRecord,
    FunctionRecord,
    FunctionRef,
    GroupRef,
    OverdueTask,
    TaskBrief,
    TaskRecord,
    UepRecord,
)
from relay.store.schema import migrate
from relay.store.sqlite_task_events import SqliteTaskEventReads
from relay.store.sqlite_writes import PRIORITIES, SqliteTx
from relay.store.wal_checkpointer import Checkpointer

T = TypeVar("T")

BUSY_TIMEOUT_S = 20.0
"""How long a change waits for another process (the command line) to finish its own."""
WAL_PAGES = 8000
"""Pages of write-ahead log (32 MB) after which a commit itself writes back into the database."""
PADDED_BYTES = 8 * 1024 * 1024
"""Length that a server gives the log at its start."""
_endpoint_decoder = msgspec.msgpack.Decoder(EndpointRecord)
_function_decoder = msgspec.msgpack.Decoder(FunctionRecord)
_identity_decoder = msgspec.msgpack.Decoder(Identity)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; an old one keeps its way
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute("PRAGMA cache_size = -32768")
    return connection


def uep_from_row(row: Sequence[Any]) -> UepRecord:
    """Return the record of a row of the `ueps` statements."""
    return UepRecord(
        row=row[0],
        uep_id=row[1],
        endpoint_id=row[2],
        account_id=row[3],
        identity_id=row[4],
        config=msgspec.json.decode(row[5]),
        runtime=msgspec.json.decode(row[6]),
        link_key=row[7] or b"",
        made_of=row[8],
        seen_at=row[9],
        incarnation=row[10],
    )


def _endpoint(row: Sequence[Any]) -> EndpointRecord:
    record = _endpoint_decoder.decode(row[2])
    return msgspec.structs.replace(record, owner=row[0], deleted_at=row[1])


def within(rows: Iterator[tuple[Any, ...]], size_of: Callable[[tuple[Any, ...]], int], most: int) -> list[Any]:
    """Return leading `rows`, at least one, until their sizes together exceed `most` bytes."""
    taken: list[Any] = []
    size = 0
    for row in rows:
        size += size_of(row)
        if taken and size > most:
            break
        taken.append(row)
    return taken


class SqliteStore(SqliteTaskEventReads):
    """`relay.store.base.Store` in one file."""

    def __init__(self, path: Path, *, for_server: bool = False) -> None:
        """Open or make the file; `for_server` prepares it for many commits. Raises StateTooNew, sqlite3.Error."""
        self._write = _connect(path)
        migrate(self._write)
        if for_server:
            pad, *rest = sql.PAD_LOG
            self._write.execute(pad, (PADDED_BYTES,))
            for statement in rest:
                self._write.execute(statement).fetchall()
        self._read = _connect(path)
        self._read.execute("PRAGMA query_only = 1")
        self._checkpointer = Checkpointer(_connect(path)) if for_server else None
        self._writer = Writer(self._write, SqliteTx(self._write), self._checkpointer)

    def submit(self, change: Callable[[Tx], T], *, inline: bool = True) -> Future[T]:
        """See `relay.store.base.Store.submit`."""
        return self._writer.submit(change, inline=inline)

    def close(self) -> None:
        """Finish submitted changes and close."""
        self._writer.close()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._read.close()
        self._write.close()

    def _one(self, statement: str, *parameters: Any) -> Any:
        return self._read.execute(statement, parameters).fetchone()

    # --- people -----------------------------------------------------------------------------------

    def caller(self, token_hash: bytes) -> Caller | None:
        row = self._one(sql.CALLER, token_hash)
        return Caller(*row) if row else None

    def identity_set(self, account_id: str, first: str = "") -> IdentitySet | None:
        rows = self._read.execute(sql.IDENTITIES, (account_id,)).fetchall()
        identities = [_identity_decoder.decode(row[0]) for row in rows]
        identities.sort(key=lambda identity: identity.id != first)
        return IdentitySet(account_id, tuple(identities)) if identities else None

    def account_of(self, username: str) -> Caller | None:
        row = self._one(sql.ACCOUNT_OF, username)
        return Caller(*row) if row else None

    def accounts(self) -> list[IdentitySet]:
        found = (self.identity_set(row[0]) for row in self._read.execute(sql.ACCOUNTS).fetchall())
        return [one for one in found if one is not None]

    # --- endpoints, functions, user endpoints -------------------------------------------------------

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        row = self._one(sql.ENDPOINT, endpoint_id)
        return _endpoint(row) if row else None

    def endpoints(self, owner: str | None = None) -> list[EndpointRecord]:
        found = self._read.execute(sql.ENDPOINTS) if owner is None else self._read.execute(sql.ENDPOINTS_OF, (owner,))
        return [_endpoint(row) for row in found]

    def function(self, function_id: str) -> FunctionRecord | None:
        row = self._one(sql.FUNCTION, function_id)
        if row is None:
            return None
        record = _function_decoder.decode(row[1])
        return msgspec.structs.replace(record, owner=row[0], code=row[2])

    def function_ref(self, function_id: str) -> FunctionRef | None:
        row = self._one(sql.FUNCTION_REF, function_id)
        return FunctionRef(row[0], row[1], row[2], bool(row[3]), row[4]) if row else None

    def function_code(self, function_id: str) -> bytes | None:
        row = self._one(sql.FUNCTION_CODE, function_id)
        return row[0] if row else None

    def uep(self, uep_id: str) -> UepRecord | None:
        row = self._one(sql.UEP, uep_id)
        return uep_from_row(row) if row else None

    def uep_by_link_key(self, link_key: bytes) -> UepRecord | None:
        row = self._one(sql.UEP_BY_LINK_KEY, link_key)
        return uep_from_row(row) if row else None

    def ueps_in_use(self, endpoint_id: str | None = None) -> list[UepRecord]:
        if endpoint_id is None:
            return [uep_from_row(row) for row in self._read.execute(sql.UEPS_IN_USE)]
        return [uep_from_row(row) for row in self._read.execute(sql.UEPS_IN_USE_OF, (endpoint_id,))]

    # --- tasks ------------------------------------------------------------------------------------

    def has_queued(self, uep_row: int) -> bool:
        return bool(self._one(sql.HAS_QUEUED, uep_row)[0])

    def oldest_queued(self, uep_row: int) -> float | None:
        found = (self._one(sql.QUEUED_ROWS_BY_AGE, uep_row, priority, 1) for priority in PRIORITIES)
        return min((row[1] for row in found if row), default=None)

    def next_deadline(self) -> float | None:
        row = self._one(sql.NEXT_DEADLINE)
        return row[0] if row else None

    def overdue(self, now: float, limit: int) -> list[OverdueTask]:
        rows = self._read.execute(sql.OVERDUE, (now, limit)).fetchall()
        return [OverdueTask(row, uep_row, TaskState(state)) for row, uep_row, state in rows]

    def has_active(self, uep_row: int) -> bool:
        return bool(self._one(sql.HAS_ACTIVE, uep_row)[0])

    def open_tasks(self, account_id: str) -> int:
        return int(self._one(sql.OPEN_TASKS, account_id)[0])

    def stored_bytes(self, account_id: str) -> int:
        return int(self._one(sql.STORED_BYTES, account_id)[0])

    def tasks(self, task_ids: Sequence[bytes]) -> list[TaskRecord]:
        rows = (self._one(sql.TASK, task_id) for task_id in task_ids)
        return [_task(row) for row in rows if row is not None]

    def briefs(self, task_ids: Sequence[bytes]) -> list[TaskBrief]:
        rows = (self._one(sql.TASK_BRIEF, task_id) for task_id in task_ids)
        return [TaskBrief(r[0], r[1], r[2], r[3], TaskState(r[4]), r[5], r[6], r[7]) for r in rows if r is not None]

    def group(self, group_id: str) -> GroupRef | None:
        row = self._one(sql.GROUP, group_id)
        return GroupRef(*row) if row else None

    def group_tasks(self, group_row: int) -> list[bytes]:
        return [row[0] for row in self._read.execute(sql.GROUP_TASKS, (group_row,))]

    def completions(self, group_row: int, after: int, limit: int, max_bytes: int) -> list[Completion]:
        cursor = self._read.execute(sql.COMPLETIONS, (group_row, after, limit))
        rows = within(cursor, lambda row: len(row[5]) + len(row[4]), max_bytes)
        cursor.close()
        return [Completion(r[0], r[1], TaskState(r[2]), r[3], r[4], r[5], r[6]) for r in rows]


def _task(row: Sequence[Any]) -> TaskRecord:
    return TaskRecord(
        row=row[0],
        task_id=row[1],
        owner=row[2],
        uep_row=row[3],
        state=TaskState(row[4]),
        submitted_at=row[5],
        started_at=row[6],
        ended_at=row[7],
        code=row[8] or "",
        text=row[9] or "",
        payload=row[10] or b"",
        correlation_id=row[11] or "",
    )
