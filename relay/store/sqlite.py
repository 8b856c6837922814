"""The embedded store: one SQLite file in WAL mode with synchronous=FULL, so that a commit is on the disk.

Reads run on their own connection in the caller's thread (they see every commit that has been reported
done); writes go through `Writer`. The command line's own short changes share the file: SQLite's lock keeps them
apart, and only the writer's thread waits for it.
"""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

import abc
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mep_wire.errors import IdConflict, RelayUnavailable
from mep_wire.identity import Identity, IdentitySet
from mep_wire.limits import MAX_PRIORITY, MIN_PRIORITY
from mep_wire.states import TaskState
from relay.log import logger
from relay.store import statements as sql
from relay.store.base import Tx
from relay.store.group_commit import LOCK_STEP_S, LOCK_WAIT_S, Commits, DirectWriter, Writer
from relay.store.records import (
    FUNCTION_ROW_BYTES,
    PIECE_USE_BYTES,
    Added,
    Caller,
    Collected,
    Completion,
    Dependency,
    Document,
    EndpointRecord,
    EventPage,
    FunctionRecord,
    FunctionRef,
    GroupRef,
    Held,
    ListedTask,
    NewTask,
    OpenTask,
    OverdueTask,
    OwnTask,
    QueuedTask,
    QueueLength,
    Settled,
    Swept,
    TaskBrief,
    TaskEnding,
    TaskRecord,
    TaskRef,
    TokenRecord,
    UepKey,
    UepRecord,
)
from relay.store.schema import migrate
from relay.store.wal_checkpointer import WAL_BYTES, WAL_PAGES, Checkpointer, CheckpointFigures

T = TypeVar("T")

PADDED_BYTES = 8 * 1024 * 1024
"""Length that a server gives the log at its start."""
OPENING_IS_SLOW = "store: waiting for the database: another process may hold its lock"
WAITING = [(held, priority) for held in (0, 1) for priority in range(MAX_PRIORITY, MIN_PRIORITY - 1, -1)]
"""The parts of a queue that are each in the order in which they were submitted."""
_endpoint_decoder = msgspec.msgpack.Decoder(EndpointRecord)
_function_decoder = msgspec.msgpack.Decoder(FunctionRecord)
_identity_decoder = msgspec.msgpack.Decoder(Identity)
_token_decoder = msgspec.msgpack.Decoder(TokenRecord)


def _connect(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file; an old one keeps its way
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    connection.execute("PRAGMA cache_size = -32768")
    return connection


@contextmanager
def _said_if_slow(path: Path | None) -> Iterator[None]:
    """Say, after a moment, that this file is waited for. The command line has this on its standard error."""
    timer = threading.Timer(LOCK_STEP_S, logger.warning, [OPENING_IS_SLOW], {"path": path})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


Row = tuple[Any, ...]
Leading = Callable[[str, tuple[Any, ...], Callable[[Row], int], int], list[Row]]
"""Runs a statement with these parameters, and returns leading rows, at least one, as `within` does."""


def leading_rows(
    connection: sqlite3.Connection,
    statement: str,
    parameters: tuple[Any, ...],
    size_of: Callable[[Row], int],
    most: int,
) -> list[Row]:
    """Run a statement and return leading rows, as `within` does. Those after them are not read."""
    cursor = connection.execute(statement, parameters)
    try:
        return within(cursor, size_of, most)
    finally:
        cursor.close()


def _payload_size(row: Row) -> int:
    return len(row[3]) + int(row[11])


def _ending_size(row: Row) -> int:
    return len(row[5]) + len(row[4]) + int(row[8])


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


def _ref(row: tuple[int, bytes, str, int, float]) -> TaskRef:
    return TaskRef(row=row[0], task_id=row[1], function_id=row[2], state=TaskState(row[3]), submitted_at=row[4])


def unreadable(error: sqlite3.Error) -> RelayUnavailable:
    """Return the error for a read that failed."""
    return RelayUnavailable(reason="its store cannot be read", detail=repr(error))


def _caller(row: Sequence[Any]) -> Caller:
    return Caller(account_id=row[0], identity_id=row[1])


def _token(row: Sequence[Any]) -> TokenRecord:
    columns = dict(
        zip(("token_id", "account_id", "identity_id", "created_at", "expires_at", "used_at"), row, strict=False)
    )
    columns["grant_id"] = row[6]
    return msgspec.structs.replace(_token_decoder.decode(row[7]), **columns) if row[7] else TokenRecord(**columns)


def _document(row: Sequence[Any]) -> Document:
    return Document(kind=row[0], id=row[1], body=row[2], owner=row[3], expires=row[4])


def _group(row: Sequence[Any]) -> GroupRef:
    return GroupRef(row=row[0], group_id=row[1], owner=row[2])


def _uep_key(row: Sequence[Any]) -> UepKey:
    return UepKey(endpoint_id=row[0], uep_id=row[1], account_id=row[2], identity_id=row[3], incarnation=row[4])


def _queued(row: Sequence[Any]) -> QueuedTask:
    return QueuedTask(
        row=row[0],
        task_id=row[1],
        function_id=row[2],
        payload=row[3],
        resource_spec=row[4],
        walltime_s=row[5],
        attempt=row[6],
        max_attempts=row[7],
        deadline=row[8],
        priority=row[9],
        chunk=row[10],
        chunk_size=row[11],
    )


def _dependency(row: Row) -> Dependency:
    """Return a task that another one waits for; one without a record has failed."""
    if row[0] is None:
        return Dependency(task_id=b"", state=TaskState.FAILED, code="", text="Its record is gone.")
    return Dependency(task_id=row[0], state=TaskState(row[1]), code=row[2], text=row[3])


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
        chunk=row[12] or "",
    )


# --- changes ----------------------------------------------------------------------------------------


