"""A store that leaves an event of every change of a task's state, for endpoints that keep task records.

Wraps any store. The event is in the transaction that changes the state: neither ever exists without the other, and
the part of the relay that changes a state need not know about events. If no endpoint keeps records, a change goes
straight through. Called by the dispatcher; relay.dispatch.task_record_feed sends the events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

import msgspec

from mep_wire.states import TaskState
from mep_wire.task_events import MAX_LOCATION, EventSource, Happened
from relay.store.base import Store, Tx
from relay.store.delegating import DelegatingStore, DelegatingTx
from relay.store.records import Added, NewTask, QueuedTask, Settled, TaskEnding, TaskRef, UepKey

T = TypeVar("T")
MAX_EVENTS = 200_000
"""Most events kept for one endpoint while its manager is away: about 40 MB. Beyond that the oldest are dropped."""
_MAX_REMEMBERED = 100_000
TaskLocation = tuple[str, str]


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The body of an event as it is stored."""

    event: str
    source: str
    at: float
    task_id: bytes
    function_id: str
    uep: UepKey
    code: str = ""
    block_id: str = ""
    job_id: str = ""


decode_event = msgspec.msgpack.Decoder(StoredEvent).decode

NOT_RECORDED: Final[Mapping[str, str]] = {
    "requeue": "the task waits again; that it is sent again is recorded by take_queued",
    "reconcile": "tasks that the user endpoint holds were recorded when they were sent; the others are requeued",
    "sweep": "the task's end was recorded; its row goes after the retention time",
}
"""Changes of a task's state, or of the tasks that there are, that leave no event, each with the reason."""


class AuditedStore(DelegatingStore):
    """A `relay.store.base.Store` that adds events to its transactions."""

    def __init__(self, inner: Store, most: int = MAX_EVENTS) -> None:
        super().__init__(inner)
        self._most = most
        self.kept: set[str] = set(inner.task_events_kept())
        """Endpoints that keep task records."""
        self.tell: Callable[[Collection[str]], None] = lambda _endpoints: None
        """Called once events of these endpoints are durable, in any thread."""
        self._keys: dict[int, UepKey | None] = {}
        self._locations: dict[tuple[int, int], TaskLocation] = {}

    def submit(self, change: Callable[[Tx], T]) -> Future[T]:
        """See `relay.store.base.Store.submit`."""
        if not self.kept:
            return self._inner.submit(change)
        touched: set[str] = set()

        def audited(tx: Tx) -> T:
            return change(AuditedTx(tx, self, touched))

        future = self._inner.submit(audited)
        future.add_done_callback(lambda _: self.tell(touched) if touched else None)
        return future

    def keep(self, endpoint_id: str, *, keep: bool) -> None:
        """Begin or end to keep the events of an endpoint."""
        if keep is (endpoint_id in self.kept):
            return
        self._keys.clear()  # processes may have joined while this was not asked
        change, undo = (self.kept.add, self.kept.discard) if keep else (self.kept.discard, self.kept.add)
        stored = self._inner.submit(lambda tx: tx.keep_task_events(endpoint_id, keep=keep))
        change(endpoint_id)
        # Where it could not be stored, its manager's next hello tries again.
        stored.add_done_callback(lambda done: undo(endpoint_id) if done.exception() is not None else None)

    def run_at(self, uep_row: int, rows: Iterable[int], locations: Iterable[TaskLocation]) -> None:
        """Remember where tasks run, as their user endpoint says, until it is recorded that they do."""
        if len(self._locations) > _MAX_REMEMBERED:
            self._locations.clear()  # of tasks that ended before it was recorded: their endings say it as well
        for row, (block, job) in zip(rows, locations, strict=False):
            self._locations[uep_row, row] = block[:MAX_LOCATION], job[:MAX_LOCATION]

    def location(self, uep_row: int, row: int) -> TaskLocation:
        """Return where a task runs, and forget it."""
        return self._locations.pop((uep_row, row), ("", ""))

    def key(self, tx: Tx, uep_row: int) -> UepKey | None:
        """Return the owner of a user endpoint, None if its endpoint keeps no records."""
        if uep_row not in self._keys:
            if len(self._keys) > _MAX_REMEMBERED:
                self._keys.clear()
            self._keys[uep_row] = tx.uep_key(uep_row)
        key = self._keys[uep_row]
        return key if key is not None and key.endpoint_id in self.kept else None

    def forget_key(self, uep_row: int) -> None:
        """Another process has joined: later events are its own."""
        self._keys.pop(uep_row, None)

    def add(self, tx: Tx, key: UepKey, events: Sequence[StoredEvent]) -> None:
        """Store events."""
        if events:
            tx.add_task_events(key.endpoint_id, [msgspec.msgpack.encode(event) for event in events], self._most)


