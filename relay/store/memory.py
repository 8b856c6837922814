"""The store in plain dictionaries, for unit tests: the same contract, nothing on disk.

A change that fails is undone by restoring a copy of everything, which is fast enough for tests.
"""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from mep_wire.errors import MepError
from mep_wire.identity import IdentitySet
from mep_wire.states import TaskState
from relay.store.base import Tx
from relay.store.memory_events import MemoryTaskEventReads
from relay.store.memory_tx import ACTIVE, Data, MemoryTx, Task
from relay.store.records import (
    Caller,
    Completion,
    Ending,
    EndpointRecord,
    FunctionRecord,
    FunctionRef,
    GroupRef,
    OverdueTask,
    TaskBrief,
    TaskRecord,
    UepRecord,
)

T = TypeVar("T")


class MemoryStore(MemoryTaskEventReads):
    """`relay.store.base.Store` in memory."""

    _d: Data

    def __init__(self) -> None:
        self._d = Data()

    def submit(self, change: Callable[[Tx], T], *, inline: bool = True) -> Future[T]:
        """See `relay.store.base.Store.submit`; always in the caller's thread."""
        future: Future[T] = Future()
        before = copy.deepcopy(self._d)
        try:
            future.set_result(change(MemoryTx(self._d)))
        except (MepError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            self._d = before
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing to do."""

    # --- people -----------------------------------------------------------------------------------

    def caller(self, token_hash: bytes) -> Caller | None:
        return self._d.tokens.get(token_hash)

    def identity_set(self, account_id: str, first: str = "") -> IdentitySet | None:
        mine = [one for account, one in self._d.identities.values() if account == account_id]
        mine.sort(key=lambda one: (one.id != first, one.id))
        return IdentitySet(account_id, tuple(mine)) if mine else None

    def account_of(self, username: str) -> Caller | None:
        for account, one in self._d.identities.values():
            if one.username.lower() == username.lower():
                return Caller(account, one.id)
        return None

    def accounts(self) -> list[IdentitySet]:
        ids = {account for account, _ in self._d.identities.values()}
        people = [one for one in map(self.identity_set, ids) if one is not None]
        return sorted(people, key=lambda one: min(identity.username for identity in one.identities))

    # --- endpoints, functions, user endpoints -------------------------------------------------------

    def endpoint(self, endpoint_id: str) -> EndpointRecord | None:
        return self._d.endpoints.get(endpoint_id)

    def endpoints(self, owner: str | None = None) -> list[EndpointRecord]:
        found = [e for e in self._d.endpoints.values() if not e.deleted_at and owner in (None, e.owner)]
        return sorted(found, key=lambda e: (e.name, e.endpoint_id))

    def function(self, function_id: str) -> FunctionRecord | None:
        _, function, deleted_at = self._d.functions.get(function_id, (0, None, 0.0))
        return None if deleted_at else function

    def function_ref(self, function_id: str) -> FunctionRef | None:
        row, function, deleted_at = self._d.functions.get(function_id, (0, None, 0.0))
        if function is None or deleted_at:
            return None
        return FunctionRef(row, function_id, function.owner, function.public, self._d.used_at[function_id])

    def function_code(self, function_id: str) -> bytes | None:
        known = self._d.functions.get(function_id)
        return known[1].code if known else None

    def uep(self, uep_id: str) -> UepRecord | None:
        return self._d.ueps.get(uep_id)

    def uep_by_link_key(self, link_key: bytes) -> UepRecord | None:
        return next((u for u in self._d.ueps.values() if link_key and u.link_key == link_key), None)

    def ueps_in_use(self, endpoint_id: str | None = None) -> list[UepRecord]:
        busy = {task.uep_row for task in self._d.tasks.values() if not task.state.is_terminal}
        found = [u for u in self._d.ueps.values() if u.link_key or u.row in busy]
        return [u for u in found if endpoint_id in (None, u.endpoint_id)]

    # --- tasks ------------------------------------------------------------------------------------

    def has_queued(self, uep_row: int) -> bool:
        return any(t.uep_row == uep_row and t.state is TaskState.QUEUED for t in self._d.tasks.values())

    def next_deadline(self) -> float | None:
        return min((t.new.deadline for t in self._with_deadline()), default=None)

    def overdue(self, now: float, limit: int) -> list[OverdueTask]:
        late = sorted((t.new.deadline, t.row, t) for t in self._with_deadline() if t.new.deadline <= now)
        return [OverdueTask(task.row, task.uep_row, task.state) for _, _, task in late[:limit]]

    def _with_deadline(self) -> list[Task]:
        return [t for t in self._d.tasks.values() if t.new.deadline and not t.state.is_terminal]

    def oldest_queued(self, uep_row: int) -> float | None:
        waiting = (t for t in self._d.tasks.values() if t.uep_row == uep_row and t.state is TaskState.QUEUED)
        return next((t.submitted_at for t in waiting), None)

    def has_active(self, uep_row: int) -> bool:
        return any(t.uep_row == uep_row and t.state in ACTIVE for t in self._d.tasks.values())

    def open_tasks(self, account_id: str) -> int:
        mine = {uep.row for uep in self._d.ueps.values() if uep.account_id == account_id}
        return sum(t.uep_row in mine and not t.state.is_terminal for t in self._d.tasks.values())

    def stored_bytes(self, account_id: str) -> int:
        mine = [task for task in self._d.tasks.values() if task.group.owner == account_id]
        waiting = sum(len(task.new.payload) for task in mine if task.has_input)
        return waiting + sum(len(task.ending.payload) for task in mine if task.ending is not None)

    def tasks(self, task_ids: Sequence[bytes]) -> list[TaskRecord]:
        known = {task.new.task_id: task for task in self._d.tasks.values()}
        return [_record(known[task_id]) for task_id in task_ids if task_id in known]

    def briefs(self, task_ids: Sequence[bytes]) -> list[TaskBrief]:
        return [
            TaskBrief(
                t.row,
                t.task_id,
                t.owner,
                t.uep_row,
                t.state,
                t.submitted_at,
                t.started_at,
                len(t.payload) + len(t.text),
            )
            for t in self.tasks(task_ids)
        ]

    def group(self, group_id: str) -> GroupRef | None:
        return self._d.groups.get(group_id)

    def group_tasks(self, group_row: int) -> list[bytes]:
        return [task.new.task_id for task in self._d.tasks.values() if task.group.row == group_row]

    def completions(self, group_row: int, after: int, limit: int, max_bytes: int) -> list[Completion]:
        ended = sorted((t.seq, t) for t in self._d.tasks.values() if t.group.row == group_row and t.seq > after)
        found: list[Completion] = []
        size = 0
        for seq, task in ended[:limit]:
            assert task.ending is not None
            e = task.ending
            size += len(e.payload) + len(e.text)
            if found and size > max_bytes:
                break
            found.append(Completion(seq, task.new.task_id, task.state, e.code, e.text, e.payload, e.correlation_id))
        return found


def _record(task: Task) -> TaskRecord:
    ending = task.ending or Ending(task.row, task.state)
    return TaskRecord(
        row=task.row,
        task_id=task.new.task_id,
        owner=task.group.owner,
        uep_row=task.uep_row,
        state=task.state,
        submitted_at=task.submitted_at,
        started_at=max(task.started_at, ending.started_at),
        ended_at=ending.ended_at,
        code=ending.code,
        text=ending.text,
        payload=ending.payload,
        correlation_id=ending.correlation_id,
    )
