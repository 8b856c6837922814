"""Task events in SQLite: what happened to the tasks of endpoints that keep task records, until it is written there.

Parts of `SqliteTx` and `SqliteStore`, with their own statements.
"""
# ruff: noqa: D102, S608 - relay.store.base has the text of every method; statements hold numbers of states

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from mep_wire.states import TaskState
from relay.store.records import EventPage, TaskRef, UepKey

SCHEMA: Final = """
    CREATE TABLE task_records (
        endpoint_id TEXT PRIMARY KEY, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, dropped INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE task_events (
        endpoint_id TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (endpoint_id, seq)
    ) WITHOUT ROWID;
    """
"""The third version of the schema."""

KEEP: Final = "INSERT INTO task_records VALUES (?, 1, 1, 0) ON CONFLICT (endpoint_id) DO NOTHING"
# The numbers go on where they were if it is switched on again: a reader tells repeated events by them.
KEEP_NO_MORE: Final = (
    "DELETE FROM task_events WHERE endpoint_id = ?",
    "UPDATE task_records SET first_seq = -1, dropped = 0 WHERE endpoint_id = ?",
)
KEEP_AGAIN: Final = "UPDATE task_records SET first_seq = next_seq WHERE endpoint_id = ? AND first_seq = -1"
KEPT: Final = "SELECT endpoint_id FROM task_records WHERE first_seq >= 0"
NUMBERS: Final = "SELECT first_seq, next_seq, dropped FROM task_records WHERE endpoint_id = ? AND first_seq >= 0"
SET_NUMBERS: Final = "UPDATE task_records SET first_seq = ?, next_seq = ?, dropped = ? WHERE endpoint_id = ?"
ADD_EVENT: Final = "INSERT INTO task_events VALUES (?, ?, ?)"
DROP_EVENTS: Final = "DELETE FROM task_events WHERE endpoint_id = ? AND seq < ?"
EVENTS: Final = "SELECT seq, body FROM task_events WHERE endpoint_id = ? ORDER BY seq LIMIT ?"
TASK_REF: Final = (
    "SELECT t.row, t.task_id, f.function_id, t.state, t.submitted_at "
    "FROM tasks t JOIN functions f ON f.function_row = t.function_row WHERE t.row = ? AND t.uep_row = ?"
)
QUEUED_REFS: Final = (
    "SELECT t.row, t.task_id, f.function_id, t.state, t.submitted_at "
    "FROM tasks t JOIN functions f ON f.function_row = t.function_row "
    f"WHERE t.uep_row = ? AND t.state = {int(TaskState.QUEUED)} AND likely(t.state < {int(TaskState.SUCCESS)}) "
    "ORDER BY t.priority DESC, t.row LIMIT ?"
)
UEP_KEY: Final = "SELECT endpoint_id, uep_id, account_id, identity_id, incarnation FROM ueps WHERE uep_row = ?"


class SqliteTaskEvents:
    """The part of `SqliteTx`."""

    _db: sqlite3.Connection

    def keep_task_events(self, endpoint_id: str, *, keep: bool) -> None:
        if keep:
            self._db.execute(KEEP, (endpoint_id,))
            self._db.execute(KEEP_AGAIN, (endpoint_id,))
            return
        for statement in KEEP_NO_MORE:
            self._db.execute(statement, (endpoint_id,))

    def add_task_events(self, endpoint_id: str, bodies: Sequence[bytes], most: int) -> None:
        found = self._db.execute(NUMBERS, (endpoint_id,)).fetchone()
        if found is None:
            return
        first, following, dropped = found
        self._db.executemany(ADD_EVENT, [(endpoint_id, seq, body) for seq, body in enumerate(bodies, start=following)])
        following += len(bodies)
        if (over := following - first - most) > 0:
            first, dropped = first + over, dropped + over
            self._db.execute(DROP_EVENTS, (endpoint_id, first))
        self._db.execute(SET_NUMBERS, (first, following, dropped, endpoint_id))

    def task_events_written(self, endpoint_id: str, until: int, dropped: int) -> None:
        found = self._db.execute(NUMBERS, (endpoint_id,)).fetchone()
        if found is None:
            return
        first, following, before = found
        first = max(first, min(until + 1, following))
        self._db.execute(DROP_EVENTS, (endpoint_id, first))
        self._db.execute(SET_NUMBERS, (first, following, max(0, before - dropped), endpoint_id))

    def task_refs(self, uep_row: int, rows: Sequence[int]) -> list[TaskRef]:
        found = (self._db.execute(TASK_REF, (row, uep_row)).fetchone() for row in rows)
        return [_ref(one) for one in found if one is not None]

    def queued_refs(self, uep_row: int, limit: int) -> list[TaskRef]:
        return [_ref(row) for row in self._db.execute(QUEUED_REFS, (uep_row, limit))]

    def uep_key(self, uep_row: int) -> UepKey | None:
        row = self._db.execute(UEP_KEY, (uep_row,)).fetchone()
        return UepKey(*row) if row else None


class SqliteTaskEventReads:
    """The part of `SqliteStore`."""

    _read: sqlite3.Connection

    def task_events_kept(self) -> list[str]:
        return [row[0] for row in self._read.execute(KEPT)]

    def task_events(self, endpoint_id: str, limit: int) -> EventPage:
        numbers = self._read.execute(NUMBERS, (endpoint_id,)).fetchone()
        if numbers is None:
            return EventPage(0, [])
        return EventPage(numbers[2], self._read.execute(EVENTS, (endpoint_id, limit)).fetchall())


def _ref(row: tuple[int, bytes, str, int, float]) -> TaskRef:
    return TaskRef(row[0], row[1], row[2], TaskState(row[3]), row[4])