class _Part:
    _leading: Leading

    def __init__(self, connection: Any) -> None:
        self._db: sqlite3.Connection = connection
        """Or what behaves as one (relay.store.postgres)."""


class _AccountTx(_Part):
    def add_account(self, account_id: str, identity: Identity) -> None:
        body = msgspec.msgpack.encode(identity)
        try:
            self._db.execute(sql.ADD_ACCOUNT, (account_id, time.time()))
            self._db.execute(sql.ADD_IDENTITY, (identity.id, account_id, identity.username, body))
        except sqlite3.IntegrityError as error:
            raise IdConflict(id=identity.username) from error

    def merge_accounts(self, keep: str, other: str) -> None:
        for statement in sql.MERGE_ACCOUNTS:
            self._db.execute(statement, {"keep": keep, "other": other})

    def move_identity(self, identity_id: str, account_id: str) -> None:
        self._db.execute(sql.ADD_ACCOUNT, (account_id, time.time()))
        for statement in sql.MOVE_IDENTITY:
            self._db.execute(statement, (account_id, identity_id))

    def remove_account(self, account_id: str) -> None:
        for statement in sql.REMOVE_ACCOUNT:
            self._db.execute(statement, (account_id,))

    def add_identity(self, account_id: str, identity: Identity) -> None:
        body = msgspec.msgpack.encode(identity)
        try:
            if not self._db.execute(sql.SET_IDENTITY, (identity.username, body, identity.id)).rowcount:
                self._db.execute(sql.ADD_IDENTITY, (identity.id, account_id, identity.username, body))
        except sqlite3.IntegrityError as error:
            raise IdConflict(id=identity.username) from error

    def username_of(self, identity_id: str) -> str | None:
        row = self._db.execute(sql.IDENTITY, (identity_id,)).fetchone()
        return row[1] if row else None

    def account_of_identity(self, identity_id: str) -> str | None:
        row = self._db.execute(sql.IDENTITY, (identity_id,)).fetchone()
        return row[0] if row else None

    def identity_named(self, username: str) -> Caller | None:
        row = self._db.execute(sql.ACCOUNT_OF, (username,)).fetchone()
        return _caller(row) if row else None

    def identities_of(self, account_id: str) -> list[str]:
        return [row[0] for row in self._db.execute(sql.IDENTITY_IDS, (account_id,))]

    def add_token(self, token_hash: bytes, token: TokenRecord) -> None:
        body = msgspec.msgpack.encode(token)
        columns = (token.account_id, token.identity_id, token.created_at, token.token_id, token.expires_at)
        self._db.execute(sql.ADD_TOKEN, (token_hash, *columns, token.grant_id, body))

    def remove_tokens(self, identity_id: str) -> int:
        self._db.execute(sql.REMOVE_GRANTS, (identity_id,))
        return self._db.execute(sql.REMOVE_TOKENS, (identity_id,)).rowcount

    def remove_token(self, token_id: str, account_id: str) -> bool:
        return self._db.execute(sql.REMOVE_TOKEN, (token_id, account_id)).rowcount > 0

    def remove_grant_tokens(self, grant_id: str) -> int:
        return self._db.execute(sql.REMOVE_GRANT_TOKENS, (grant_id,)).rowcount

    def use_token(self, token_id: str, now: float) -> None:
        self._db.execute(sql.USE_TOKEN, (now, token_id))

    def sweep_tokens(self, expired_before: float, limit: int) -> int:
        return self._db.execute(sql.SWEEP_TOKENS, (expired_before, limit)).rowcount


class _DocumentTx(_Part):
    def add_document(self, document: Document) -> bool:
        return self._db.execute(sql.ADD_DOCUMENT, _document_row(document)).rowcount > 0

    def put_document(self, document: Document) -> None:
        self._db.execute(sql.PUT_DOCUMENT, _document_row(document))

    def get_document(self, kind: str, id: str) -> Document | None:  # noqa: A002
        row = self._db.execute(sql.DOCUMENT, (kind, id)).fetchone()
        return _document(row) if row else None

    def drop_document(self, kind: str, id: str) -> bool:  # noqa: A002
        return self._db.execute(sql.DROP_DOCUMENT, (kind, id)).rowcount > 0

    def drop_documents(self, kind: str, owner: str) -> int:
        return self._db.execute(sql.DROP_DOCUMENTS, (kind, owner)).rowcount

    def sweep_documents(self, expired_before: float, limit: int) -> int:
        return self._db.execute(sql.SWEEP_DOCUMENTS, (expired_before, limit)).rowcount


def _document_row(document: Document) -> tuple[Any, ...]:
    return (document.kind, document.id, document.owner, document.expires, document.body)