class AuditedTx(DelegatingTx):
    """`relay.store.base.Tx`: a change of a task's state is here, with its events, or in NOT_RECORDED."""

    def __init__(self, tx: Tx, store: AuditedStore, touched: set[str]) -> None:
        super().__init__(tx)
        self._store, self._touched = store, touched

    def _add(self, key: UepKey, events: Sequence[StoredEvent]) -> None:
        self._store.add(self._tx, key, events)
        self._touched.add(key.endpoint_id)

    def enrol(self, uep_row: int, join_hash: bytes, link_key: bytes, now: float, incarnation: bytes = b"") -> bool:
        """A process joins."""
        enrolled = self._tx.enrol(uep_row, join_hash, link_key, now, incarnation)
        self._store.forget_key(uep_row)
        return enrolled

    def add_tasks(
        self, owner: str, group_id: str, uep_row: int, tasks: Sequence[NewTask], dispatched: int, now: float
    ) -> Added:
        """Tasks are received, and the first of them sent."""
        added = self._tx.add_tasks(owner, group_id, uep_row, tasks, dispatched, now)
        if key := self._store.key(self._tx, uep_row):
            refs = self._tx.task_refs(uep_row, added.rows)
            new = [ref for ref in refs if ref.submitted_at == now]  # the others were there before
            sent = [ref for ref in new if ref.state is TaskState.DISPATCHED]
            events = [_said(Happened.RECEIVED, now, key, ref.task_id, ref.function_id) for ref in new]
            events += [_said(Happened.EXEC_START, now, key, ref.task_id, ref.function_id) for ref in sent]
            self._add(key, events)
        return added

    def take_queued(self, uep_row: int, limit: int, max_bytes: int) -> list[QueuedTask]:
        """Queued tasks are sent."""
        taken = self._tx.take_queued(uep_row, limit, max_bytes)
        if taken and (key := self._store.key(self._tx, uep_row)):
            now = time.time()
            self._add(key, [_said(Happened.EXEC_START, now, key, task.task_id, task.function_id) for task in taken])
        return taken

    def record_started(self, uep_row: int, rows: Sequence[int], now: float) -> None:
        """Workers have begun tasks."""
        key = self._store.key(self._tx, uep_row)
        before = self._tx.task_refs(uep_row, list(dict.fromkeys(rows))) if key else []
        self._tx.record_started(uep_row, rows, now)
        if key:
            begun = [ref for ref in before if ref.state is TaskState.DISPATCHED]
            self._add(key, [_running(key, ref, now, self._store.location(uep_row, ref.row)) for ref in begun])

    def record_endings(self, uep_row: int, endings: Sequence[TaskEnding]) -> Settled:
        """Tasks end."""
        key = self._store.key(self._tx, uep_row)
        if key is None:
            return self._tx.record_endings(uep_row, endings)
        before = self._tx.task_refs(uep_row, list(dict.fromkeys(ending.row for ending in endings)))
        settled = self._tx.record_endings(uep_row, endings)
        self._ended(key, uep_row, before, {ending.row: ending for ending in reversed(endings)})
        return settled

    def end_queued(self, uep_row: int, ending: TaskEnding, limit: int) -> Settled:
        """Queued tasks end."""
        key = self._store.key(self._tx, uep_row)
        before = self._tx.queued_refs(uep_row, limit) if key else []
        settled = self._tx.end_queued(uep_row, ending, limit)
        if key:
            self._ended(key, uep_row, before, {ref.row: ending for ref in before})
        return settled

    def _ended(self, key: UepKey, uep_row: int, before: Sequence[TaskRef], endings: Mapping[int, TaskEnding]) -> None:
        after = {ref.row: ref.state for ref in self._tx.task_refs(uep_row, [ref.row for ref in before])}
        events: list[StoredEvent] = []
        for ref in before:
            location, ending, state = (
                self._store.location(uep_row, ref.row),
                endings[ref.row],
                after.get(ref.row, ref.state),
            )
            if ref.state.is_terminal or not state.is_terminal:
                continue
            location = (ending.block_id[:MAX_LOCATION], ending.job_id[:MAX_LOCATION]) if ending.block_id else location
            if ref.state is not TaskState.RUNNING and ending.started_at:
                events.append(_running(key, ref, ending.started_at, location))
            events.append(_end(key, ref, ending, state, location))
        self._add(key, events)


def _said(what: Happened, at: float, key: UepKey, task_id: bytes, function_id: str) -> StoredEvent:
    return StoredEvent(event=what, source=EventSource.RELAY, at=at, task_id=task_id, function_id=function_id, uep=key)


def _running(key: UepKey, ref: TaskRef, at: float, location: TaskLocation) -> StoredEvent:
    return StoredEvent(
        event=Happened.RUNNING,
        source=EventSource.USER_ENDPOINT,
        at=at,
        task_id=ref.task_id,
        function_id=ref.function_id,
        uep=key,
        code="",
        block_id=location[0],
        job_id=location[1],
    )


def _end(key: UepKey, ref: TaskRef, ending: TaskEnding, state: TaskState, location: TaskLocation) -> StoredEvent:
    """Return the event of an end. That a task has an end is the relay's word where it says so itself."""
    what = Happened.EXEC_END if state is TaskState.SUCCESS else Happened.FAILED
    source = EventSource.RELAY if ending.task_id is None else EventSource.USER_ENDPOINT
    return StoredEvent(
        event=what,
        source=source,
        at=ending.stored_at,
        task_id=ref.task_id,
        function_id=ref.function_id,
        uep=key,
        code=ending.code,
        block_id=location[0],
        job_id=location[1],
    )
