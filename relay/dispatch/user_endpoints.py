"""What user endpoints say on the endpoint link, and what follows: joining, coming back, tasks and results."""

from __future__ import annotations

import asyncio
import hmac
import time

from mep_wire import codec, messages
from mep_wire.errors import JoinRefused, LinkForbidden
from mep_wire.limits import HEARTBEAT_S, MAX_PAYLOAD_BYTES
from mep_wire.states import UepState
from relay.dispatch.board import Board, Joining, Uep, durable
from relay.dispatch.delivery import Delivery
from relay.dispatch.endings import Endings
from relay.dispatch.signing import join_hash
from relay.dispatch.starts import Starts
from relay.log import logger
from relay.plane.base import Peer
from relay.store.base import Tx
from relay.store.records import Held

SPOOL_S = 5.0
"""How long a process that joins or comes back may take to return results that it, or the one before it, has in
the spool, before what had started and is missing is given up."""


class UserEndpoints:
    """Handlers of user endpoints' messages. `peer.session` is the Uep in all but `join` and `hello`."""

    def __init__(self, board: Board, delivery: Delivery, starts: Starts, endings: Endings) -> None:
        self._board, self._delivery, self._starts, self._endings = board, delivery, starts, endings

    # --- coming and going -------------------------------------------------------------------------

    def join(self, peer: Peer, message: messages.Join) -> Joining | None:
        """A new process spends its join token for the key of this link. Raises JoinRefused."""
        record = self._board.store.uep(message.uep_id)
        if record is None:
            raise JoinRefused
        if record.link_key and hmac.compare_digest(record.link_key, peer.key):
            self._link_up(self._board.uep(record), peer, held=None)  # its join was stored, the welcome lost
            return None
        offered = join_hash(message.token)
        if not hmac.compare_digest(offered, record.join_hash) or time.time() > record.join_expires:
            raise JoinRefused
        return Joining(record, offered)

    async def enrol(self, peer: Peer, joining: Joining) -> bool:
        """Store a join; False where the token was spent meanwhile."""
        record = joining.record
        running = await durable(self._board.store.submit(lambda tx: _enrol(tx, record.row, joining.offered, peer.key)))
        if running is None:
            return False
        uep = self._board.uep(record)
        uep.set_link_key(peer.key)
        uep.has_queued = self._board.store.has_queued(uep.row)
        self._link_up(uep, peer, held=None)
        if running:
            self._board.run(self._lose_later(uep, running, "its process was replaced by another"))
        return True

    def hello(self, peer: Peer, message: messages.UepHello) -> None:
        """An enrolled process has a new link. Raises JoinRefused or LinkForbidden."""
        record = self._board.store.uep_by_link_key(peer.key)
        if record is None:
            raise JoinRefused
        if record.uep_id != message.uep_id:
            raise LinkForbidden(what=f"user endpoint {message.uep_id[:64]!r}")
        self._link_up(self._board.uep(record), peer, held=message.held)

    def _link_up(self, uep: Uep, peer: Peer, held: list[int] | None) -> None:
        if uep.peer is not None and uep.peer is not peer:
            self._board.plane.drop(uep.peer)
        uep.unlink()
        uep.peer, peer.session = peer, uep
        if uep.state is UepState.DRAINING:  # a new process, or a link that came back before its end was told
            uep.go(UepState.ABSENT)
        uep.go(UepState.ONLINE)
        self._starts.joined(uep)
        logger.info("user endpoint %s is here", uep.record.uep_id)
        welcome = messages.UepWelcome(heartbeat_s=HEARTBEAT_S, max_result_bytes=MAX_PAYLOAD_BYTES)
        self._board.plane.send(peer, codec.encode(welcome))
        if held is None:
            self._delivery.pump(uep)
            return
        self._delivery.flush_started()
        self._board.when_durable(
            self._board.store.submit(lambda tx: tx.reconcile(uep.row, held)),
            lambda found: self._compare(uep, peer, found),
        )

    def _compare(self, uep: Uep, peer: Peer, found: Held) -> None:
        """Act on what a returning user endpoint holds."""
        uep.has_queued = uep.has_queued or bool(found.requeued)
        if found.over:
            self._board.plane.send(peer, codec.encode(messages.CancelTasks(rows=found.over)))
        if found.lost:
            self._board.run(self._lose_later(uep, found.lost, "its process no longer has the task"))
        self._delivery.pump(uep)

    async def _lose_later(self, uep: Uep, rows: list[int], reason: str) -> None:
        await asyncio.sleep(SPOOL_S)
        await self._endings.lose(uep, rows, reason)

    def gone(self, uep: Uep, peer: Peer, reason: str) -> None:
        """A user endpoint's link is down."""
        if uep.peer is not peer:
            return
        logger.info("user endpoint %s is away: %s", uep.record.uep_id, reason)
        uep.unlink()
        uep.go(UepState.ABSENT if uep.state is UepState.DRAINING else UepState.DISCONNECTED)
        self._endings.conclude_if_ended(uep)
        self._starts.want(uep)

    def goodbye(self, peer: Peer, message: messages.Goodbye) -> None:
        """A user endpoint ends on its own account: tasks that crossed its goodbye were dropped by it."""
        uep: Uep = peer.session
        if uep.state is UepState.ONLINE:
            uep.go(UepState.DRAINING)
        uep.credit = 0
        self._delivery.take_back(uep)

    # --- tasks ------------------------------------------------------------------------------------

    def credit(self, peer: Peer, message: messages.Credit) -> None:
        """It can take more tasks."""
        self._delivery.credit(peer.session, message.grant)

    def started(self, peer: Peer, message: messages.Started) -> None:
        """Its workers have started these."""
        self._delivery.started(peer.session, message.rows)

    def results(self, peer: Peer, message: messages.Results) -> None:
        """These ended."""
        self._delivery.results(peer.session, message.items)

    def returned(self, peer: Peer, message: messages.Returned) -> None:
        """It has not started these and will not."""
        self._delivery.returned(peer.session, message.rows)


def _enrol(tx: Tx, uep_row: int, offered: bytes, link_key: bytes) -> list[int] | None:
    """Spend the join token; queue again what a predecessor had not started and return what it had, else None."""
    if not tx.enrol(uep_row, offered, link_key):
        return None
    tx.requeue(uep_row, None)
    return tx.running_rows(uep_row)
