"""Ends tasks at their deadline, wherever they are: waiting, sent, or running at a user endpoint that may be away.

One timer, for the first deadline of all. The user endpoint ends a running task at the same time by its own clock,
since its link may be down; here the task ends in any case. A later result of the task is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from msgspec.structs import replace

from mep_wire import codec, messages
from mep_wire.errors import RelayUnavailable, TaskExpired
from mep_wire.states import TaskState
from relay.dispatch.live_state import STORE_RETRY_S, LiveState
from relay.dispatch.task_delivery import TaskDelivery
from relay.log import logger
from relay.store.base import Tx
from relay.store.records import OverdueTask, Settled, TaskEnding

PAGE = 1000
"""Tasks ended in one transaction."""
_LONGEST_S = 86400.0
_WHERE = {
    TaskState.QUEUED: "it was still waiting",
    TaskState.DISPATCHED: "it was sent to the site, which had not reported yet that it began",
    TaskState.RUNNING: "it had begun, and was stopped",
}
_OUT_OF_TOUCH = "it was sent to the site, which cannot be reached: it is not known whether it had begun"

_AGAIN = "it had begun, its process was lost, and it was waiting to start again"


class QueueDeadlines:
    """See the module. The deadlines themselves are in the store."""

    def __init__(self, live: LiveState, delivery: TaskDelivery) -> None:
        self._live, self._delivery = live, delivery
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def recover(self) -> None:
        """After the relay's start: wait for the first of those that are stored."""
        self.expect(self._live.store.next_deadline() or 0.0)

    def expect(self, deadline: float) -> None:
        """There is a task with this deadline, 0 for none, in seconds since the epoch."""
        if deadline and (self._timer is None or deadline < self._next):
            self._wait_for(deadline)

    def _wait_for(self, deadline: float, at_least_s: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = deadline
        delay = min(max(deadline - time.time(), at_least_s), _LONGEST_S)  # the host's clock may be set during the wait
        self._timer = self._live.loop.call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self._live.run(self._expire())

    async def _expire(self) -> None:
        following: float | None = time.time()
        pause = STORE_RETRY_S  # after a failure, also of the last read
        try:
            while late := self._live.store.overdue(time.time(), PAGE):
                await self._end(late)
            following, pause = self._live.store.next_deadline(), 0.0
        except RelayUnavailable as error:
            logger.error("deadlines: not looked at", reason=error, detail=error.detail)
        finally:
            if following is not None:
                self._wait_for(following, at_least_s=pause)

    async def _end(self, late: list[OverdueTask]) -> None:
        """End a page of tasks. Raises RelayUnavailable."""
        by_uep: defaultdict[int, list[OverdueTask]] = defaultdict(list)
        for task in late:
            by_uep[task.uep_row].append(task)
        for uep_row, tasks in by_uep.items():
            await self._end_of(uep_row, tasks)

    async def _end_of(self, uep_row: int, tasks: list[OverdueTask]) -> None:
        """End tasks of one user endpoint. Since they were found overdue, they may have been sent, and have begun."""
        uep = self._live.by_row.get(uep_row)
        in_touch = uep is not None and uep.peer is not None
        states: dict[int, TaskState] = {}

        def end(tx: Tx) -> Settled:
            states.update((one.row, one.state) for one in tx.open_tasks_of(uep_row, [task.row for task in tasks]))
            now = [replace(task, state=states[task.row]) for task in tasks if task.row in states]
            return tx.record_endings(uep_row, [_ending(task, in_touch=in_touch) for task in now])

        await self._delivery.expire_rows(uep_row, end)
        away = [row for row, state in states.items() if state is not TaskState.QUEUED]
        if uep is not None and uep.peer is not None and away:
            self._live.link_.send(uep.peer, codec.encode(messages.CancelTasks(rows=away)))


def _ending(task: OverdueTask, *, in_touch: bool) -> TaskEnding:
    """Return the end of a task. `in_touch`: whether its user endpoint has a link on which it reports started tasks."""
    error = TaskExpired()
    where = _WHERE.get(task.state, "it had not ended")
    queued = task.state is TaskState.QUEUED
    if queued and task.attempts:
        where = _AGAIN
    elif (queued and task.doubtful) or (task.state is TaskState.DISPATCHED and not in_touch):
        where = _OUT_OF_TOUCH
    text = f"{error.text[:-1]}: {where}."
    return TaskEnding(row=task.row, state=TaskState.EXPIRED, code=error.code, text=text, ended_at=time.time())
