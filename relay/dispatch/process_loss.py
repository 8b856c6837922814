"""Ends of user endpoints' processes, in this order.

The process is forgotten. The tasks sent to it keep their state, since they may have begun. The next process joins and
lists the tasks it holds. Any other task is lost if it had begun, and is sent to the new process if not. Its workers'
notes then show which tasks had begun without a report to the relay. If no next process comes, every task that was
sent is lost, and only unsent tasks are reported as not begun.
"""

from __future__ import annotations

from collections.abc import Sequence

from mep_wire.errors import EndpointDeleted, UserEndpointLost
from mep_wire.limits import LINK_DEAD_S, MAX_PUBLIC_TEXT
from mep_wire.states import TaskState, UepState
from relay.dispatch.live_state import LiveState, Uep
from relay.dispatch.start_requests import StartRequester
from relay.dispatch.task_delivery import TaskDelivery
from relay.dispatch.task_transitions import Requeued, cancelled
from relay.store.base import Tx


class ProcessLoss:
    """Settles the tasks of processes that are gone."""

    def __init__(self, live: LiveState, delivery: TaskDelivery, starts: StartRequester) -> None:
        self._live, self._delivery, self._starts = live, delivery, starts
        starts.over = self.end_if_exited

    def end_if_exited(self, uep: Uep) -> None:
        """It has ended if its link is down and its manager reports no process, or no report can ever come."""
        link = self._live.managers.get(uep.record.endpoint_id)
        gone = link is not None and link.reported and not link.runs(uep.record)
        if self._live.loop.time() < uep.grace_until:
            return
        known = bool(uep.record.link_key) and uep.peer is None
        if known and not uep.starting and (gone or self._is_deleted(uep)):
            self._live.run(self.process_exited(uep, "", "its process ended."))

    def _is_deleted(self, uep: Uep) -> bool:
        """Whether its endpoint was deleted: then its end is not reported, and it is not started again."""
        endpoint = self._live.store.endpoint(uep.record.endpoint_id)
        return endpoint is None or bool(endpoint.deleted_at)

    def end_if_deleted(self, uep: Uep) -> None:
        """If its endpoint was deleted and it has no link: end its tasks, after a delay if it may still come back."""
        if uep.peer is not None or not self._is_deleted(uep):
            return
        if uep.record.link_key:
            uep.grace_until = self._live.loop.time() + LINK_DEAD_S
            self._live.loop.call_at(uep.grace_until, self.end_if_exited, uep)
        else:
            self._live.run(self.process_exited(uep, "", "the endpoint was deleted."))

    async def process_exited(self, uep: Uep, code: str, text: str) -> None:
        """The process is gone."""
        if uep.peer is not None:
            self._live.link_.drop(uep.peer)
        uep.unlink()
        key = uep.record.link_key
        uep.set_process(b"", b"")
        if not uep.starting:  # else the news comes after the request for the next process
            uep.go(UepState.ABSENT)
            uep.set_timer(None)
        self._delivery.flush_started()
        ended, left = await self._live.submit_retrying(lambda tx: _release(tx, uep.row, key))
        self._delivery.requeued(uep, ended)
        uep.last_end = text
        if not uep.record.link_key:  # else the next process has joined and told
            uep.unsettled = left
        if self._is_deleted(uep):
            error = EndpointDeleted(endpoint_id=uep.record.endpoint_id)
            await self._delivery.end_sent(uep, error)
            await self._delivery.end_queue(uep, error)
            uep.unsettled = False
        elif left or uep.has_queued:
            await self._starts.count_loss(uep, code, text)
        self._starts.want(uep)
        self._live.forget_idle(uep)

    async def lose(self, uep: Uep, rows: Sequence[int], reason: str) -> None:
        """Settle tasks that had started in a process that is gone: run those again that may be, end the others."""
        error = UserEndpointLost(reason=reason[:MAX_PUBLIC_TEXT] or "its process is gone")
        await self._delivery.lose_rows(uep, rows, error)


def _release(tx: Tx, uep_row: int, link_key: bytes) -> tuple[Requeued, bool]:
    """Forget a process. Returns the ends of tasks that were to be cancelled, and whether others were sent to it."""
    tx.clear_link(uep_row, link_key)
    rows = [row for row, state in tx.cancelling(uep_row).items() if state is TaskState.DISPATCHED]
    settled = tx.record_endings(uep_row, cancelled(rows))
    return Requeued(count=0, settled=settled), bool(tx.active_rows(uep_row))
