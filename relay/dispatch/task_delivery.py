"""Sends tasks to linked user endpoints within their credit, and stores their results.

A task leaves the queue only when its end is on disk, and nothing is acknowledged before. A lone task for a
user endpoint with credit is stored as dispatched in the commit that accepts it, and sent right after. Many
tasks are read from the store a page at a time. Memory therefore grows with credit, not with the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from mep_wire import codec, messages
from mep_wire.errors import (
    DependencyRefused,
    MepError,
    PayloadLost,
    PayloadTooLarge,
    RelayUnavailable,
    ResultTooLarge,
    TaskCancelled,
    TaskExpired,
)
from mep_wire.ids import uuid_text
from mep_wire.limits import MAX_PAYLOAD_BYTES, MAX_PIECES
from mep_wire.states import TaskState, UepState
from relay.dispatch.dependencies import Dependents, check, hold, release
from relay.dispatch.live_state import STORE_RETRY_S, LiveState, Uep, durable
from relay.dispatch.payloads import Payloads
from relay.dispatch.result_notifier import ResultNotifier
from relay.dispatch.task_fates import end_doubtful, end_what_was_sent, why_failed
from relay.dispatch.task_transitions import Loss, Requeued, cancel, fail_or_retry, record_lost_attempts, requeue
from relay.link.base import Peer
from relay.log import peer_log
from relay.store.base import Tx
from relay.store.records import Added, NewTask, QueuedTask, Settled, TaskEnding

PAGE_TASKS = 1000
"""Most tasks in one message to a user endpoint."""
SLOW_PEER_S = 0.02
"""Pause before a user endpoint that was slow to read is looked at again."""
PAGE_BYTES = 2 * 1024 * 1024
"""Payload after which a message holds no further task."""
PAGE_FUNCTION_BYTES = 16 * 1024 * 1024
"""Code of functions after which another function goes into another message."""
END_PAGE = 2000
"""Queued tasks ended in one transaction when a whole queue is."""
STARTED_DELAY_S = 0.02
"""How long reports of started tasks may wait to share a commit: they are overtaken by quick results."""
_AT_ONCE_S = 0.001
"""The time sent for a deadline that has passed: 0 would mean that there is none."""
MAX_CREDIT = 100_000
MAX_TEXT = 64 * 1024
MAX_CODE = 64
MAX_TIME = 1e11
"""Seconds since the epoch: beyond the year 5000."""
_STATES = {"": TaskState.SUCCESS, TaskCancelled.code: TaskState.CANCELLED, TaskExpired.code: TaskState.EXPIRED}


class TaskDelivery:
    """Tasks out, endings in."""

    def __init__(
        self,
        live: LiveState,
        streams: ResultNotifier,
        max_result_bytes: int = MAX_PAYLOAD_BYTES,
        payloads: Payloads | None = None,
    ) -> None:
        self._live, self._streams = live, streams
        self.payloads = payloads or Payloads(live.store)
        self.max_result_bytes = max_result_bytes
        self.dependents = Dependents(live.store, self.payloads)
        self.wanted: Callable[[Uep], None] = lambda _uep: None
        """Called with a user endpoint that has something to run again."""
        self.max_data_bytes = 0
        """Largest result by reference; 0: none is."""
        self._started: dict[int, set[int]] = {}

    # --- out --------------------------------------------------------------------------------------

    async def add(self, uep: Uep, owner: str, group_id: str, tasks: Sequence[NewTask]) -> Added:
        """Store tasks and send those that `uep` has credit for. Raises IdConflict, DependencyRefused,
        RelayUnavailable."""
        stored = tasks
        if self.payloads.has_large(tasks):
            stored = await self.payloads.put_away(owner, tasks)
        size = sum(len(task.payload) for task in tasks)
        depend = any(task.depends_on for task in tasks)
        if depend:
            self.dependents.check_room(uep.row, tasks)
        direct = 0 if depend else self._reserve(uep, len(tasks), size)
        peer = uep.peer
        now = time.time()

        def store(tx: Tx) -> tuple[Added, list[int]]:
            if depend:
                check(tx, owner, uep.record.endpoint_id, stored)
            done = tx.add_tasks(owner, group_id, uep.row, stored, direct, now)
            return done, hold(tx, done, stored) if depend else []

        try:
            added, on_rows = await durable(self._live.store.submit(store))
        except BaseException:
            self._give_back(uep, peer, direct)
            raise
        if depend:
            rows = [row for row, task in zip(added.rows, tasks, strict=True) if task.depends_on]
            self.dependents.added(uep.row, rows, on_rows)
            self._live.run(self.release(on_rows))  # some may have ended before it was known that others wait for them
        if added.repeated:
            self._give_back(uep, peer, direct)
            direct = 0
        if direct:
            self._send_direct(uep, peer, added, tasks[:direct])
        if added.repeated or direct < len(tasks):
            uep.has_queued = True
            self._live.keep(uep)  # it may have been forgotten while they were being stored
            self.pump(uep)
        return added

    def _reserve(self, uep: Uep, count: int, size: int) -> int:
        """Take credit for as many of `count` tasks, of `size` bytes together, as may be sent at once."""
        if uep.state is not UepState.ONLINE or uep.has_queued or uep.pumping or uep.peer is None:
            return 0
        if not self._live.link_.writable(uep.peer) or size > PAGE_BYTES:
            return 0
        direct = min(count, uep.credit)
        uep.credit -= direct
        return direct

    def _give_back(self, uep: Uep, peer: object, credit: int) -> None:
        if uep.peer is peer:
            uep.credit += credit

    def _send_direct(self, uep: Uep, peer: object, added: Added, tasks: Sequence[NewTask]) -> None:
        """Send the tasks just stored as dispatched. If the link has gone since then, the tasks need not be taken
        back: the store compares them with the user endpoint's list after each hello, join, goodbye and end.
        Each of those comes after this in the writer's order."""
        if uep.peer is peer and uep.state is UepState.ONLINE:
            queued = [
                QueuedTask(
                    row=row,
                    task_id=t.task_id,
                    function_id=t.function.function_id,
                    payload=t.payload,
                    resource_spec=t.resource_spec,
                    walltime_s=t.walltime_s,
                    attempt=1,
                    max_attempts=t.max_attempts,
                    deadline=t.deadline,
                    priority=t.priority,
                )
                for row, t in zip(added.rows, tasks, strict=False)
            ]
            self._send_tasks(uep, queued)

    def _send_tasks(self, uep: Uep, tasks: Sequence[QueuedTask]) -> bool:
        """Send tasks, with the functions that were not sent on this link before; False where the link is gone."""
        functions: list[messages.FunctionItem] = []
        items: list[messages.TaskItem] = []
        size = 0
        for t in tasks:
            if t.function_id not in uep.functions_sent:
                code = self._live.store.function_code(t.function_id) or b""
                if size and size + len(code) > PAGE_FUNCTION_BYTES:
                    if not self._send(uep, functions, items):
                        return False
                    functions, items, size = [], [], 0
                functions.append(messages.FunctionItem(t.function_id, code))
                uep.functions_sent.add(t.function_id)
                size += len(code)
            left = max(t.deadline - time.time(), _AT_ONCE_S) if t.deadline else 0.0
            items.append(
                messages.TaskItem(
                    row=t.row,
                    task_id=uuid_text(t.task_id),
                    function_id=t.function_id,
                    payload=t.payload,
                    resource_spec=t.resource_spec,
                    walltime_s=t.walltime_s,
                    attempt=t.attempt,
                    max_attempts=t.max_attempts,
                    expires_in_s=left,
                    priority=t.priority,
                    inputs=list(t.inputs),
                )
            )
        return self._send(uep, functions, items)

    def _send(self, uep: Uep, functions: list[messages.FunctionItem], tasks: list[messages.TaskItem]) -> bool:
        message = messages.Tasks(functions=functions, tasks=tasks)
        return uep.peer is not None and self._live.link_.send(uep.peer, codec.encode(message))

    def pump(self, uep: Uep) -> None:
        """Send queued tasks as far as credit goes."""
        if self._may_pump(uep) and not uep.pumping:
            uep.pumping = True
            self._live.run(self._pump(uep))

    def _may_pump(self, uep: Uep) -> bool:
        return uep.has_queued and uep.credit > 0 and uep.state is UepState.ONLINE and uep.peer is not None

    async def _pump(self, uep: Uep) -> None:
        failed = True
        try:
            while self._may_pump(uep):
                if uep.peer is not None and not self._live.link_.writable(uep.peer):
                    await asyncio.sleep(SLOW_PEER_S)  # nothing else would begin again: its credit is given already
                elif not await self._send_page(uep):
                    break
            failed = False
        except RelayUnavailable as error:
            peer_log.error(
                "user endpoint: its tasks cannot be sent now", uep=uep.record.uep_id, reason=error, detail=error.detail
            )
        finally:
            uep.pumping = False
            if failed:  # whatever it was: nothing else would begin again
                self._live.loop.call_later(STORE_RETRY_S, self.pump, uep)

    async def _send_page(self, uep: Uep) -> bool:
        """Take tasks from the queue and send them; False where the link has gone (see `_send_direct`)."""
        peer, limit = uep.peer, min(uep.credit, PAGE_TASKS)
        uep.credit -= limit
        # Before the query: a task that is added during the query sets this again.
        uep.has_queued = False
        try:
            tasks = await durable(self._live.store.submit(lambda tx: tx.take_queued(uep.row, limit, PAGE_BYTES)))
        except BaseException:
            uep.has_queued = True
            self._give_back(uep, peer, limit)
            raise
        self._give_back(uep, peer, limit - len(tasks))
        if not tasks:
            return True
        uep.has_queued = uep.has_queued or self._live.store.has_queued(uep.row)
        if any(task.chunk for task in tasks):
            tasks = await self._with_payloads(uep, tasks)
        plain = [task for task in tasks if not self.dependents.takes_inputs(task.row)]
        if plain and not (self._reaches(uep, peer) and self._send_tasks(uep, plain)):
            return False
        others = [task for task in tasks if self.dependents.takes_inputs(task.row)] if len(plain) < len(tasks) else []
        return await self._send_with_inputs(uep, peer, others) and self._reaches(uep, peer)

    @staticmethod
    def _reaches(uep: Uep, peer: Peer | None) -> bool:
        return uep.peer is peer and uep.state is UepState.ONLINE

    async def _send_with_inputs(self, uep: Uep, peer: Peer | None, tasks: Sequence[QueuedTask]) -> bool:
        """Send taken tasks one by one with the results that they need; False where the link has gone."""
        for at, task in enumerate(tasks):
            try:
                whole = await self._with_inputs(uep, task)
            except RelayUnavailable:
                rows = [each.row for each in tasks[at:]]
                self.requeued(uep, await self._live.submit_retrying(lambda tx: requeue(tx, uep.row, rows)))  # noqa: B023
                raise
            while self._reaches(uep, peer) and peer is not None and not self._live.link_.writable(peer):  # noqa: ASYNC110 - as in _pump
                await asyncio.sleep(SLOW_PEER_S)
            if not self._reaches(uep, peer) or (whole is not None and not self._send_tasks(uep, [whole])):
                return False
        return True

    async def _with_inputs(self, uep: Uep, task: QueuedTask) -> QueuedTask | None:
        """Return a task with the results that it needs; it has failed where that is None. Raises RelayUnavailable."""
        try:
            if not uep.takes_inputs:
                reason = "your process at the site is of an older version"
                raise DependencyRefused(task_id=uuid_text(task.task_id), reason=reason)
            return await self.dependents.filled(task)
        except (DependencyRefused, PayloadLost, PayloadTooLarge) as error:
            await self.fail_rows(uep, [task.row], error)
            return None

    async def _with_payloads(self, uep: Uep, tasks: Sequence[QueuedTask]) -> list[QueuedTask]:
        """Return taken tasks with their payloads; those with a lost one fail. Raises RelayUnavailable, and all wait."""
        try:
            whole, lost = await self.payloads.filled(tasks)
        except RelayUnavailable:
            rows = [task.row for task in tasks]
            self.requeued(uep, await self._live.submit_retrying(lambda tx: requeue(tx, uep.row, rows)))
            raise
        await self.fail_rows(uep, lost, PayloadLost())
        return whole

    # --- in ---------------------------------------------------------------------------------------

    def credit(self, uep: Uep, grant: int) -> None:
        """A user endpoint can take `grant` more tasks."""
        uep.credit = max(0, min(MAX_CREDIT, uep.credit + grant))
        self.pump(uep)

    def started(self, uep: Uep, rows: Sequence[int]) -> None:
        """Workers have started these rows: stored soon, unless their results come first."""
        if not self._started:
            self._live.loop.call_later(STARTED_DELAY_S, self.flush_started)
        self._started.setdefault(uep.row, set()).update(rows)

    def flush_started(self) -> None:
        """Store the reports that `started` gathered."""
        gathered, self._started = self._started, {}
        now = time.time()
        reports = [(uep_row, sorted(rows)) for uep_row, rows in gathered.items() if rows]

        def record(tx: Tx) -> None:
            for uep_row, rows in reports:
                tx.record_started(uep_row, rows, now)

        if reports:
            self._live.store.submit(record)

    def results(self, uep: Uep, items: Sequence[messages.ResultItem]) -> None:
        """Tasks ended: store it, then acknowledge and wake the streams."""
        rows = [item.row for item in items]
        waiting = self._started.get(uep.row)
        if waiting:
            waiting.difference_update(rows)
        endings = [_ending(item, self.max_result_bytes) for item in items]
        uep.used_at = self._live.loop.time()
        if self.payloads.has_large(endings):
            self._live.run(self._put_away(uep, uep.peer, rows, endings))
        else:
            self._store_results(uep, uep.peer, rows, endings)

    async def _put_away(self, uep: Uep, peer: Peer | None, rows: list[int], endings: Sequence[TaskEnding]) -> None:
        """Put large results into chunks, then store them. Where that fails, the peer repeats them after a new link."""
        try:
            endings = await self.payloads.put_away(uep.record.account_id, endings)
        except RelayUnavailable as error:
            peer_log.error("results cannot be stored", uep=uep.record.uep_id, reason=error, detail=error.detail)
            if peer is not None:
                self._live.cut(peer, "its results could not be stored")
            return
        self._store_results(uep, peer, rows, endings)

    def _store_results(self, uep: Uep, peer: Peer | None, rows: list[int], endings: Sequence[TaskEnding]) -> None:

        def stored(settled: Settled) -> None:
            uep.trouble.over()
            self._ended(uep, settled)
            if peer is not None:  # foreign ones too: its spool must drop results that no task waits for
                self._live.link_.send(peer, codec.encode(messages.ResultsDurable(rows=rows)))
            if settled.foreign:
                peer_log.warning(
                    "user endpoint: results of other tasks than the relay's were not taken",
                    uep=uep.record.uep_id,
                    rows=len(settled.foreign),
                    first=settled.foreign[0],
                )
                uep.has_queued = True
                self.pump(uep)

        change = self._live.store.submit(lambda tx: tx.record_endings(uep.row, endings))
        self._live.when_durable(peer, change, stored)

    def _ended(self, uep: Uep, settled: Settled) -> None:
        self._live.open_tasks.changed(uep.record.account_id, uep.record.endpoint_id, -settled.ended)
        self._streams.wake(settled.groups)
        self._follow(settled)

    def _follow(self, settled: Settled) -> None:
        """Tasks have ended: decide about those that wait for them."""
        if awaited := self.dependents.ended(settled.rows):
            self._live.run(self.release(awaited))

    async def release(self, on_rows: Sequence[int]) -> None:
        """Send, or end, the tasks that have waited for these."""
        found = await self._live.submit_retrying(lambda tx: release(tx, on_rows))
        self.dependents.over(found.over)
        for key, settled in found.failed.values():
            if (record := self._live.store.uep(key.uep_id)) is not None:
                uep = self._live.uep(record)
                self._ended(uep, settled)
                self._live.forget_idle(uep)
        for key in found.ready.values():
            if (record := self._live.store.uep(key.uep_id)) is not None:
                uep = self._live.uep(record)
                uep.has_queued = True
                self._live.keep(uep)
                self.pump(uep)
                self.wanted(uep)

    def _ended_with(self, uep: Uep, settled: Settled, error: MepError) -> None:
        """Tasks have ended with `error`: the log has its correlation id."""
        if settled.ended:
            peer_log.warning("user endpoint: tasks fail", uep=uep.record.uep_id, tasks=settled.ended, reason=error)
            self._live.tell(uep, "ERROR", f"tasks fail: code={error.code} {error.text}", error.correlation_id)
        self._ended(uep, settled)

    def requeued(self, uep: Uep, done: Requeued) -> None:
        """Tasks wait again, and those among them that were to be cancelled have ended."""
        if done.count:
            uep.has_queued = True
            self._live.keep(uep)
        self._ended(uep, done.settled)

    def returned(self, uep: Uep, rows: list[int]) -> None:
        """A user endpoint gives rows back that it has not started. It has read what processes before it had begun."""

        def give_back(tx: Tx) -> Requeued:
            tx.doubt(uep.row, rows, doubtful=False)
            return requeue(tx, uep.row, rows)

        def queued(done: Requeued) -> None:
            self.requeued(uep, done)
            self.pump(uep)

        self._live.when_durable(uep.peer, self._live.store.submit(give_back), queued)

    def lost(self, uep: Uep, lost: Sequence[tuple[int, int]]) -> None:
        """A user endpoint has lost these attempts, by row, of tasks that may run again: count and queue them."""
        rows = [row for row, _ in lost]
        waiting = self._started.get(uep.row)
        if waiting:
            waiting.difference_update(rows)  # else they would be taken for started once more
        peer = uep.peer

        def counted(done: Requeued) -> None:
            if peer is not None:
                known = messages.LossesDurable(rows=rows, attempts=[attempt for _, attempt in lost])
                self._live.link_.send(peer, codec.encode(known))
            self.requeued(uep, done)
            self.pump(uep)

        self._live.when_durable(
            peer, self._live.store.submit(lambda tx: record_lost_attempts(tx, uep.row, lost)), counted
        )

    def take_back(self, uep: Uep) -> None:
        """Queue again everything that was sent and not started."""
        change = self._live.store.submit(lambda tx: requeue(tx, uep.row, None))
        self._live.when_durable(uep.peer, change, lambda done: self.requeued(uep, done))

    async def end_rows(self, uep: Uep, endings: Sequence[TaskEnding]) -> None:
        """End these rows."""
        if endings:
            self._ended(uep, await self._live.submit_retrying(lambda tx: tx.record_endings(uep.row, endings)))

    async def lose_rows(self, uep: Uep, rows: Sequence[int], error: MepError) -> None:
        """Tasks had begun and their process is gone: those with attempts left are queued, the others fail."""
        loss = Loss(error=error, default_attempts=uep.default_attempts, most_attempts=uep.most_attempts)
        if rows:
            peer_log.warning(
                "user endpoint: begun tasks are lost", uep=uep.record.uep_id, tasks=len(rows), reason=error
            )
            self._live.tell(
                uep, "WARNING", f"begun tasks are lost: code={error.code} {error.text}", error.correlation_id
            )
            self.requeued(uep, await self._live.submit_retrying(lambda tx: fail_or_retry(tx, uep.row, rows, loss)))
            self.pump(uep)

    async def cancel(self, uep_row: int, rows: Sequence[int], *, ask: bool) -> list[int]:
        """Cancel tasks; returns the rows that their user endpoint is to be asked for (none without `ask`)."""
        away, settled = await self._live.submit_retrying(lambda tx: cancel(tx, uep_row, rows, ask=ask))
        uep = self._live.by_row.get(uep_row)
        if uep is not None:
            self._ended(uep, settled)
        else:
            self._follow(settled)
        return away

    async def fail_rows(self, uep: Uep, rows: Sequence[int], error: MepError) -> None:
        """End these rows with an error."""
        if rows:
            peer_log.warning("user endpoint: tasks fail", uep=uep.record.uep_id, tasks=len(rows), reason=error)
            self._live.tell(uep, "ERROR", f"tasks fail: code={error.code} {error.text}", error.correlation_id)
        now = time.time()
        await self.end_rows(
            uep,
            [
                TaskEnding(
                    row=row,
                    state=TaskState.FAILED,
                    code=error.code,
                    text=error.text,
                    payload=b"",
                    correlation_id=error.correlation_id,
                    ended_at=now,
                )
                for row in rows
            ],
        )

    async def end_sent(self, uep: Uep, error: MepError) -> None:
        """The user endpoint is given up because of `error`: end the tasks sent to its last process."""
        settled = await self._live.submit_retrying(lambda tx: end_what_was_sent(tx, uep.row, error))
        self._ended_with(uep, settled, error)

    async def end_queue(self, uep: Uep, error: MepError) -> None:
        """End every queued task of a user endpoint with an error, a page at a time."""
        settled = await self._live.submit_retrying(lambda tx: end_doubtful(tx, uep.row, error))
        self._ended_with(uep, settled, error)
        error, now = why_failed(TaskState.QUEUED, error), time.time()
        ending = TaskEnding(
            row=0,
            state=TaskState.FAILED,
            code=error.code,
            text=error.text,
            correlation_id=error.correlation_id,
            ended_at=now,
        )
        while True:
            settled = await self._live.submit_retrying(lambda tx: tx.end_queued(uep.row, ending, END_PAGE))
            self._ended_with(uep, settled, error)
            if settled.ended < END_PAGE:
                break
        uep.has_queued = self._live.store.has_queued(uep.row)

    async def expire(self, uep: Uep, lifetime_s: float) -> None:
        """End tasks that have waited longer than this for this user endpoint. Raises RelayUnavailable."""
        before = time.time() - lifetime_s
        oldest = self._live.store.oldest_queued(uep.row)
        if oldest is None or oldest >= before:
            return
        peer_log.warning("user endpoint: tasks expire that waited too long", uep=uep.record.uep_id)

        def end(tx: Tx) -> Settled:
            rows = tx.queued_before(uep.row, before, END_PAGE)
            again, doubtful = set(tx.queued_again(uep.row)), set(tx.queued_doubtful(uep.row))
            texts = [_why_expired(lifetime_s, again=row in again, doubtful=row in doubtful) for row in rows]
            return tx.record_endings(uep.row, [_expired(*one) for one in zip(rows, texts, strict=True)])

        while True:
            settled = await durable(self._live.store.submit(end))
            self._ended(uep, settled)
            if settled.ended < END_PAGE:
                break
        uep.has_queued = self._live.store.has_queued(uep.row)

    async def expire_lost(self, uep: Uep, lifetime_s: float) -> None:
        """End the tasks of a user endpoint that has been silent for longer than this. Raises RelayUnavailable."""
        gone = f"Nothing was heard of your process at the site for {lifetime_s / 86400:g} days"
        texts = {
            TaskState.DISPATCHED: f"{gone}, to which the task was sent; it is not known to have begun.",
            TaskState.RUNNING: f"{gone}, in which the task had begun; whether it finished is not known.",
        }

        def end(tx: Tx) -> Settled:
            active = tx.active_rows(uep.row)
            endings = [_expired(row, texts[state]) for row, state in active.items()]
            return tx.record_endings(uep.row, endings)

        self._ended(uep, await durable(self._live.store.submit(end)))
        uep.unsettled = False

    async def expire_rows(self, uep_row: int, end: Callable[[Tx], Settled]) -> None:
        """Have `end` end tasks that are past their deadline. Raises RelayUnavailable."""
        settled = await durable(self._live.store.submit(end))
        uep = self._live.by_row.get(uep_row)
        if uep is None:
            self._follow(settled)
        if uep is not None:
            self._ended(uep, settled)
            uep.has_queued = self._live.store.has_queued(uep_row)
            uep.unsettled = uep.unsettled and self._live.store.has_active(uep_row)
            self._live.forget_idle(uep)