class _RegistryTx(_Part):
    def put_endpoint(self, endpoint: EndpointRecord) -> None:
        body = msgspec.msgpack.encode(endpoint)
        values = (endpoint.endpoint_id, endpoint.owner, endpoint.name, endpoint.link_key, body)
        try:
            changed = self._db.execute(sql.PUT_ENDPOINT, values).rowcount
        except sqlite3.IntegrityError as error:
            raise IdConflict(id=f"link_public_key {endpoint.link_key.hex()}") from error
        if not changed:
            raise IdConflict(id=endpoint.endpoint_id)

    def delete_endpoint(self, endpoint_id: str, now: float) -> None:
        self._db.execute(sql.DELETE_ENDPOINT, (now, endpoint_id))

    def put_function(self, function: FunctionRecord) -> None:
        body = function.without_code()
        added = self._db.execute(
            sql.ADD_FUNCTION,
            (
                *(function.function_id, function.owner, int(function.public), function.code, body),
                *(function.created_at, function.group, function.ha_endpoint_id),
                len(function.code) + len(body) + FUNCTION_ROW_BYTES,
            ),
        ).rowcount
        if not added:
            raise IdConflict(id=function.function_id)

    def change_function(self, function: FunctionRecord) -> None:
        body = function.without_code()
        self._db.execute(
            sql.CHANGE_FUNCTION,
            (
                *(int(function.public), body, function.group, function.ha_endpoint_id),
                *(len(body) + FUNCTION_ROW_BYTES, function.function_id),
            ),
        )

    def delete_function(self, function_id: str, now: float) -> None:
        self._db.execute(sql.DELETE_FUNCTION, (now, function_id))

    def put_uep(self, uep: UepRecord) -> UepRecord:
        config, runtime = msgspec.json.encode(uep.config), msgspec.json.encode(uep.runtime)
        values = (uep.uep_id, uep.endpoint_id, uep.account_id, uep.identity_id, config, runtime, uep.seen_at)
        self._db.execute(sql.ADD_UEP, (*values, uep.account_id))
        row = self._db.execute(sql.UEP, (uep.uep_id,)).fetchone()
        known = {"link_key": row[7] or b"", "made_of": row[8], "seen_at": row[9], "incarnation": row[10]}
        return msgspec.structs.replace(uep, row=row[0], **known)

    def touch_ueps(self, uep_rows: Sequence[int], now: float) -> None:
        self._db.executemany(sql.TOUCH_UEP, [(now, row) for row in uep_rows])

    def add_join(self, uep_row: int, join_hash: bytes, expires: float, now: float) -> None:
        self._db.execute(sql.DROP_JOINS, (uep_row, now))
        self._db.execute(sql.ADD_JOIN, (join_hash, uep_row, expires))

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        if self._db.execute(sql.SPEND_JOIN, (join_hash, uep_row, now)).rowcount != 1:
            return False
        self._db.execute(sql.DROP_ALL_JOINS, (uep_row,))
        # No row where the key is enrolled for another user endpoint.
        return self._db.execute(sql.SET_LINK, (link_key, incarnation, uep_row, link_key, uep_row)).rowcount == 1

    def clear_link(self, uep_row: int, link_key: bytes) -> None:
        self._db.execute(sql.CLEAR_LINK, (uep_row, link_key))


class _SweepTx(_Part):
    def sweep_ueps(self, seen_before: float, keep: Collection[int], limit: int) -> int:
        found = self._db.execute(sql.UNSEEN_UEPS, (seen_before,)).fetchmany(limit + len(keep))
        rows = [row for (row,) in found if row not in keep][:limit]
        for statement in (sql.DROP_ALL_JOINS, sql.DROP_SOURCES, sql.DROP_UEP):
            self._db.executemany(statement, [(row,) for row in rows])
        return len(rows)

    def sweep_groups(self, after: int, keep: Collection[int], limit: int) -> int:
        found = self._db.execute(sql.GROUPS_AFTER, (after, limit)).fetchall()
        rows = [row for row, in_use in found if not in_use and row not in keep]
        self._db.executemany(sql.DROP_GROUP, [(row,) for row in rows])
        return int(found[-1][0]) if len(found) == limit else 0

    def use_functions(self, function_rows: Sequence[int], now: float) -> None:
        self._db.executemany(sql.USE_FUNCTION, [(now, row) for row in function_rows])

    def sweep_functions(self, used_before: float, now: float, limit: int) -> int:
        return self._db.execute(sql.SWEEP_FUNCTIONS, (now, used_before, limit)).rowcount

    def purge_functions(self, deleted_before: float, limit: int) -> int:
        return self._db.execute(sql.PURGE_FUNCTIONS, (deleted_before, limit)).rowcount

    def note_delivered(self, group_row: int, seq: int) -> None:
        self._db.execute(sql.NOTE_DELIVERED, (seq, group_row, seq))

    def claim_chunk(self, name: str, owner: str, digest: bytes, size: int, now: float) -> tuple[str, bool]:
        found, stored = self._db.execute(sql.CLAIM_CHUNK, (name, owner, digest, size, now)).fetchone()
        return found, bool(stored)

    def collect_chunks(self, touched_before: float, limit: int) -> Collected:
        found = [row[0] for row in self._db.execute(sql.OLD_CHUNKS, (touched_before, limit)).fetchall()]
        names = [name for name in found if self._db.execute(sql.COLLECT_CHUNK, (name,)).rowcount]
        for statement in (sql.FORGET_USES, sql.FORGET_SOURCES):
            self._db.executemany(statement, [(name,) for name in names])
        now = max(time.time(), touched_before)
        self._db.executemany(sql.LEAVE_CHUNK, [(now, name) for name in found])  # looked at again after a while
        return Collected(names=names, more=len(found) == limit)

    def piece_came(self, uep_row: int, name: str) -> None:
        self._db.execute(sql.ADD_SOURCE, (uep_row, name))

    def chunk_stored(self, name: str) -> None:
        self._db.execute(sql.CHUNK_STORED, (name,))

    def keep_pieces(self, owner: str, digests: Sequence[bytes], until: float) -> dict[bytes, str]:
        found = {digest: self._db.execute(sql.KEEP_PIECE, (until, owner, digest)).fetchone() for digest in digests}
        return {digest: row[0] for digest, row in found.items() if row is not None}

    def compact(self, pages: int) -> None:
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(pages, free)):  # one at a time: Python takes but one step of a statement without columns
            self._db.execute("PRAGMA incremental_vacuum(1)")


