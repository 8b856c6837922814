"""The changes of the SQLite store. Each method runs inside a transaction that `Writer` opens and commits."""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Sequence

import msgspec

from mep_wire.errors import IdConflict
from mep_wire.identity import Identity
from mep_wire.limits import MAX_PRIORITY, MIN_PRIORITY
from mep_wire.states import TaskState
from relay.store import statements as sql
from relay.store.records import (
    Added,
    Caller,
    Ending,
    EndpointRecord,
    FunctionRecord,
    GroupRef,
    Held,
    NewTask,
    QueuedTask,
    Settled,
    Standing,
    UepRecord,
)
from relay.store.sqlite_task_events import SqliteTaskEvents

PRIORITIES = range(MAX_PRIORITY, MIN_PRIORITY - 1, -1)


class _Part:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection


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

    def add_token(self, token_hash: bytes, caller: Caller, now: float) -> None:
        self._db.execute(sql.ADD_TOKEN, (token_hash, caller.account_id, caller.identity_id, now))

    def remove_tokens(self, identity_id: str) -> int:
        return self._db.execute(sql.REMOVE_TOKENS, (identity_id,)).rowcount


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
        body = msgspec.msgpack.encode(msgspec.structs.replace(function, code=b""))
        self._db.execute(
            sql.ADD_FUNCTION,
            (function.function_id, function.owner, int(function.public), function.code, body, function.created_at),
        )

    def delete_function(self, function_id: str, now: float) -> None:
        self._db.execute(sql.DELETE_FUNCTION, (now, function_id))

    def put_uep(self, uep: UepRecord) -> UepRecord:
        config, runtime = msgspec.json.encode(uep.config), msgspec.json.encode(uep.runtime)
        values = (uep.uep_id, uep.endpoint_id, uep.account_id, uep.identity_id, config, runtime, uep.seen_at)
        self._db.execute(sql.ADD_UEP, values)
        row = self._db.execute(sql.UEP, (uep.uep_id,)).fetchone()
        known = {"link_key": row[7] or b"", "made_of": row[8], "seen_at": row[9], "incarnation": row[10]}
        return msgspec.structs.replace(uep, row=row[0], **known)

    def saw_ueps(self, uep_rows: Sequence[int], now: float) -> None:
        self._db.executemany(sql.SAW_UEP, [(now, row) for row in uep_rows])

    def add_join(self, uep_row: int, join_hash: bytes, expires: float, now: float) -> None:
        self._db.execute(sql.DROP_JOINS, (uep_row, now))
        self._db.execute(sql.ADD_JOIN, (join_hash, uep_row, expires))

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        if self._db.execute(sql.SPEND_JOIN, (join_hash, uep_row, now)).rowcount != 1:
            return False
        self._db.execute(sql.DROP_ALL_JOINS, (uep_row,))
        try:
            self._db.execute(sql.SET_LINK, (link_key, incarnation, uep_row))
        except sqlite3.IntegrityError:  # the key is enrolled for another user endpoint
            return False
        return True

    def clear_link(self, uep_row: int, link_key: bytes) -> None:
        self._db.execute(sql.CLEAR_LINK, (uep_row, link_key))


class _SweepTx(_Part):
    _groups: dict[str, GroupRef]

    def sweep_ueps(self, seen_before: float, keep: Collection[int], limit: int) -> int:
        found = self._db.execute(sql.UNSEEN_UEPS, (seen_before,)).fetchmany(limit + len(keep))
        rows = [row for (row,) in found if row not in keep][:limit]
        for statement in (sql.DROP_ALL_JOINS, sql.DROP_UEP):
            self._db.executemany(statement, [(row,) for row in rows])
        return len(rows)

    def sweep_groups(self, after: int, keep: Collection[int], limit: int) -> int:
        found = self._db.execute(sql.GROUPS_AFTER, (after, limit)).fetchall()
        rows = [row for row, in_use in found if not in_use and row not in keep]
        self._db.executemany(sql.DROP_GROUP, [(row,) for row in rows])
        self._groups.clear()
        return int(found[-1][0]) if len(found) == limit else 0

    def use_functions(self, function_rows: Sequence[int], now: float) -> None:
        self._db.executemany(sql.USE_FUNCTION, [(now, row) for row in function_rows])

    def sweep_functions(self, used_before: float, now: float, limit: int) -> int:
        return self._db.execute(sql.SWEEP_FUNCTIONS, (now, used_before, limit)).rowcount

    def purge_functions(self, deleted_before: float, limit: int) -> int:
        return self._db.execute(sql.PURGE_FUNCTIONS, (deleted_before, limit)).rowcount

    def compact(self, pages: int) -> None:
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(pages, free)):  # one at a time: Python takes but one step of a statement without columns
            self._db.execute("PRAGMA incremental_vacuum(1)")