def _expired(row: int, text: str) -> TaskEnding:
    return TaskEnding(row=row, state=TaskState.EXPIRED, code=TaskExpired.code, text=text, ended_at=time.time())


def _why_expired(lifetime_s: float, *, again: bool, doubtful: bool) -> str:
    """Return the text for a task that has waited for too long. `again`: an attempt at it was lost."""
    within = f"within {lifetime_s / 86400:g} days, the longest that a task may wait"
    if again:
        return f"The task did not finish {within}: it had begun, its process was lost, and it waited to start again."
    if doubtful:
        return f"The task did not finish {within}: a process that has ended had it, and may have begun it."
    return f"The task was not started {within}."


def _ending(item: messages.ResultItem, most_bytes: int) -> TaskEnding:
    """Return the stored form of a result: a peer's text is clipped, an oversized payload is refused."""
    if len(item.payload) > most_bytes:
        error = ResultTooLarge(size=len(item.payload), limit=most_bytes)
        return TaskEnding(
            row=item.row,
            state=TaskState.FAILED,
            code=error.code,
            text=error.text,
            task_id=_raw_id(item.task_id),
        )
    return TaskEnding(
        row=item.row,
        state=_STATES.get(item.code, TaskState.FAILED),
        code=item.code[:MAX_CODE],
        text=item.text[:MAX_TEXT],
        payload=item.payload,
        correlation_id="",
        started_at=_time(item.started_at),
        ended_at=_time(item.ended_at) or time.time(),
        task_id=_raw_id(item.task_id),
        block_id=item.block_id,
        job_id=item.job_id,
        digests=tuple(dict.fromkeys(item.pieces))[:MAX_PIECES] if item.pieces else (),
    )


def _raw_id(text: str) -> bytes:
    """Return the bytes of a task id as a peer writes it; for an invalid id none, which match no task."""
    try:
        return bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return b""


def _time(stamp: float) -> float:
    """Return a peer's time stamp, 0 where it cannot be one."""
    return stamp if 0.0 <= stamp < MAX_TIME else 0.0
