"""The changes of the memory store, over its dictionaries. See relay.store.memory."""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from mep_wire.errors import IdConflict
from mep_wire.identity import Identity
from mep_wire.states import TASK_TRANSITIONS, TaskState
from relay.store.memory_events import Kept, MemoryTaskEvents
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

ACTIVE = (TaskState.DISPATCHED, TaskState.RUNNING)


@dataclass(slots=True)
class Task:
    """A task as it is held."""

    row: int
    group: GroupRef
    uep_row: int
    new: NewTask
    state: TaskState
    submitted_at: float
    started_at: float = 0.0
    ending: Ending | None = None
    seq: int = 0
    attempts: int = 0
    cancelling: bool = False
    has_input: bool = True

    def may(self, then: TaskState) -> bool:
        return then in TASK_TRANSITIONS[self.state]


@dataclass(slots=True)
class Data:
    """Everything that the store holds."""

    identities: dict[str, tuple[str, Identity]] = field(default_factory=dict)
    tokens: dict[bytes, Caller] = field(default_factory=dict)
    endpoints: dict[str, EndpointRecord] = field(default_factory=dict)
    functions: dict[str, tuple[int, FunctionRecord, float]] = field(default_factory=dict)
    ueps: dict[str, UepRecord] = field(default_factory=dict)
    joins: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    groups: dict[str, GroupRef] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    events: dict[str, Kept] = field(default_factory=dict)
    used_at: dict[str, float] = field(default_factory=dict)
    row: int = 0
    seq: int = 0
    function_row: int = 0
    group_row: int = 0