class _TaskEventTx(_Part):
    def keep_task_events(self, endpoint_id: str, *, keep: bool) -> None:
        if keep:
            self._db.execute(sql.KEEP_EVENTS, (endpoint_id,))
            self._db.execute(sql.KEEP_EVENTS_AGAIN, (endpoint_id,))
            return
        for statement in sql.STOP_KEEPING_EVENTS:
            self._db.execute(statement, (endpoint_id,))

    def add_task_events(self, endpoint_id: str, bodies: Sequence[bytes], most: int) -> None:
        found = self._db.execute(sql.EVENT_NUMBERS, (endpoint_id,)).fetchone()
        if found is None:
            return
        first, following, dropped = found
        self._db.executemany(
            sql.ADD_EVENT, [(endpoint_id, seq, body) for seq, body in enumerate(bodies, start=following)]
        )
        following += len(bodies)
        if (over := following - first - most) > 0:
            first, dropped = first + over, dropped + over
            self._db.execute(sql.DROP_EVENTS, (endpoint_id, first))
        self._db.execute(sql.SET_EVENT_NUMBERS, (first, following, dropped, endpoint_id))

    def task_events_written(self, endpoint_id: str, until: int, dropped: int) -> None:
        found = self._db.execute(sql.EVENT_NUMBERS, (endpoint_id,)).fetchone()
        if found is None:
            return
        first, following, before = found
        first = max(first, min(until + 1, following))
        self._db.execute(sql.DROP_EVENTS, (endpoint_id, first))
        self._db.execute(sql.SET_EVENT_NUMBERS, (first, following, max(0, before - dropped), endpoint_id))

    def task_refs(self, uep_row: int, rows: Sequence[int]) -> list[TaskRef]:
        found = (self._db.execute(sql.TASK_REF, (row, uep_row)).fetchone() for row in rows)
        return [_ref(one) for one in found if one is not None]

    def queued_refs(self, uep_row: int, limit: int) -> list[TaskRef]:
        return [_ref(row) for row in self._db.execute(sql.QUEUED_REFS, (uep_row, limit))]

    def uep_key(self, uep_row: int) -> UepKey | None:
        row = self._db.execute(sql.UEP_KEY, (uep_row,)).fetchone()
        return _uep_key(row) if row else None


