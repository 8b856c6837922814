"""Tasks that wait for others of the same person at the same endpoint, and are sent with their results.

A held task is queued, and never sent until the last of its dependencies has succeeded. Once one of them ends in another
way, the held task ends as failed, and so do those that wait for it. Both are decided in one transaction, from the
store alone: after a restart the same question is asked again. A task can wait only for tasks that are stored before or
with it, and those of one submission in no circle, so that there are no circles at all.

Used by the other modules of this package, in the event loop's thread.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from mep_wire.errors import DependencyFailed, DependencyRefused, PayloadTooLarge
from mep_wire.ids import uuid_text
from mep_wire.limits import MAX_HELD_TASKS, MAX_INPUT_BYTES, MAX_PUBLIC_TEXT
from mep_wire.states import TaskState
from mep_wire.waits import Wait, WaitCode, wait
from relay.dispatch.payloads import Payloads
from relay.store.base import Store, Tx
from relay.store.records import Added, Dependency, NewTask, QueuedTask, Settled, TaskEnding, UepKey

_WORDS = {TaskState.CANCELLED: "it was cancelled", TaskState.EXPIRED: "it expired"}


@dataclass(kw_only=True, slots=True)
class Released:
    """The consequences of the ends of tasks for those that waited for them."""

    ready: dict[int, UepKey] = field(default_factory=dict)
    """User endpoints, by row, that may be sent such tasks now."""
    failed: dict[int, tuple[UepKey, Settled]] = field(default_factory=dict)
    """User endpoints, by row, of which such tasks have ended."""
    over: list[int] = field(default_factory=list)
    """Rows of tasks that none waits for any more."""


def check(tx: Tx, owner: str, endpoint_id: str, tasks: Sequence[NewTask]) -> None:
    """Check what these tasks, which are about to be stored, wait for. Raises DependencyRefused."""
    new = {task.task_id for task in tasks}
    for task_id in (each for each in _awaited(tasks) if each not in new):
        found = tx.task_owner(task_id)
        if found is None or found[1] != owner:
            raise DependencyRefused(task_id=uuid_text(task_id), reason="you have no task of this id")
        if found[2] != endpoint_id:
            raise DependencyRefused(task_id=uuid_text(task_id), reason="it is at another endpoint")


def hold(tx: Tx, added: Added, tasks: Sequence[NewTask]) -> list[int]:
    """Hold the tasks just stored that wait for others; return the rows of these. A task that was there before never
    begins to wait for a later one: that could close a circle."""
    known = {each: tx.task_owner(each) for each in _awaited(tasks)}
    waiting: defaultdict[tuple[bytes, ...], list[int]] = defaultdict(list)
    for row, task in zip(added.rows, tasks, strict=True):
        waiting[task.depends_on].append(row)
    awaited: dict[int, None] = {}
    for task_ids, rows in waiting.items():
        on_rows = [found[0] for each in task_ids if (found := known[each]) is not None]
        held = [row for row in rows if not (added.repeated and max(on_rows) > row)] if on_rows else []
        if held:
            tx.hold(held, on_rows)
            awaited |= dict.fromkeys(on_rows)
    return list(awaited)


def _awaited(tasks: Sequence[NewTask]) -> Iterable[bytes]:
    """Return the ids of all tasks that these wait for: many may wait for the same."""
    sets = dict.fromkeys(task.depends_on for task in tasks)
    return dict.fromkeys(each for task_ids in sets for each in task_ids)


def release(tx: Tx, on_rows: Iterable[int]) -> Released:
    """Decide about the tasks that wait for these, which have ended or not."""
    found, looked = Released(), list[int]()
    look = list(on_rows)
    while look:
        endings: defaultdict[int, list[TaskEnding]] = defaultdict(list)
        for set_row in dict.fromkeys(each for on_row in look for each in tx.decided_sets(on_row)):
            held = tx.held_by(set_row)
            dependencies = tx.dependencies(held[0][0]) if held else []
            failed = next((each for each in dependencies if _has_failed(each)), None)
            if failed is not None:
                for row, uep_row in held:
                    endings[uep_row].append(_ending(row, failed))
            elif all(each.state is TaskState.SUCCESS for each in dependencies):
                tx.release(set_row)
                keys = {uep_row: tx.uep_key(uep_row) for uep_row in {uep_row for _, uep_row in held}}
                found.ready |= {uep_row: key for uep_row, key in keys.items() if key}
        looked += look
        look = []
        for uep_row, ends in endings.items():
            settled = tx.record_endings(uep_row, ends)
            look += settled.rows
            if key := tx.uep_key(uep_row):
                before = found.failed[uep_row][1] if uep_row in found.failed else Settled(groups=frozenset(), ended=0)
                groups, rows = before.groups | settled.groups, [*before.rows, *settled.rows]
                found.failed[uep_row] = key, replace(settled, groups=groups, ended=len(rows), rows=rows)
    found.over = [row for row in looked if not tx.is_awaited(row)]
    return found


def _has_failed(dependency: Dependency) -> bool:
    return dependency.state.is_terminal and dependency.state is not TaskState.SUCCESS


def _ending(row: int, failed: Dependency) -> TaskEnding:
    how = _WORDS.get(failed.state) or " ".join(each for each in (failed.code, failed.text) if each)
    text = DependencyFailed(reason=f"task {uuid_text(failed.task_id)}: {how}").text[:MAX_PUBLIC_TEXT]
    now = time.time()
    return TaskEnding(row=row, state=TaskState.FAILED, code=DependencyFailed.code, text=text, ended_at=now)


class Dependents:
    """Which tasks wait for others, or have waited and not ended, as far as memory goes: the store decides."""

    def __init__(self, store: Store, payloads: Payloads) -> None:
        self._store, self._payloads = store, payloads
        self._awaited: set[int] = set()
        self._rows: dict[int, int] = {}
        self._held: Counter[int] = Counter()

    def recover(self) -> list[int]:
        """After the relay's start: read the stored ones. Return the rows of awaited tasks, which may have ended."""
        self._awaited = set(self._store.awaited())
        self._rows = dict(self._store.dependent_rows())
        self._held = Counter(self._rows.values())
        return sorted(self._awaited)

    def check_room(self, uep_row: int, tasks: Sequence[NewTask]) -> None:
        """Raises DependencyRefused where as many tasks of this user endpoint wait as may."""
        more = [task for task in tasks if task.depends_on]
        if self._held[uep_row] + len(more) > MAX_HELD_TASKS:
            reason = f"{MAX_HELD_TASKS:,} of your tasks wait for others there already"
            raise DependencyRefused(task_id=uuid_text(more[0].depends_on[0]), reason=reason)

    def added(self, uep_row: int, rows: Iterable[int], on_rows: Iterable[int]) -> None:
        """These tasks were stored, and wait for those."""
        new = [row for row in rows if row not in self._rows]
        self._rows |= dict.fromkeys(new, uep_row)
        self._held[uep_row] += len(new)
        self._awaited.update(on_rows)

    def ended(self, rows: Collection[int]) -> list[int]:
        """Tasks have ended: forget them; return those that others wait for."""
        if not self._rows:
            return []
        for row in rows:
            if (uep_row := self._rows.pop(row, None)) is not None:
                self._held[uep_row] -= 1
        awaited = [row for row in rows if row in self._awaited]
        if not self._rows:  # and the next one begins afresh
            self._awaited.clear()
            self._held.clear()
        return awaited

    def over(self, rows: Iterable[int]) -> None:
        """It was decided about those that waited for these."""
        self._awaited.difference_update(rows)

    def takes_inputs(self, row: int) -> bool:
        """Whether a task is sent with the results of others."""
        return row in self._rows

    def why_held(self, row: int) -> Wait | None:
        """Return the reason why a task is held; None where it is not."""
        if row not in self._rows:
            return None
        pending = (each for each in self._store.dependencies(row) if not each.state.is_terminal)
        first = next(pending, None)
        return None if first is None else wait(WaitCode.WAITS_FOR_TASK, task_id=uuid_text(first.task_id))

    async def filled(self, task: QueuedTask) -> QueuedTask:
        """Return a task with the results that it needs. Raises PayloadLost, PayloadTooLarge, RelayUnavailable."""
        found = self._store.inputs(task.row)
        inputs = [await self._payloads.fetch(chunk) if chunk else payload for payload, chunk in found]
        if (size := sum(map(len, inputs))) > MAX_INPUT_BYTES:
            raise PayloadTooLarge(what="The results that the task waits for", size=size, limit=MAX_INPUT_BYTES)
        return replace(task, inputs=tuple(inputs))