class MemoryTx(MemoryTaskEvents):
    """`relay.store.base.Tx` over `Data`."""

    _d: Data

    def __init__(self, data: Data) -> None:
        self._d = data

    # --- people -----------------------------------------------------------------------------------

    def add_account(self, account_id: str, identity: Identity) -> None:
        taken = {known.username.lower() for _, known in self._d.identities.values()}
        if identity.username.lower() in taken or identity.id in self._d.identities:
            raise IdConflict(id=identity.username)
        self._d.identities[identity.id] = (account_id, identity)

    def merge_accounts(self, keep: str, other: str) -> None:
        d = self._d

        def of(account: str) -> str:
            return keep if account == other else account

        d.identities = {key: (of(account), one) for key, (account, one) in d.identities.items()}
        d.tokens = {key: Caller(of(c.account_id), c.identity_id) for key, c in d.tokens.items()}
        replace = msgspec.structs.replace
        d.endpoints = {key: replace(e, owner=of(e.owner)) for key, e in d.endpoints.items()}
        d.functions = {key: (row, replace(f, owner=of(f.owner)), gone) for key, (row, f, gone) in d.functions.items()}
        d.ueps = {key: replace(u, account_id=of(u.account_id)) for key, u in d.ueps.items()}
        d.groups = {key: replace(g, owner=of(g.owner)) for key, g in d.groups.items()}
        for task in d.tasks.values():
            task.group = d.groups[task.group.group_id]

    def move_identity(self, identity_id: str, account_id: str) -> None:
        self._d.identities[identity_id] = (account_id, self._d.identities[identity_id][1])
        tokens = self._d.tokens.items()
        self._d.tokens = {k: Caller(account_id, identity_id) if c.identity_id == identity_id else c for k, c in tokens}

    def remove_account(self, account_id: str) -> None:
        self._d.identities = {k: v for k, v in self._d.identities.items() if v[0] != account_id}
        self._d.tokens = {k: c for k, c in self._d.tokens.items() if c.account_id != account_id}

    def add_token(self, token_hash: bytes, caller: Caller, now: float) -> None:
        self._d.tokens[token_hash] = caller

    def remove_tokens(self, identity_id: str) -> int:
        before = len(self._d.tokens)
        self._d.tokens = {k: c for k, c in self._d.tokens.items() if c.identity_id != identity_id}
        return before - len(self._d.tokens)

    # --- endpoints, functions, user endpoints -------------------------------------------------------

    def put_endpoint(self, endpoint: EndpointRecord) -> None:
        known = self._d.endpoints.get(endpoint.endpoint_id)
        if known is not None and (known.owner != endpoint.owner or known.deleted_at):
            raise IdConflict(id=endpoint.endpoint_id)
        for other in self._d.endpoints.values():
            clash = other.link_key == endpoint.link_key and other.endpoint_id != endpoint.endpoint_id
            if clash and not other.deleted_at:
                raise IdConflict(id=f"link_public_key {endpoint.link_key.hex()}")
        self._d.endpoints[endpoint.endpoint_id] = endpoint

    def delete_endpoint(self, endpoint_id: str, now: float) -> None:
        known = self._d.endpoints.get(endpoint_id)
        if known is not None and not known.deleted_at:
            self._d.endpoints[endpoint_id] = msgspec.structs.replace(known, deleted_at=now)

    def put_function(self, function: FunctionRecord) -> None:
        self._d.function_row += 1
        self._d.functions[function.function_id] = (self._d.function_row, function, 0.0)
        self._d.used_at[function.function_id] = function.created_at

    def delete_function(self, function_id: str, now: float) -> None:
        row, function, _ = self._d.functions[function_id]
        self._d.functions[function_id] = (row, function, now)

    def put_uep(self, uep: UepRecord) -> UepRecord:
        if uep.uep_id not in self._d.ueps:
            self._d.ueps[uep.uep_id] = msgspec.structs.replace(
                uep,
                row=max((one.row for one in self._d.ueps.values()), default=0) + 1,
                link_key=b"",
                made_of=uep.account_id,
            )
        return self._d.ueps[uep.uep_id]

    def saw_ueps(self, uep_rows: Sequence[int], now: float) -> None:
        for key, uep in self._d.ueps.items():
            if uep.row in uep_rows:
                self._d.ueps[key] = msgspec.structs.replace(uep, seen_at=now)

    def add_join(self, uep_row: int, join_hash: bytes, expires: float, now: float) -> None:
        self._d.joins[join_hash] = (uep_row, expires)

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        row, expires = self._d.joins.get(join_hash, (0, 0.0))
        taken = any(u.link_key == link_key and u.row != uep_row for u in self._d.ueps.values())
        if row != uep_row or expires < now or taken:
            return False
        self._d.joins = {k: v for k, v in self._d.joins.items() if v[0] != uep_row}
        self._set_link(uep_row, link_key, incarnation)
        return True

    def clear_link(self, uep_row: int, link_key: bytes) -> None:
        if any(u.row == uep_row and u.link_key == link_key for u in self._d.ueps.values()):
            self._set_link(uep_row, b"")

    def _set_link(self, uep_row: int, link_key: bytes, incarnation: bytes | None = None) -> None:
        for key, uep in self._d.ueps.items():
            if uep.row == uep_row:
                self._d.ueps[key] = msgspec.structs.replace(
                    uep, link_key=link_key, incarnation=uep.incarnation if incarnation is None else incarnation
                )

    # --- tasks ------------------------------------------------------------------------------------

    def add_tasks(
        self, owner: str, group_id: str, uep_row: int, tasks: Sequence[NewTask], dispatched: int, now: float
    ) -> Added:
        group = self._d.groups.get(group_id) or GroupRef(self._d.group_row + 1, group_id, owner)
        if group.owner != owner:
            raise IdConflict(id=group_id)
        self._d.group_row = max(self._d.group_row, group.row)
        self._d.groups[group_id] = group
        known = {task.new.task_id: task for task in self._d.tasks.values()}
        repeated = any(task.task_id in known for task in tasks)
        rows, new = [], 0
        for number, task in enumerate(tasks):
            before = known.get(task.task_id)
            if before is None:
                self._d.row += 1
                new += 1
                state = TaskState.DISPATCHED if number < dispatched and not repeated else TaskState.QUEUED
                before = known[task.task_id] = Task(self._d.row, group, uep_row, task, state, now)
                self._d.tasks[before.row] = before
            wanted = (group.row, uep_row, task.function.row)
            if (before.group.row, before.uep_row, before.new.function.row) != wanted:
                raise IdConflict(id=task.task_id.hex())
            rows.append(before.row)
        return Added(rows, group, new, repeated)

    def _of(self, uep_row: int, *states: TaskState) -> list[Task]:
        return [t for t in self._d.tasks.values() if t.uep_row == uep_row and t.state in states]

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        taken: list[QueuedTask] = []
        size = 0
        for task in self._queued(uep_row)[:limit]:
            new = task.new
            size += len(new.payload)
            if taken and size > max_bytes:
                break
            task.state = TaskState.DISPATCHED
            function_id = new.function.function_id
            rest = (task.attempts + 1, new.max_attempts, new.deadline, new.priority)
            taken.append(
                QueuedTask(task.row, new.task_id, function_id, new.payload, new.resource_spec, new.walltime_s, *rest)
            )
        return taken

    def _queued(self, uep_row: int) -> list[Task]:
        return sorted(self._of(uep_row, TaskState.QUEUED), key=lambda task: (-task.new.priority, task.row))

    def _mine(self, uep_row: int, rows: Sequence[int]) -> list[Task]:
        found = (self._d.tasks.get(row) for row in rows)
        return [task for task in found if task is not None and task.uep_row == uep_row]

    def record_started(self, uep_row: int, rows: Sequence[int], now: float) -> None:
        for task in self._mine(uep_row, rows):
            if task.may(TaskState.RUNNING):
                task.state, task.started_at = TaskState.RUNNING, now

    def record_endings(self, uep_row: int, endings: Sequence[Ending]) -> Settled:
        groups, ended = set(), 0
        foreign: list[int] = []
        for ending in endings:
            for task in self._mine(uep_row, [ending.row]):
                if not task.may(ending.state):
                    continue
                if ending.task_id not in (None, task.new.task_id):
                    self.requeue(uep_row, [task.row])
                    foreign.append(task.row)
                    continue
                self._d.seq += 1
                task.state, task.ending, task.seq = ending.state, ending, self._d.seq
                groups.add(task.group.row)
                ended += 1
        return Settled(frozenset(groups), ended, foreign)

    def requeue(self, uep_row: int, rows: Sequence[int] | None) -> int:
        tasks = self._of(uep_row, TaskState.DISPATCHED) if rows is None else self._mine(uep_row, rows)
        tasks = [task for task in tasks if task.may(TaskState.QUEUED)]
        for task in tasks:
            task.state = TaskState.QUEUED
        return len(tasks)

    def reconcile(self, uep_row: int, held: Sequence[int]) -> Held:
        for task in self._mine(uep_row, held):
            if task.state is TaskState.QUEUED:
                task.state = TaskState.DISPATCHED
        active = {task.row: task for task in self._of(uep_row, *ACTIVE)}
        away = [row for row, t in active.items() if row not in held and t.state is TaskState.DISPATCHED]
        lost = [row for row, t in active.items() if row not in held and t.state is TaskState.RUNNING]
        return Held(self.requeue(uep_row, away), lost, [row for row in dict.fromkeys(held) if row not in active])

    def end_queued(self, uep_row: int, ending: Ending, limit: int) -> Settled:
        rows = [task.row for task in self._queued(uep_row)[:limit]]
        return self.record_endings(uep_row, [msgspec.structs.replace(ending, row=row) for row in rows])

    def queued_before(self, uep_row: int, submitted_before: float, limit: int) -> list[int]:
        waiting = self._of(uep_row, TaskState.QUEUED)
        return [task.row for task in waiting if task.submitted_at < submitted_before][:limit]

    def active_rows(self, uep_row: int) -> dict[int, TaskState]:
        return {task.row: task.state for task in self._of(uep_row, *ACTIVE)}

    def standing(self, uep_row: int, rows: Sequence[int]) -> list[Standing]:
        return [
            Standing(task.row, task.state, task.attempts, task.new.max_attempts, task.cancelling)
            for task in self._mine(uep_row, rows)
            if not task.state.is_terminal
        ]

    def charge(self, uep_row: int, attempts: Sequence[tuple[int, int]]) -> None:
        for row, lost in attempts:
            for task in self._mine(uep_row, [row]):
                if not task.state.is_terminal:
                    task.attempts = max(task.attempts, lost)

    def ask_cancel(self, uep_row: int, rows: Sequence[int]) -> None:
        for task in self._mine(uep_row, rows):
            task.cancelling = task.cancelling or not task.state.is_terminal

    def cancelling(self, uep_row: int) -> dict[int, TaskState]:
        mine = (task for task in self._d.tasks.values() if task.uep_row == uep_row)
        return {task.row: task.state for task in mine if task.cancelling and not task.state.is_terminal}

    def running_rows(self, uep_row: int) -> list[int]:
        return [task.row for task in self._of(uep_row, TaskState.RUNNING)]

    def sweep(self, ended_before: float, limit: int) -> int:
        old = [t for t in self._d.tasks.values() if t.ending is not None and t.ending.stored_at < ended_before]
        old = [t for t in sorted(old, key=lambda t: t.seq)[:limit] if t.row != self._d.row and t.seq != self._d.seq]
        for task in old:
            del self._d.tasks[task.row]
        return len(old)

    def drop_inputs(self, after: int, limit: int) -> int:
        ended = sorted((t for t in self._d.tasks.values() if t.seq > after), key=lambda t: t.seq)[:limit]
        for task in ended:
            task.has_input = False
        return ended[-1].seq if ended else after

    # --- long unused records ------------------------------------------------------------------------

    def sweep_ueps(self, seen_before: float, keep: Collection[int], limit: int) -> int:
        busy = {task.uep_row for task in self._d.tasks.values() if not task.state.is_terminal} | set(keep)
        busy.add(max((uep.row for uep in self._d.ueps.values()), default=0))
        unseen = [u for u in self._d.ueps.values() if not u.link_key and u.seen_at < seen_before and u.row not in busy]
        for uep in unseen[:limit]:
            del self._d.ueps[uep.uep_id]
        return len(unseen[:limit])

    def sweep_groups(self, after: int, keep: Collection[int], limit: int) -> int:
        in_use = {task.group.row for task in self._d.tasks.values()} | set(keep)
        there = (g for g in self._d.groups.values() if after < g.row < self._d.group_row)
        looked_at = sorted(there, key=lambda g: g.row)[:limit]
        for group in looked_at:
            if group.row not in in_use:
                del self._d.groups[group.group_id]
        return looked_at[-1].row if len(looked_at) == limit else 0

    def use_functions(self, function_rows: Sequence[int], now: float) -> None:
        for function_id, (row, *_) in self._d.functions.items():
            if row in function_rows:
                self._d.used_at[function_id] = now

    def sweep_functions(self, used_before: float, now: float, limit: int) -> int:
        there = [name for name, (_, _, deleted_at) in self._d.functions.items() if not deleted_at]
        unused = [name for name in there if self._d.used_at[name] < used_before][:limit]
        for name in unused:
            self.delete_function(name, now)
        return len(unused)

    def purge_functions(self, deleted_before: float, limit: int) -> int:
        gone = [name for name, (_, _, deleted_at) in self._d.functions.items() if 0 < deleted_at < deleted_before]
        gone = [name for name in gone if self._d.functions[name][0] != self._d.function_row][:limit]
        for name in gone:
            del self._d.functions[name]
        return len(gone)

    def compact(self, pages: int) -> None:
        """There is no file."""