class SqliteTx(_AccountTx, _DocumentTx, _RegistryTx, _SweepTx, _TaskEventTx):
    """`relay.store.base.Tx` over one connection. `leading` runs a query whose rows have to fit into some bytes."""

    def __init__(self, connection: Any, leading: Leading | None = None) -> None:
        super().__init__(connection)
        self._leading = leading or partial(leading_rows, connection)
        self._next_row = self._next_seq = 0
        self.forget()

    def forget(self) -> None:
        """Drop cached database values: called after a rollback."""
        (self._next_row,) = self._db.execute(sql.NEXT_ROW).fetchone()
        (self._next_seq,) = self._db.execute(sql.NEXT_SEQ).fetchone()

    # --- submitting -------------------------------------------------------------------------------

    def add_tasks(
        self, owner: str, group_id: str, uep_row: int, tasks: Sequence[NewTask], dispatched: int, now: float
    ) -> Added:
        group = self._group(group_id, owner)
        first = self._next_row
        rows = list(range(first, first + len(tasks)))
        states = [int(TaskState.DISPATCHED)] * dispatched + [int(TaskState.QUEUED)] * (len(tasks) - dispatched)
        self._db.execute("SAVEPOINT tasks")
        try:
            self._db.executemany(
                sql.ADD_TASK,
                [
                    (row, t.task_id, group.row, uep_row, t.function.row, state, now, t.priority, t.deadline)
                    for row, t, state in zip(rows, tasks, states, strict=True)
                ],
            )
        except sqlite3.IntegrityError:  # some id is known: a repeated submission, or a clash
            self._db.execute("ROLLBACK TO tasks")
            return self._add_unknown(group, uep_row, tasks, now)
        finally:
            self._db.execute("RELEASE tasks")
        self._add_inputs(group, rows, tasks)
        return Added(rows=rows, group=group, new=len(tasks), repeated=False)

    def _add_unknown(self, group: GroupRef, uep_row: int, tasks: Sequence[NewTask], now: float) -> Added:
        rows, new = [], 0
        for task in tasks:
            known = self._db.execute(sql.KNOWN_TASK, (task.task_id,)).fetchone()
            if known is None:
                row, new = self._next_row, new + 1
                where = (row, task.task_id, group.row, uep_row, task.function.row, int(TaskState.QUEUED))
                self._db.execute(sql.ADD_TASK, (*where, now, task.priority, task.deadline))
                self._add_inputs(group, [row], [task])
                known = (row, group.row, uep_row, task.function.row)
            if known[1:] != (group.row, uep_row, task.function.row):
                raise IdConflict(id=task.task_id.hex())
            rows.append(known[0])
        return Added(rows=rows, group=group, new=new, repeated=True)

    def _add_inputs(self, group: GroupRef, rows: Sequence[int], tasks: Sequence[NewTask]) -> None:
        self._db.execute(sql.ADD_BYTES, (sum(task.counted for task in tasks), group.row))
        self._db.executemany(
            sql.ADD_INPUT,
            [
                (row, t.payload, t.resource_spec, t.walltime_s, t.max_attempts, t.chunk, t.chunk_size)
                for row, t in zip(rows, tasks, strict=True)
            ],
        )
        self._next_row = max(self._next_row, rows[-1] + 1) if rows else self._next_row
        self._chunks_stored(tasks)
        if any(task.pieces for task in tasks):
            used = [(name, row, 0) for row, task in zip(rows, tasks, strict=True) for name in task.pieces]
            self._db.executemany(sql.USE_CHUNK, used)

    def _chunks_stored(self, parts: Sequence[NewTask] | Sequence[TaskEnding]) -> None:
        if names := {part.chunk for part in parts if part.chunk}:
            self._db.executemany(sql.CHUNK_STORED, [(name,) for name in names])

    def _group(self, group_id: str, owner: str) -> GroupRef:
        found = self._db.execute(sql.GROUP, (group_id,)).fetchone()
        if found is None:
            self._db.execute(sql.ADD_GROUP, (group_id, owner))
            found = self._db.execute(sql.GROUP, (group_id,)).fetchone()
        group = _group(found)
        if group.owner != owner:
            raise IdConflict(id=group_id)
        return group

    # --- waiting for other tasks --------------------------------------------------------------------

    def task_owner(self, task_id: bytes) -> tuple[int, str, str] | None:
        found: tuple[int, str, str] | None = self._db.execute(sql.TASK_OWNER, (task_id,)).fetchone()
        return found

    def hold(self, rows: Sequence[int], on_rows: Sequence[int]) -> None:
        (set_row,) = self._db.execute(sql.NEXT_SET).fetchone()
        if self._db.executemany(sql.HOLD, [(set_row, row) for row in rows]).rowcount > 0:
            members = [(set_row, slot, on_row) for slot, on_row in enumerate(on_rows)]
            self._db.executemany(sql.ADD_DEPENDENCY, members)

    def is_awaited(self, on_row: int) -> bool:
        return bool(self._db.execute(sql.IS_AWAITED, (on_row,)).fetchone()[0])

    def decided_sets(self, on_row: int) -> list[int]:
        return [set_row for (set_row,) in self._db.execute(sql.DECIDED_SETS, (on_row,)).fetchall()]

    def held_by(self, set_row: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._db.execute(sql.HELD_BY, (set_row,)).fetchall()
        return found

    def dependencies(self, row: int) -> list[Dependency]:
        return [_dependency(found) for found in self._db.execute(sql.DEPENDENCIES, (row,)).fetchall()]

    def release(self, set_row: int) -> None:
        self._db.execute(sql.RELEASE, (set_row,))

    # --- dispatching ------------------------------------------------------------------------------

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        rows = self._leading(sql.QUEUED_TASKS, (uep_row, limit), _payload_size, max_bytes)
        taken = [_queued(row) for row in rows]
        self._db.executemany(sql.MARK_DISPATCHED, [(task.row, uep_row) for task in taken])
        return taken

    def record_started(self, uep_row: int, rows: Sequence[int], now: float) -> None:
        self._db.executemany(sql.MARK_STARTED, [(now, row, uep_row) for row in rows])

    def requeue(self, uep_row: int, rows: Sequence[int] | None) -> int:
        if rows is None:
            return self._db.execute(sql.REQUEUE_NOT_STARTED, (uep_row,)).rowcount
        return max(0, self._db.executemany(sql.REQUEUE, [(row, uep_row) for row in rows]).rowcount)

    def reconcile(self, uep_row: int, held: Sequence[int]) -> Held:
        holds = set(held)
        self._db.executemany(sql.MARK_DISPATCHED, [(row, uep_row) for row in holds])
        active = dict(self._db.execute(sql.ACTIVE_ROWS, (uep_row,)).fetchall())
        away = [row for row, state in active.items() if row not in holds and state == TaskState.DISPATCHED]
        lost = [row for row, state in active.items() if row not in holds and state == TaskState.RUNNING]
        requeued = self.requeue(uep_row, away) if away else 0
        return Held(requeued=requeued, lost=lost, over=[row for row in holds if row not in active])

    def running_rows(self, uep_row: int) -> list[int]:
        return [row[0] for row in self._db.execute(sql.RUNNING_ROWS, (uep_row,))]

    def queued_again(self, uep_row: int) -> list[int]:
        return [row[0] for row in self._db.execute(sql.QUEUED_AGAIN, (uep_row,))]

    def queued_doubtful(self, uep_row: int) -> list[int]:
        return [row[0] for row in self._db.execute(sql.QUEUED_DOUBTFUL, (uep_row,))]

    def doubt(self, uep_row: int, rows: Sequence[int], *, doubtful: bool) -> None:
        self._db.executemany(sql.DOUBT, [(int(doubtful), row, uep_row) for row in rows])

    def active_rows(self, uep_row: int) -> dict[int, TaskState]:
        return {row: TaskState(state) for row, state in self._db.execute(sql.ACTIVE_ROWS, (uep_row,))}

    def open_tasks_of(self, uep_row: int, rows: Sequence[int]) -> list[OpenTask]:
        found = (self._db.execute(sql.OPEN_ATTEMPTS, (row, uep_row)).fetchone() for row in rows)
        return [
            OpenTask(row=r[0], state=TaskState(r[1]), attempts=r[2], max_attempts=r[3], cancelling=bool(r[4]))
            for r in found
            if r is not None
        ]

    def record_lost_attempts(self, uep_row: int, attempts: Sequence[tuple[int, int]]) -> None:
        self._db.executemany(sql.COUNT_ATTEMPT, [(lost, row, uep_row) for row, lost in attempts])

    def ask_cancel(self, uep_row: int, rows: Sequence[int]) -> None:
        self._db.executemany(sql.ASK_CANCEL, [(row, uep_row) for row in rows])

    def cancelling(self, uep_row: int) -> dict[int, TaskState]:
        return {row: TaskState(state) for row, state in self._db.execute(sql.CANCELLING, (uep_row,))}

    # --- ending -----------------------------------------------------------------------------------

    def record_endings(self, uep_row: int, endings: Sequence[TaskEnding]) -> Settled:
        groups: dict[int, int] = {}
        foreign: list[int] = []
        rows: list[int] = []
        execute = self._db.execute
        for one in endings:
            found = execute(sql.OPEN_TASK, (one.row, uep_row)).fetchone()
            if found is None:
                continue
            if one.task_id is not None and one.task_id != found[1]:
                execute(sql.REQUEUE, (one.row, uep_row))
                foreign.append(one.row)
                continue
            groups[found[0]] = groups.get(found[0], 0) + len(one.payload)
            seq = self._next_seq
            self._next_seq += 1
            execute(
                sql.ADD_RESULT,
                (
                    *(seq, one.row, found[0], one.stored_at, one.code, one.text, one.payload, one.correlation_id),
                    *(one.chunk, one.chunk_size),
                ),
            )
            execute(sql.END_TASK, (int(one.state), seq, one.started_at, one.ended_at, one.row))
            rows.append(one.row)
            if one.digests:
                groups[found[0]] += PIECE_USE_BYTES * self._use_in_result(uep_row, one)
        self._db.executemany(sql.ADD_BYTES, [(size, group) for group, size in groups.items() if size])
        self._chunks_stored(endings)
        return Settled(groups=frozenset(groups), ended=len(rows), foreign=foreign, rows=rows)

    def _use_in_result(self, uep_row: int, ending: TaskEnding) -> int:
        """Return how many pieces the result keeps."""
        used = 0
        (owner,) = self._db.execute(sql.OWNER_OF_TASK, (ending.row,)).fetchone()
        for digest in ending.digests:
            row = ending.row
            found = self._db.execute(sql.RESULT_PIECE, (owner, digest, uep_row, row, row)).fetchone()
            if found is not None:  # else it was not stored before, and the reader of the result is told
                self._db.execute(sql.USE_CHUNK, (found[0], ending.row, 1))
                used += 1
        return used

    def end_queued(self, uep_row: int, ending: TaskEnding, limit: int) -> Settled:
        rows = self._db.execute(sql.QUEUED_ROWS, (uep_row, limit)).fetchall()
        return self.record_endings(uep_row, [msgspec.structs.replace(ending, row=row) for (row,) in rows])

    def queued_before(self, uep_row: int, submitted_before: float, limit: int) -> list[int]:
        rows: list[int] = []
        for held, priority in WAITING:
            oldest = self._db.execute(sql.QUEUED_ROWS_BY_AGE, (uep_row, held, priority, limit - len(rows))).fetchall()
            rows += [row for row, at in oldest if at < submitted_before]
        return rows

    def sweep(self, ended_before: float, limit: int, *, after: int = 0, delivered: bool = False) -> Swept:
        query = sql.OLDEST_DELIVERED if delivered else sql.OLDEST_RESULTS
        page = self._db.execute(query, (after, limit)).fetchall()
        old = [one[:-1] for one in page if one[2] < ended_before and one[-1]]
        self._leave_pieces([row for _, row, *_ in old])
        for statement in sql.SWEEP:
            self._db.executemany(statement, [(row,) for _, row, *_ in old])
        self._db.executemany(sql.SWEEP_RESULT, [(seq,) for seq, *_ in old])
        self._db.executemany(sql.ADD_BYTES, [(-size, group) for _, _, _, group, size, *_ in old])
        self._db.executemany(sql.DROP_SET, [(waits, waits) for waits in {one[5] for one in old} - {0, None}])
        self._leave_chunks({name for *_, result, arguments in old for name in (result, arguments)})
        more = len(page) == limit and not ended_before <= page[-1][2] <= time.time()  # the clock may have been ahead
        return Swept(count=len(old), last=page[-1][0] if more else 0)

    def _leave_chunks(self, names: set[str]) -> None:
        """A backup has copied the database and now copies the chunks: those that it refers to must be there still."""
        self._db.executemany(sql.LEAVE_CHUNK, [(time.time(), name) for name in sorted(names - {""})])

    def _leave_pieces(self, rows: Sequence[int]) -> bool:
        """Return whether there are pieces at all."""
        if not rows or not self._db.execute(sql.HAS_USES).fetchone()[0]:
            return False
        now = time.time()
        self._db.executemany(sql.LEAVE_PIECES, [(now, now, row) for row in rows])
        return True

    def drop_inputs(self, after: int, limit: int) -> int:
        ended = self._db.execute(sql.ENDED_INPUTS, (after, limit)).fetchall()
        if self._leave_pieces([row for _, row, *_ in ended]):
            self._db.executemany(sql.FORGET_ARGUMENTS, [(row,) for _, row, *_ in ended])
        self._db.executemany(sql.DROP_INPUT, [(row,) for _, row, *_ in ended])
        self._db.executemany(sql.ADD_BYTES, [(-size, group) for _, _, group, size, _ in ended if size])
        self._leave_chunks({name for *_, name in ended})
        return int(ended[-1][0]) if ended else after


# --- the store --------------------------------------------------------------------------------------


class SqlReads(abc.ABC):
    """The reads of `relay.store.base.Store`, in SQL. The class of a backend says how a query is run."""

    @abc.abstractmethod
    def _one(self, statement: str, *parameters: Any) -> Any:
        """Return the first row. Raises RelayUnavailable."""

    @abc.abstractmethod
    def _all(self, statement: str, *parameters: Any) -> list[Any]:
        """Return every row. Raises RelayUnavailable."""

    @abc.abstractmethod
    def _leading(self, statement: str, parameters: tuple[Any, ...], size_of: Callable[[Row], int], most: int) -> Any:
        """Return leading rows, as `within` does. Raises RelayUnavailable."""

    # --- people -----------------------------------------------------------------------------------

    def token(self, token_hash: bytes) -> TokenRecord | None:
        row = self._one(sql.TOKEN, token_hash)
        return _token(row) if row else None

    def tokens(self, account_id: str, limit: int) -> list[TokenRecord]:
        return [_token(row) for row in self._all(sql.TOKENS_OF, account_id, limit)]

    def owner_of_identity(self, identity_id: str) -> str | None:
        row = self._one(sql.IDENTITY, identity_id)
        return row[0] if row else None

    def count_documents(self, kind: str, owner: str, limit: int) -> int:
        count: int = self._one(sql.COUNT_DOCUMENTS, owner, kind, limit)[0]
        return count

    def endpoint_of_uep(self, uep_row: int) -> str | None:
        row = self._one(sql.ENDPOINT_OF_UEP, uep_row)
        return row[0] if row else None

    def document(self, kind: str, id: str) -> Document | None:  # noqa: A002
        row = self._one(sql.DOCUMENT, kind, id)
        return _document(row) if row else None

    def documents(self, kind: str, owner: str | None = None, after: str = "", limit: int = 1000) -> list[Document]:
        if owner is None:
            return [_document(row) for row in self._all(sql.DOCUMENTS, kind, after, limit)]
        return [_document(row) for row in self._all(sql.DOCUMENTS_OF, owner, kind, after, limit)]

    def identity_set(self, account_id: str, first: str = "") -> IdentitySet | None:
        rows = self._all(sql.IDENTITIES, account_id)
        identities = [_identity_decoder.decode(row[0]) for row in rows]
        identities.sort(key=lambda identity: identity.id != first)
        return IdentitySet(account_id, tuple(identities)) if identities else None

    def account_of(self, username: str) -> Caller | None:
        row = self._one(sql.ACCOUNT_OF, username)
        return _caller(row) if row else None

    def accounts(self) -> list[IdentitySet]:
        found = (self.identity_set(row[0]) for row in self._all(sql.ACCOUNTS))
        return [one for one in found if one is not None]

    # --- endpoints, functions, user endpoints -------------------------------------------------------

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        row = self._one(sql.ENDPOINT, endpoint_id)
        return _endpoint(row) if row else None

    def endpoints(self, owner: str | None = None) -> list[EndpointRecord]:
        found = self._all(sql.ENDPOINTS) if owner is None else self._all(sql.ENDPOINTS_OF, owner)
        return [_endpoint(row) for row in found]

    def function(self, function_id: str) -> FunctionRecord | None:
        row = self._one(sql.FUNCTION, function_id)
        if row is None:
            return None
        record = _function_decoder.decode(row[1])
        return msgspec.structs.replace(record, owner=row[0], code=row[2])

    def function_ref(self, function_id: str) -> FunctionRef | None:
        row = self._one(sql.FUNCTION_REF, function_id)
        return (
            FunctionRef(
                row=row[0],
                function_id=row[1],
                owner=row[2],
                public=bool(row[3]),
                used_at=row[4],
                group=row[5],
                ha_endpoint_id=row[6],
            )
            if row
            else None
        )

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
            return [uep_from_row(row) for row in self._all(sql.UEPS_IN_USE)]
        return [uep_from_row(row) for row in self._all(sql.UEPS_IN_USE_OF, endpoint_id)]

    # --- tasks ------------------------------------------------------------------------------------

    def has_queued(self, uep_row: int) -> bool:
        return bool(self._one(sql.HAS_QUEUED, uep_row)[0])

    def oldest_queued(self, uep_row: int) -> float | None:
        found = (self._one(sql.QUEUED_ROWS_BY_AGE, uep_row, held, priority, 1) for held, priority in WAITING)
        return min((row[1] for row in found if row), default=None)

    def next_deadline(self) -> float | None:
        row = self._one(sql.NEXT_DEADLINE)
        return row[0] if row else None

    def overdue(self, now: float, limit: int) -> list[OverdueTask]:
        rows = self._all(sql.OVERDUE, now, limit)
        return [
            OverdueTask(
                row=r[0],
                uep_row=r[1],
                state=TaskState(r[2]),
                attempts=r[3],
                doubtful=bool(r[4]),
            )
            for r in rows
        ]

    def has_active(self, uep_row: int) -> bool:
        return bool(self._one(sql.HAS_ACTIVE, uep_row)[0])

    def open_tasks(self, account_id: str, endpoint_id: str = "") -> int:
        if endpoint_id:
            return int(self._one(sql.OPEN_TASKS_AT, account_id, endpoint_id)[0])
        return int(self._one(sql.OPEN_TASKS, account_id)[0])

    def open_by_state(self) -> dict[TaskState, int]:
        return {TaskState(state): count for state, count in self._all(sql.OPEN_BY_STATE)}

    def stored_bytes(self, account_id: str) -> int:
        return int(self._one(sql.STORED_BYTES, *[account_id] * 3)[0])

    def tasks(self, task_ids: Sequence[bytes]) -> list[TaskRecord]:
        rows = (self._one(sql.TASK, task_id) for task_id in task_ids)
        return [_task(row) for row in rows if row is not None]

    def task_without_result(self, task_id: bytes) -> TaskRecord | None:
        row = self._one(sql.TASK_WITHOUT_RESULT, task_id)
        return _task(row) if row else None

    def awaited(self) -> list[int]:
        return [row for (row,) in self._all(sql.AWAITED)]

    def dependent_rows(self) -> list[tuple[int, int]]:
        return self._all(sql.DEPENDENT_ROWS)

    def dependencies(self, row: int) -> list[Dependency]:
        return [_dependency(found) for found in self._all(sql.DEPENDENCIES, row)]

    def inputs(self, row: int) -> list[tuple[bytes, str]]:
        return self._all(sql.INPUTS, row)

    def briefs(self, task_ids: Sequence[bytes]) -> list[TaskBrief]:
        rows = (self._one(sql.TASK_BRIEF, task_id) for task_id in task_ids)
        return [
            TaskBrief(
                row=r[0],
                task_id=r[1],
                owner=r[2],
                uep_row=r[3],
                state=TaskState(r[4]),
                submitted_at=r[5],
                started_at=r[6],
                ended_at=r[7],
                size=r[8],
                group_row=r[9],
            )
            for r in rows
            if r is not None
        ]

    def has_chunk(self, name: str) -> bool:
        return self._one(sql.KNOWN_CHUNK, name) is not None

    def piece(self, owner: str, digest: bytes) -> str | None:
        row = self._one(sql.OWN_PIECE, owner, digest)
        return str(row[0]) if row else None

    def piece_of_uep(self, owner: str, digest: bytes, uep_row: int) -> str | None:
        row = self._one(sql.PIECE_OF_UEP, owner, digest, uep_row, uep_row)
        return str(row[0]) if row else None

    def group(self, group_id: str) -> GroupRef | None:
        row = self._one(sql.GROUP, group_id)
        return _group(row) if row else None

    def group_tasks(self, group_row: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        return self._all(sql.GROUP_TASKS, group_row, after, limit)

    def groups_of(self, owner: str, before: int, limit: int) -> list[GroupRef]:
        return [_group(row) for row in self._all(sql.GROUPS_OF, owner, before, limit)]

    def group_size(self, group_row: int, limit: int) -> tuple[int, float, float]:
        count, first, last = self._all(sql.GROUP_SIZE, group_row, limit)[0]
        return count, first, last

    def group_states(self, group_row: int, after: int, limit: int) -> list[OwnTask]:
        return [
            OwnTask(
                row=r[0],
                task_id=r[1],
                state=TaskState(r[2]),
                submitted_at=r[3],
                ended_at=r[4] or 0.0,
                endpoint_id=r[5],
                function_id=r[6] or "",
            )
            for r in self._all(sql.GROUP_STATES, group_row, after, limit)
        ]

    def completions(self, group_row: int, after: int, limit: int, max_bytes: int) -> list[Completion]:
        rows = self._leading(sql.COMPLETIONS, (group_row, after, limit), _ending_size, max_bytes)
        return [
            Completion(
                seq=r[0],
                task_id=r[1],
                state=TaskState(r[2]),
                code=r[3],
                text=r[4],
                payload=r[5],
                correlation_id=r[6],
                chunk=r[7],
                uep_row=r[9],
            )
            for r in rows
        ]

    # --- task events ------------------------------------------------------------------------------

    def task_events_kept(self) -> list[str]:
        return [row[0] for row in self._all(sql.EVENTS_KEPT)]

    def task_events(self, endpoint_id: str, limit: int) -> EventPage:
        numbers = self._one(sql.EVENT_NUMBERS, endpoint_id)
        if numbers is None:
            return EventPage(dropped=0, events=[])
        return EventPage(dropped=numbers[2], events=self._all(sql.EVENTS, endpoint_id, limit))

    # --- an administrator's questions ---------------------------------------------------------------

    def list_tasks(self, account_id: str, endpoint_id: str, *, ended: bool, limit: int) -> list[ListedTask]:
        below = max(TaskState) + 1 if ended else int(TaskState.SUCCESS)
        rows = self._all(sql.LIST_TASKS, below, account_id, account_id, endpoint_id, endpoint_id, limit)
        return [
            ListedTask(task_id=r[0], owner=r[1], endpoint_id=r[2], state=TaskState(r[3]), submitted_at=r[4])
            for r in rows
        ]

    def queues(self) -> list[QueueLength]:
        return [
            QueueLength(uep_id=r[0], endpoint_id=r[1], account_id=r[2], state=r[3], count=r[4], oldest=r[5])
            for r in self._all(sql.QUEUES)
        ]

    def storage(self) -> list[tuple[str, int, int]]:
        return [(owner, int(size), int(groups)) for owner, size, groups in self._all(sql.STORAGE)]


class SqliteStore(SqlReads):
    """`relay.store.base.Store` in one file."""

    def __init__(self, path: Path | None, *, for_server: bool = False) -> None:
        """Open or make the file; `for_server` prepares it for many commits. Raises StateTooNew, sqlite3.Error.

        Without a path the database is in memory, and each change is made in its caller's thread.
        """
        self._checkpointer: Checkpointer | None = None
        with _said_if_slow(path):
            self._write = _connect(path or ":memory:")
            migrate(self._write)
            self._read = self._write
            self.commits = Commits(self._write, SqliteTx(self._write))
            self._writer: Writer | DirectWriter = DirectWriter(self.commits)
            if path is not None:
                self._open_file(path, for_server=for_server)

    def _open_file(self, path: Path, *, for_server: bool) -> None:
        if for_server:
            pad, unpad, restart = sql.PAD_LOG
            self._write.execute(pad, (PADDED_BYTES,))
            self._write.execute(unpad)
            self._write.execute("PRAGMA busy_timeout = 0")  # a foreign reader may stay for any time
            self._write.execute(restart).fetchall()
            self._checkpointer = Checkpointer(_connect(path), path)
        self._read = _connect(path)
        self._read.execute("PRAGMA query_only = 1")
        if for_server:  # a read is in the event loop's thread; nothing but a recovery after a crash ever locks it out
            self._read.execute("PRAGMA busy_timeout = 0")
        self._write.execute(f"PRAGMA busy_timeout = {int(LOCK_STEP_S * 1000)}")  # `Commits` tries again
        self.commits = Commits(self._write, SqliteTx(self._write), self._checkpointer)
        self._writer = Writer(self.commits)

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

    @property
    def checkpoints(self) -> CheckpointFigures | None:
        """What the checkpoints of a server's store have done."""
        return None if self._checkpointer is None else self._checkpointer.figures

    def close(self) -> None:
        """Finish submitted changes and close."""
        self._writer.close()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._read.close()
        self._write.close()

    def _one(self, statement: str, *parameters: Any) -> Any:
        """Return the first row. Raises RelayUnavailable."""
        try:
            return self._read.execute(statement, parameters).fetchone()
        except sqlite3.Error as error:
            raise unreadable(error) from error

    def _all(self, statement: str, *parameters: Any) -> list[Any]:
        """Return every row. Raises RelayUnavailable."""
        try:
            return self._read.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise unreadable(error) from error

    def _leading(self, statement: str, parameters: tuple[Any, ...], size_of: Callable[[Row], int], most: int) -> Any:
        try:
            return leading_rows(self._read, statement, parameters, size_of, most)
        except sqlite3.Error as error:
            raise unreadable(error) from error