class SqliteTx(_AccountTx, _RegistryTx, _SweepTx, SqliteTaskEvents):
    """`relay.store.base.Tx` over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._next_row = self._next_seq = 0
        self._groups: dict[str, GroupRef] = {}
        self.forget()

    def forget(self) -> None:
        """Drop cached database values: called after a rollback."""
        (self._next_row,) = self._db.execute(sql.NEXT_ROW).fetchone()
        (self._next_seq,) = self._db.execute(sql.NEXT_SEQ).fetchone()
        self._groups.clear()

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
        return Added(rows, group, len(tasks), repeated=False)

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
        return Added(rows, group, new, repeated=True)

    def _add_inputs(self, group: GroupRef, rows: Sequence[int], tasks: Sequence[NewTask]) -> None:
        self._db.execute(sql.ADD_BYTES, (sum(len(task.payload) for task in tasks), group.row))
        self._db.executemany(
            sql.ADD_INPUT,
            [
                (row, t.payload, t.resource_spec, t.walltime_s, t.max_attempts)
                for row, t in zip(rows, tasks, strict=True)
            ],
        )
        self._next_row = max(self._next_row, rows[-1] + 1) if rows else self._next_row

    def _group(self, group_id: str, owner: str) -> GroupRef:
        group = self._groups.get(group_id)
        if group is None:
            self._db.execute(sql.ADD_GROUP, (group_id, owner))
            group = GroupRef(*self._db.execute(sql.GROUP, (group_id,)).fetchone())
        if group.owner != owner:
            raise IdConflict(id=group_id)
        return group

    # --- dispatching ------------------------------------------------------------------------------

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        taken: list[QueuedTask] = []
        size = 0
        cursor = self._db.execute(sql.QUEUED_TASKS, (uep_row, limit))
        for row in cursor:
            size += len(row[3])
            if taken and size > max_bytes:
                break
            taken.append(QueuedTask(*row))
        cursor.close()
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
        return Held(requeued, lost, [row for row in holds if row not in active])

    def running_rows(self, uep_row: int) -> list[int]:
        return [row[0] for row in self._db.execute(sql.RUNNING_ROWS, (uep_row,))]

    def active_rows(self, uep_row: int) -> dict[int, TaskState]:
        return {row: TaskState(state) for row, state in self._db.execute(sql.ACTIVE_ROWS, (uep_row,))}

    def standing(self, uep_row: int, rows: Sequence[int]) -> list[Standing]:
        found = (self._db.execute(sql.STANDING, (row, uep_row)).fetchone() for row in rows)
        return [Standing(r[0], TaskState(r[1]), r[2], r[3], bool(r[4])) for r in found if r is not None]

    def charge(self, uep_row: int, attempts: Sequence[tuple[int, int]]) -> None:
        self._db.executemany(sql.CHARGE, [(lost, row, uep_row) for row, lost in attempts])

    def ask_cancel(self, uep_row: int, rows: Sequence[int]) -> None:
        self._db.executemany(sql.ASK_CANCEL, [(row, uep_row) for row in rows])

    def cancelling(self, uep_row: int) -> dict[int, TaskState]:
        return {row: TaskState(state) for row, state in self._db.execute(sql.CANCELLING, (uep_row,))}

    # --- ending -----------------------------------------------------------------------------------

    def record_endings(self, uep_row: int, endings: Sequence[Ending]) -> Settled:
        groups: dict[int, int] = {}
        foreign: list[int] = []
        ended = 0
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
                (seq, one.row, found[0], one.stored_at, one.code, one.text, one.payload, one.correlation_id),
            )
            execute(sql.END_TASK, (int(one.state), seq, one.started_at, one.ended_at, one.row))
            ended += 1
        self._db.executemany(sql.ADD_BYTES, [(size, group) for group, size in groups.items() if size])
        return Settled(frozenset(groups), ended, foreign)

    def end_queued(self, uep_row: int, ending: Ending, limit: int) -> Settled:
        rows = self._db.execute(sql.QUEUED_ROWS, (uep_row, limit)).fetchall()
        return self.record_endings(uep_row, [msgspec.structs.replace(ending, row=row) for (row,) in rows])

    def queued_before(self, uep_row: int, submitted_before: float, limit: int) -> list[int]:
        rows: list[int] = []
        for priority in PRIORITIES:
            oldest = self._db.execute(sql.QUEUED_ROWS_BY_AGE, (uep_row, priority, limit - len(rows))).fetchall()
            rows += [row for row, at in oldest if at < submitted_before]
        return rows

    def sweep(self, ended_before: float, limit: int) -> int:
        oldest = self._db.execute(sql.OLDEST_RESULTS, (limit,)).fetchall()
        old = [one for one in oldest if one[2] < ended_before]
        for statement in sql.SWEEP:
            self._db.executemany(statement, [(row,) for _, row, *_ in old])
        self._db.executemany(sql.SWEEP_RESULT, [(seq,) for seq, *_ in old])
        self._db.executemany(sql.ADD_BYTES, [(-size, group) for *_, group, size in old])
        return len(old)

    def drop_inputs(self, after: int, limit: int) -> int:
        ended = self._db.execute(sql.ENDED_INPUTS, (after, limit)).fetchall()
        self._db.executemany(sql.DROP_INPUT, [(row,) for _, row, *_ in ended])
        self._db.executemany(sql.ADD_BYTES, [(-size, group) for *_, group, size in ended if size])
        return int(ended[-1][0]) if ended else after
