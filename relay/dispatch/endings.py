"""Ends of user endpoints' processes, in this order.

The process is forgotten. What it was sent stays as it was, since it may have begun. The next process joins and says
what it holds: what it does not hold is lost if it had begun, and is sent to it if not. Its workers' notes then tell
what had begun without the relay's hearing of it. Where no next process comes, everything that was sent is lost, and
only what was not sent is said not to have begun.
"""

from __future__ import annotations

from collections.abc import Sequence

from mep_wire.errors import EndpointDeleted, UserEndpointLost
from mep_wire.limits import LINK_DEAD_S, MAX_PUBLIC_TEXT
from mep_wire.states import TaskState, UepState
from relay.dispatch.board import Board, Uep
from relay.dispatch.changes import NOTHING, Requeued, cancelled, requeue
from relay.dispatch.delivery import Delivery
from relay.dispatch.starts import Starts
from relay.store.base import Tx


class Endings:
    """Settles the tasks of processes that are gone."""

    def __init__(self, board: Board, delivery: Delivery, starts: Starts) -> None:
        self._board, self._delivery, self._starts = board, delivery, starts

    def conclude_if_ended(self, uep: Uep) -> None:
        """If its link is down and its manager says that it has no process, or nobody will ever say, it has ended."""
        link = self._board.managers.get(uep.record.endpoint_id)
        gone = link is not None and link.reported and not link.runs(uep.record)
        if self._board.loop.time() < uep.grace_until:
            return
        known = bool(uep.record.link_key) and uep.peer is None
        if known and not uep.starting and (gone or self._is_deleted(uep)):
            self._board.run(self.conclude(uep, "", "its process has ended"))

    def _is_deleted(self, uep: Uep) -> bool:
        """Whether its endpoint is no more: then nobody tells of its end, and nothing starts it again."""
        endpoint = self._board.store.endpoint(uep.record.endpoint_id)
        return endpoint is None or bool(endpoint.deleted_at)

    def conclude_if_deleted(self, uep: Uep) -> None:
        """If its endpoint is no more and it has no link: end what it had, in a moment where it may still come back."""
        if uep.peer is not None or not self._is_deleted(uep):
            return
        if uep.record.link_key:
            uep.grace_until = self._board.loop.time() + LINK_DEAD_S
            self._board.loop.call_at(uep.grace_until, self.conclude_if_ended, uep)
        else:
            self._board.run(self.conclude(uep, "", "the endpoint was deleted"))

    async def conclude(self, uep: Uep, code: str, text: str) -> None:
        """The process is gone."""
        if uep.peer is not None:
            self._board.plane.drop(uep.peer)
        uep.unlink()
        key = uep.record.link_key
        uep.set_process(b"", b"")
        if not uep.starting:  # else the news comes after the request for the next process
            uep.go(UepState.ABSENT)
            uep.set_timer(None)
        self._delivery.flush_started()
        deleted = self._is_deleted(uep)
        settled, had = await self._board.insist(lambda tx: _release(tx, uep.row, key, requeued=deleted))
        self._delivery.requeued(uep, settled)
        uep.unsettled, uep.last_end = bool(had), text
        if deleted:
            await self._delivery.fail_rows(uep, had, UserEndpointLost(reason="the endpoint was deleted"))
            await self._delivery.end_queue(uep, EndpointDeleted(endpoint_id=uep.record.endpoint_id))
            uep.unsettled = False
        elif had:
            await self._starts.count_loss(uep, code, text)
        self._starts.want(uep)
        self._board.forget_idle(uep)

    async def lose(self, uep: Uep, rows: Sequence[int], reason: str) -> None:
        """Settle tasks that had started in a process that is gone: run those again that may be, end the others."""
        error = UserEndpointLost(reason=reason[:MAX_PUBLIC_TEXT] or "its process is gone")
        await self._delivery.lose_rows(uep, rows, error)


def _release(tx: Tx, uep_row: int, link_key: bytes, *, requeued: bool) -> tuple[Requeued, list[int]]:
    """Forget a process, and end what it was asked to cancel and is not known to have begun. Return that, and what else
    it was sent. With `requeued` what is not known to have begun waits again."""
    tx.clear_link(uep_row, link_key)
    if requeued:
        return requeue(tx, uep_row, None), tx.running_rows(uep_row)
    asked = [row for row, state in tx.cancelling(uep_row).items() if state is TaskState.DISPATCHED]
    settled = tx.record_endings(uep_row, cancelled(asked)) if asked else NOTHING
    return Requeued(0, settled), list(tx.active_rows(uep_row))
