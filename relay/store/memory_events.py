"""Task events in plain dictionaries: parts of the memory store. See relay.store.sqlite_task_events."""
# ruff: noqa: D102 - relay.store.base has the text of every method

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mep_wire.states import TaskState
from relay.store.records import EventPage, TaskRef, UepKey

if TYPE_CHECKING:
    from relay.store.memory_tx import Data


@dataclass(slots=True)
class Kept:
    """The events of one endpoint."""

    on: bool = True
    next_seq: int = 1
    dropped: int = 0
    events: list[tuple[int, bytes]] = field(default_factory=list)


class MemoryTaskEvents:
    """The part of `_MemoryTx`."""

    _d: Data

    def keep_task_events(self, endpoint_id: str, *, keep: bool) -> None:
        kept: Kept = self._d.events.setdefault(endpoint_id, Kept())
        kept.on = keep
        if not keep:
            kept.events, kept.dropped = [], 0

    def add_task_events(self, endpoint_id: str, bodies: Sequence[bytes], most: int) -> None:
        kept: Kept | None = self._d.events.get(endpoint_id)
        if kept is None or not kept.on:
            return
        kept.events += enumerate(bodies, start=kept.next_seq)
        kept.next_seq += len(bodies)
        over = max(0, len(kept.events) - most)
        kept.dropped += over
        del kept.events[:over]

    def task_events_written(self, endpoint_id: str, until: int, dropped: int) -> None:
        kept: Kept | None = self._d.events.get(endpoint_id)
        if kept is not None:
            kept.events = [(seq, body) for seq, body in kept.events if seq > until]
            kept.dropped = max(0, kept.dropped - dropped)

    def task_refs(self, uep_row: int, rows: Sequence[int]) -> list[TaskRef]:
        found = (self._d.tasks.get(row) for row in rows)
        return [_ref(task) for task in found if task is not None and task.uep_row == uep_row]

    def queued_refs(self, uep_row: int, limit: int) -> list[TaskRef]:
        tasks = self._d.tasks.values()
        mine = [task for task in tasks if task.uep_row == uep_row and task.state is TaskState.QUEUED]
        return [_ref(task) for task in sorted(mine, key=lambda task: (-task.new.priority, task.row))[:limit]]

    def uep_key(self, uep_row: int) -> UepKey | None:
        found = (uep for uep in self._d.ueps.values() if uep.row == uep_row)
        return next((UepKey(u.endpoint_id, u.uep_id, u.account_id, u.identity_id, u.incarnation) for u in found), None)


class MemoryTaskEventReads:
    """The part of `MemoryStore`."""

    _d: Data

    def task_events_kept(self) -> list[str]:
        return [endpoint_id for endpoint_id, kept in self._d.events.items() if kept.on]

    def task_events(self, endpoint_id: str, limit: int) -> EventPage:
        kept: Kept | None = self._d.events.get(endpoint_id)
        return EventPage(kept.dropped, kept.events[:limit]) if kept is not None and kept.on else EventPage(0, [])


def _ref(task: Any) -> TaskRef:
    return TaskRef(task.row, task.new.task_id, task.new.function.function_id, task.state, task.submitted_at)
