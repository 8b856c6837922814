"""Handles user endpoints' messages on the endpoint link: joining, coming back, tasks and results."""

from __future__ import annotations

import hmac
import time

from mep_wire import codec, messages
from mep_wire.errors import JoinRefused, LinkForbidden, LinkMessageInvalid
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S, MAX_ATTEMPTS, MAX_PUBLIC_TEXT
from mep_wire.start_request import incarnation_of
from mep_wire.states import UepState
from mep_wire.text import printable
from mep_wire.waits import Wait, WaitCode
from relay.dispatch.live_state import Joining, LiveState, Uep
from relay.dispatch.process_loss import ProcessLoss
from relay.dispatch.start_requests import StartRequester
from relay.dispatch.start_signing import join_hash
from relay.dispatch.start_trouble import sentence
from relay.dispatch.task_delivery import MAX_CODE, MAX_TIME, TaskDelivery
from relay.dispatch.task_fates import tell
from relay.dispatch.task_transitions import Reconciled
from relay.link.base import Peer
from relay.log import peer_log

MAX_ROW = 2**63
SEEN_S = 60.0
"""Precision of the stored time at which a user endpoint was last seen."""

_MAX_VERSION_CHARS = 32


class UepHandlers:
    """Handlers of user endpoints' messages."""

    def __init__(self, live: LiveState, delivery: TaskDelivery, starts: StartRequester, endings: ProcessLoss) -> None:
        self._live, self._delivery, self._starts, self._process_loss = live, delivery, starts, endings

    # --- coming and going -------------------------------------------------------------------------

    def join(self, peer: Peer, message: messages.Join) -> Joining | None:
        """A new process spends its join token for the key of this link. Raises JoinRefused."""
        record = self._live.store.uep(message.uep_id)
        if record is None:
            raise JoinRefused
        if record.link_key and hmac.compare_digest(record.link_key, peer.key):
            uep, held = self._live.uep(record), _rows(message.held)
            uep.default_attempts, uep.most_attempts = message.default_attempts, message.most_attempts
            uep.takes_inputs = message.takes_inputs
            self._link_up(uep, peer)  # its join was stored, the welcome lost
            self._settle(uep, peer, held)
            return None
        offered, incarnation, held = join_hash(message.token), incarnation_of(message.token), _rows(message.held)
        return Joining(
            record=record,
            offered=offered,
            incarnation=incarnation,
            held=held,
            default_attempts=message.default_attempts,
            most_attempts=message.most_attempts,
            takes_inputs=message.takes_inputs,
        )

    async def enrol(self, peer: Peer, joining: Joining) -> bool:
        """Store a join; False where the token is unknown, spent or expired."""
        record, now = joining.record, time.time()
        enrolled = await self._live.submit_retrying(
            lambda tx: tx.enrol(record.row, joining.offered, peer.key, now, joining.incarnation)
        )
        if enrolled:
            uep = self._live.uep(record)
            uep.set_process(peer.key, joining.incarnation)
            uep.default_attempts, uep.most_attempts = joining.default_attempts, joining.most_attempts
            uep.takes_inputs = joining.takes_inputs
            if peer.session is joining:
                self._link_up(uep, peer)
                self._settle(uep, peer, joining.held)
            else:
                self._joined_away(uep)
        return enrolled

    def _joined_away(self, uep: Uep) -> None:
        """Its link broke while its join was being stored, and no link reports that again. It comes back with a hello,
        or it has ended, and its manager may have reported that before the join was known."""
        peer_log.info("user endpoint has joined, and is away", uep=uep.record.uep_id)
        if uep.peer is not None:
            self._live.link_.drop(uep.peer)
        uep.unlink()
        if uep.state is UepState.DRAINING:
            uep.go(UepState.ABSENT)
        uep.go(UepState.ONLINE)
        uep.go(UepState.DISCONNECTED)
        self._starts.joined(uep)
        uep.grace_until = self._live.loop.time() + LINK_DEAD_S
        self._live.loop.call_at(uep.grace_until, self._process_loss.end_if_exited, uep)
        self._process_loss.end_if_deleted(uep)
        self._starts.want(uep)

    def hello(self, peer: Peer, message: messages.UepHello) -> None:
        """An enrolled process has a new link. Raises JoinRefused or LinkForbidden."""
        record = self._live.store.uep_by_link_key(peer.key)
        if record is None:
            raise JoinRefused
        if record.uep_id != message.uep_id:
            raise LinkForbidden(what=f"user endpoint {message.uep_id[:64]!r}")
        held, uep = _rows(message.held), self._live.uep(record)
        if not hmac.compare_digest(uep.record.link_key, peer.key):  # its end is being stored
            raise JoinRefused
        uep.default_attempts, uep.most_attempts = message.default_attempts, message.most_attempts
        uep.takes_inputs = message.takes_inputs
        self._link_up(uep, peer)
        self._settle(uep, peer, held)

    def _link_up(self, uep: Uep, peer: Peer) -> None:
        if uep.peer is not None and uep.peer is not peer:
            self._live.link_.drop(uep.peer)
        uep.unlink()
        uep.peer, peer.session = peer, uep
        if uep.state is UepState.DRAINING:  # a new process, or a link that came back before its end was told
            uep.go(UepState.ABSENT)
        uep.go(UepState.ONLINE)
        self._starts.joined(uep)
        link = self._live.managers.get(uep.record.endpoint_id)
        if link is not None:
            link.running[uep.record.uep_id] = uep.record.incarnation  # whatever its manager has said so far
        peer_log.info("user endpoint is here", uep=uep.record.uep_id)
        self._live.tell(uep, "INFO", "its process has joined")
        if uep.record.seen_at < time.time() - SEEN_S:  # else the first result would wait for this commit
            self._live.saw([uep])
        welcome = messages.UepWelcome(
            heartbeat_s=HEARTBEAT_S,
            max_result_bytes=self._delivery.max_result_bytes,
            max_data_bytes=self._delivery.max_data_bytes,
            takes_output=True,
        )
        self._live.link_.send(peer, codec.encode(welcome))

    def _settle(self, uep: Uep, peer: Peer, held: list[int]) -> None:
        """Compare its list of tasks with the store, before it is sent anything."""
        self._delivery.flush_started()
        uep.pumping = True
        new_process = uep.settled != peer.key
        self._live.when_durable(
            peer,
            self._live.store.submit(lambda tx: tell(tx, uep.row, held, new_process=new_process)),
            lambda found: self._compare(uep, peer, found),
        )

    def _compare(self, uep: Uep, peer: Peer, found: Reconciled) -> None:
        uep.pumping = uep.unsettled = False
        uep.settled = peer.key
        self._delivery.requeued(uep, found.requeued)
        if stop := [*found.held.over, *found.cancelling]:
            self._live.link_.send(peer, codec.encode(messages.CancelTasks(rows=stop)))
        if found.held.lost:
            reason = f"{sentence(uep.last_end or 'its process ended')} It left no result of the task."
            self._live.run(self._process_loss.lose(uep, found.held.lost, reason))
        self._delivery.pump(uep)

    def gone(self, uep: Uep, peer: Peer, reason: str) -> None:
        """A user endpoint's link is down."""
        if uep.peer is not peer:
            return
        peer_log.info("user endpoint is away", uep=uep.record.uep_id, reason=reason)
        self._live.tell(uep, "INFO", f"its link is down: {reason}")
        uep.unlink()
        self._live.saw([uep])
        uep.go(UepState.ABSENT if uep.state is UepState.DRAINING else UepState.DISCONNECTED)
        self._process_loss.end_if_exited(uep)
        self._process_loss.end_if_deleted(uep)
        self._starts.want(uep)

    def goodbye(self, uep: Uep, message: messages.Goodbye) -> None:
        """A user endpoint ends on its own account: tasks that crossed its goodbye were dropped by it."""
        if uep.state is UepState.ONLINE:
            uep.go(UepState.DRAINING)
        uep.credit = 0
        self._delivery.take_back(uep)

    # --- tasks ------------------------------------------------------------------------------------

    def credit(self, uep: Uep, message: messages.Credit) -> None:
        """It can take more tasks, or tells why those that it has wait."""
        self._trouble(uep, message)
        uep.worker_python = message.worker_python[:_MAX_VERSION_CHARS] or uep.worker_python
        self._delivery.credit(uep, message.grant)

    def _trouble(self, uep: Uep, message: messages.Credit) -> None:
        """Note what keeps its engine from beginning tasks. Its clock may be wrong: `since` is never in the future."""
        if not message.trouble:
            uep.engine_trouble = None
            return
        code = message.trouble_code[:MAX_CODE] or WaitCode.ENGINE_TROUBLE
        since = min(time.time(), message.trouble_since if 0.0 < message.trouble_since < MAX_TIME else time.time())
        before = uep.engine_trouble
        if before is not None and before.code == code:
            since = min(since, before.since)
        else:
            self._live.tell(uep, "WARNING", f"its tasks wait: code={code} {message.trouble[:MAX_PUBLIC_TEXT]}")
        uep.engine_trouble = Wait(code, printable(message.trouble[:MAX_PUBLIC_TEXT]), since)

    def started(self, uep: Uep, message: messages.Started) -> None:
        """Its workers have started these."""
        self._delivery.started(uep, _rows(message.rows))

    def results(self, uep: Uep, message: messages.Results) -> None:
        """These ended."""
        _rows([item.row for item in message.items])
        self._delivery.results(uep, message.items)

    def lost(self, uep: Uep, message: messages.Lost) -> None:
        """The processes of these tasks died, and they may be run again. Raises LinkMessageInvalid."""
        if len(message.attempts) != len(message.rows) or any(not 0 < n <= MAX_ATTEMPTS for n in message.attempts):
            raise LinkMessageInvalid(reason="an attempt that no task has")
        self._delivery.lost(uep, list(zip(_rows(message.rows), message.attempts, strict=True)))

    def returned(self, uep: Uep, message: messages.Returned) -> None:
        """It has not started these and will not."""
        self._delivery.returned(uep, _rows(message.rows))


def _rows(rows: list[int]) -> list[int]:
    """Return the rows unchanged. Raises LinkMessageInvalid for a value that can't be a row."""
    if any(not 0 < row < MAX_ROW for row in rows):
        raise LinkMessageInvalid(reason="a row that no task has")
    return rows
