"""Decides what every frame on the endpoint link means, and who may say it.

A peer is known by its CURVE key alone. A manager's key (from its endpoint's registration) may speak for that
endpoint, a user endpoint's key (enrolled with a join token) for that user endpoint and its own tasks; an
unknown key may only join. Anything else is logged, refused and dropped.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.errors import (
    EndpointDeleted,
    EndpointNotFound,
    HelloNeeded,
    JoinRefused,
    LinkForbidden,
    LinkMessageInvalid,
    MepError,
    ProtocolMismatch,
    TaskCancelled,
    UserEndpointLost,
)
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S, MAX_PAYLOAD_BYTES, MAX_PUBLIC_TEXT
from mep_wire.states import TaskState, UepState
from relay.dispatch.board import Board, ManagerLink, Uep, durable
from relay.dispatch.delivery import Delivery
from relay.dispatch.signing import join_hash
from relay.dispatch.starts import Starts
from relay.dispatch.streams import Streams
from relay.log import logger
from relay.plane.base import Peer, Plane
from relay.store.base import Store, Tx
from relay.store.records import Ending, EndpointRecord, Held, TaskRecord, UepRecord

SETTLE_S = 0.5
"""How long after the news of a process's end its last results may still arrive on its own link."""
JOIN_SETTLE_S = 5.0
"""How long a new process may take to return results that its predecessor left in the spool."""
MAX_LOSSES = 3
"""Processes lost in a row, with no task ended, after which the tasks that wait fail."""


@dataclass(eq=False, slots=True)
class _Joining:
    """The session of a peer whose join is being stored: what it says meanwhile waits."""

    frames: list[bytes]


class Dispatcher:
    """The relay's side of the endpoint link."""

    def __init__(self, store: Store, plane: Plane, signing_key: Ed25519PrivateKey) -> None:
        self.streams = Streams()
        self.board = Board(store, plane, asyncio.get_running_loop())
        self.delivery = Delivery(self.board, self.streams)
        self.starts = Starts(self.board, self.delivery, signing_key)
        self._store, self._plane = store, plane

    def recover(self) -> None:
        """After the relay's start: user endpoints that had a link get a grace time to come back."""
        for record in self._store.ueps_in_use():
            uep = self.board.uep(record)
            if record.link_key:
                uep.state = UepState.DISCONNECTED
                self.board.loop.call_later(LINK_DEAD_S, self._still_away, uep)

    # --- frames -----------------------------------------------------------------------------------

    def on_frame(self, peer: Peer, frame: bytes) -> None:
        """See `relay.plane.base.PlaneHandler`."""
        if isinstance(peer.session, _Joining):
            peer.session.frames.append(frame)
            return
        try:
            message = codec.decode_to_relay(frame)
            handler = self._allowed(peer, type(message))
            handler(self, peer, message)
        except LinkMessageInvalid as error:
            self._refuse(peer, error, final=False)
        except (LinkForbidden, JoinRefused, ProtocolMismatch, EndpointNotFound) as error:
            self._refuse(peer, error, final=True)
        except HelloNeeded as error:
            self._plane.send(peer, codec.encode(messages.Refused(code=error.code, text=error.text, final=False)))

    def _allowed(self, peer: Peer, kind: type[Any]) -> Callable[[Dispatcher, Peer, Any], None]:
        """Return the handler for this message from this peer. Raises HelloNeeded or LinkForbidden."""
        if isinstance(peer.session, Uep):
            table = _FROM_UEP
        elif isinstance(peer.session, ManagerLink):
            table = _FROM_MANAGER
        else:
            table = _FROM_STRANGER
        handler = table.get(kind)
        if handler is None and table is _FROM_STRANGER:
            raise HelloNeeded
        if handler is None:
            raise LinkForbidden(what=kind.__name__)
        return handler

    def _refuse(self, peer: Peer, error: MepError, *, final: bool) -> None:
        """Say no, and have nothing more to do with this link."""
        logger.warning("link: peer %s refused: %s", peer.key.hex(), error)
        self._plane.send(peer, codec.encode(messages.Refused(code=error.code, text=error.text, final=final)))
        self._cut(peer)

    def _cut(self, peer: Peer) -> None:
        self._plane.drop(peer)
        if peer.session is not None:
            self.on_gone(peer, "refused")

    def on_gone(self, peer: Peer, reason: str) -> None:
        """See `relay.plane.base.PlaneHandler`."""
        session, peer.session = peer.session, None
        if isinstance(session, ManagerLink) and self.board.managers.get(session.endpoint_id) is session:
            del self.board.managers[session.endpoint_id]
            self.starts.manager_gone(session.endpoint_id)
            logger.info("manager of endpoint %s is away: %s", session.endpoint_id, reason)
        if isinstance(session, Uep) and session.peer is peer:
            logger.info("user endpoint %s is away: %s", session.record.uep_id, reason)
            self._unlink(session)
            if session.state is UepState.DRAINING:
                session.go(UepState.ABSENT)
            else:
                session.go(UepState.DISCONNECTED)
            self._conclude_if_ended(session)
            self.starts.want(session)

    def _unlink(self, uep: Uep) -> None:
        if uep.peer is not None:
            uep.peer.session = None
        uep.peer, uep.credit = None, 0
        uep.functions_sent.clear()

    def _ping(self, peer: Peer, message: messages.Ping) -> None:
        self._plane.send(peer, codec.encode(messages.Pong(sent_at=message.sent_at)))

    def _pong(self, peer: Peer, message: messages.Pong) -> None:
        pass

    # --- managers ---------------------------------------------------------------------------------

    def _manager_hello(self, peer: Peer, hello: messages.ManagerHello) -> None:
        _check_protocol(hello.protocol)
        endpoint = self._store.endpoint(hello.endpoint_id)
        if endpoint is None or not hmac.compare_digest(endpoint.link_key, peer.key):
            raise LinkForbidden(what=f"endpoint {hello.endpoint_id[:64]!r}")
        if endpoint.deleted_at:
            error = EndpointDeleted(endpoint_id=endpoint.endpoint_id)
            self._plane.send(peer, codec.encode(messages.EndpointGone(text=error.text)))
            self._cut(peer)
            return
        known = self.board.managers.get(hello.endpoint_id)
        if known is None or known.peer is not peer:
            if known is not None:
                known.peer.session = None
                self._plane.drop(known.peer)
            known = self.board.managers[hello.endpoint_id] = ManagerLink(hello.endpoint_id, peer, hello.epoch)
            logger.info("manager of endpoint %s is here", hello.endpoint_id)
        known.epoch, peer.session = hello.epoch, known
        self._plane.send(peer, codec.encode(messages.ManagerWelcome(relay_time=time.time(), heartbeat_s=HEARTBEAT_S)))
        for record in self._store.ueps_in_use(hello.endpoint_id):
            self.board.uep(record)
        self.starts.want_all(hello.endpoint_id, at_once=True)

    def _start_answer(self, peer: Peer, answer: messages.StartAnswer) -> None:
        self.starts.answered(peer.session, answer)

    def _running_ueps(self, peer: Peer, message: messages.RunningUeps) -> None:
        link: ManagerLink = peer.session
        link.running, link.reported = set(message.uep_ids), True
        for uep in [u for u in self.board.ueps.values() if u.record.endpoint_id == link.endpoint_id]:
            self._conclude_if_ended(uep)

    def _uep_ended(self, peer: Peer, message: messages.UepEnded) -> None:
        link: ManagerLink = peer.session
        link.running.discard(message.uep_id)
        uep = self.board.ueps.get(message.uep_id)
        if uep is not None and uep.record.endpoint_id == link.endpoint_id:
            logger.info("user endpoint %s ended: %s", message.uep_id, message.code)
            self.board.run(self._process_ended(uep, message, uep.record.link_key))
        self.starts.room(link.endpoint_id)

    async def _process_ended(self, uep: Uep, message: messages.UepEnded, link_key: bytes) -> None:
        if uep.state is UepState.STARTING and not link_key:
            await self._died_unjoined(uep, message)
            return
        if self._store.has_active(uep.row):
            await asyncio.sleep(SETTLE_S)
        if uep.record.link_key != link_key:
            return  # another process has joined meanwhile, and its join settled this one's tasks
        await self._conclude(uep, message.code, message.text)

    async def _died_unjoined(self, uep: Uep, message: messages.UepEnded) -> None:
        uep.set_timer(None)
        uep.go(UepState.ABSENT)
        uep.starting = False
        await self._count_loss(uep, message.code, message.text)
        self.starts.want(uep)

    def _still_away(self, uep: Uep) -> None:
        """The grace time after the relay's start is over."""
        self._conclude_if_ended(uep)
        self.starts.want(uep)

    def _conclude_if_ended(self, uep: Uep) -> None:
        """Its link is down: if its manager says that it has no process, it has ended."""
        link = self.board.managers.get(uep.record.endpoint_id)
        gone = link is not None and link.reported and uep.record.uep_id not in link.running
        if gone and uep.state is UepState.DISCONNECTED and not uep.starting:
            self.board.run(self._conclude(uep, "", "its process has ended"))

    async def _conclude(self, uep: Uep, code: str, text: str) -> None:
        """The process is gone: what it had not started waits again, what it had is lost."""
        if uep.peer is not None:
            self._plane.drop(uep.peer)
            self._unlink(uep)
        key = uep.record.link_key
        uep.record = _with_key(uep.record, b"")
        uep.go(UepState.ABSENT)
        uep.set_timer(None)
        requeued, lost = await durable(self._store.submit(lambda tx: _release(tx, uep.row, key)))
        await self._lose(uep, lost, text or code)
        uep.has_queued = uep.has_queued or bool(requeued)
        endpoint = self._store.endpoint(uep.record.endpoint_id)
        if endpoint is None or endpoint.deleted_at:
            await self.delivery.end_queue(uep, EndpointDeleted(endpoint_id=uep.record.endpoint_id))
        elif requeued or lost:
            await self._count_loss(uep, code, text)
        self.starts.want(uep)
        self.board.forget_idle(uep)

    async def _count_loss(self, uep: Uep, code: str, text: str) -> None:
        """Tasks must not start processes that die at once for ever."""
        uep.losses += 1
        if uep.losses >= MAX_LOSSES:
            uep.losses = 0
            reason = f"{MAX_LOSSES} processes ended in a row before any task did; the last: {text or code}"
            await self.delivery.end_queue(uep, UserEndpointLost(reason=reason[:MAX_PUBLIC_TEXT]))

    async def _lose(self, uep: Uep, rows: Sequence[int], reason: str) -> None:
        error = UserEndpointLost(reason=reason[:MAX_PUBLIC_TEXT] or "it ended")
        now = time.time()
        await self.delivery.end_rows(
            uep,
            [
                Ending(row, TaskState.FAILED, error.code, error.text, b"", error.correlation_id, ended_at=now)
                for row in rows
            ],
        )

    # --- user endpoints ---------------------------------------------------------------------------

    def _join(self, peer: Peer, join: messages.Join) -> None:
        _check_protocol(join.protocol)
        record = self._store.uep(join.uep_id)
        if record is None:
            raise JoinRefused
        if record.link_key and hmac.compare_digest(record.link_key, peer.key):
            self._link_up(self.board.uep(record), peer, held=None)  # its join was accepted, the welcome lost
            return
        offered = join_hash(join.token)
        if not hmac.compare_digest(offered, record.join_hash) or time.time() > record.join_expires:
            raise JoinRefused
        peer.session = _Joining([])
        self.board.run(self._enrol(peer, record, offered))

    async def _enrol(self, peer: Peer, record: UepRecord, offered: bytes) -> None:
        running = await durable(self._store.submit(lambda tx: _enrol(tx, record.row, offered, peer.key)))
        joining: _Joining = peer.session
        peer.session = None
        if running is None:
            self._refuse(peer, JoinRefused(), final=True)
            return
        uep = self.board.uep(record)
        uep.record = _with_key(uep.record, peer.key)
        uep.has_queued = self._store.has_queued(uep.row)
        self._link_up(uep, peer, held=None)
        for frame in joining.frames:
            self.on_frame(peer, frame)
        if running:
            await asyncio.sleep(JOIN_SETTLE_S)
            await self._lose(uep, running, "its process was replaced by another")

    def _uep_hello(self, peer: Peer, hello: messages.UepHello) -> None:
        _check_protocol(hello.protocol)
        record = self._store.uep_by_link_key(peer.key)
        if record is None:
            raise JoinRefused
        if record.uep_id != hello.uep_id:
            raise LinkForbidden(what=f"user endpoint {hello.uep_id[:64]!r}")
        self._link_up(self.board.uep(record), peer, held=hello.held)

    def _link_up(self, uep: Uep, peer: Peer, held: list[int] | None) -> None:
        if uep.peer is not None and uep.peer is not peer:
            self._plane.drop(uep.peer)
        self._unlink(uep)
        uep.peer, peer.session = peer, uep
        if uep.state is UepState.DRAINING:  # a new process, or it thought better of it
            uep.go(UepState.ABSENT)
        uep.go(UepState.ONLINE)
        self.starts.joined(uep)
        logger.info("user endpoint %s is here", uep.record.uep_id)
        welcome = messages.UepWelcome(heartbeat_s=HEARTBEAT_S, max_result_bytes=MAX_PAYLOAD_BYTES)
        self._plane.send(peer, codec.encode(welcome))
        if held is not None:
            self.delivery.flush_started()
            self.board.when_durable(
                self._store.submit(lambda tx: tx.reconcile(uep.row, held)),
                lambda found: self._compare(uep, peer, found),
            )
        else:
            self.delivery.pump(uep)

    def _compare(self, uep: Uep, peer: Peer, found: Held) -> None:
        """Act on what a returning user endpoint holds."""
        uep.has_queued = uep.has_queued or bool(found.requeued)
        if found.over:
            self._plane.send(peer, codec.encode(messages.CancelTasks(rows=found.over)))
        if found.lost:
            self.board.run(self._lose_later(uep, found.lost))
        self.delivery.pump(uep)

    async def _lose_later(self, uep: Uep, rows: list[int]) -> None:
        await asyncio.sleep(JOIN_SETTLE_S)
        await self._lose(uep, rows, "its process no longer has the task")

    def _credit(self, peer: Peer, message: messages.Credit) -> None:
        self.delivery.credit(peer.session, message.grant)

    def _started(self, peer: Peer, message: messages.Started) -> None:
        self.delivery.started(peer.session, message.rows)

    def _results(self, peer: Peer, message: messages.Results) -> None:
        self.delivery.results(peer.session, message.items)

    def _returned(self, peer: Peer, message: messages.Returned) -> None:
        self.delivery.returned(peer.session, message.rows)

    def _goodbye(self, peer: Peer, message: messages.Goodbye) -> None:
        uep: Uep = peer.session
        if uep.state is UepState.ONLINE:
            uep.go(UepState.DRAINING)
        uep.credit = 0

        def requeued(count: int) -> None:
            uep.has_queued = uep.has_queued or bool(count)

        # Tasks that crossed its goodbye on the way were dropped by it.
        self.board.when_durable(self._store.submit(lambda tx: tx.requeue(uep.row, None)), requeued)

    # --- asked by the HTTP API --------------------------------------------------------------------

    def online(self, endpoint_id: str) -> bool:
        """Whether the endpoint's manager has a link."""
        return endpoint_id in self.board.managers

    async def cancel(self, tasks: Sequence[TaskRecord]) -> set[int]:
        """Cancel unfinished tasks: at once, or (the rows returned) by asking the user endpoint that has them."""
        asked: set[int] = set()
        for uep_row in {task.uep_row for task in tasks}:
            mine = [task for task in tasks if task.uep_row == uep_row]
            uep = self.board.by_row.get(uep_row)
            away = [t.row for t in mine if t.state is not TaskState.QUEUED]
            if uep is not None and uep.peer is not None and away:
                self._plane.send(uep.peer, codec.encode(messages.CancelTasks(rows=away)))
                asked.update(away)
            await self._cancel_rows(uep_row, [task.row for task in mine if task.row not in asked])
        return asked

    async def _cancel_rows(self, uep_row: int, rows: Sequence[int]) -> None:
        error, now = TaskCancelled(), time.time()
        endings = [Ending(row, TaskState.CANCELLED, error.code, error.text, ended_at=now) for row in rows]
        settled = await durable(self._store.submit(lambda tx: tx.record_endings(uep_row, endings)))
        self.streams.wake(settled.groups)
        uep = self.board.by_row.get(uep_row)
        if uep is not None:
            self.board.count_ended(uep.record.account_id, settled.ended)

    async def endpoint_changed(self, endpoint: EndpointRecord, old: EndpointRecord) -> None:
        """A registration was updated: a link with the old key is cut."""
        link = self.board.managers.get(endpoint.endpoint_id)
        if link is not None and endpoint.link_key != old.link_key:
            self._refuse(link.peer, LinkForbidden(what=f"endpoint {endpoint.endpoint_id}"), final=True)

    async def endpoint_deleted(self, endpoint_id: str) -> None:
        """An endpoint was deleted: its manager is told, what waits fails."""
        error = EndpointDeleted(endpoint_id=endpoint_id)
        link = self.board.managers.get(endpoint_id)
        if link is not None:
            self._plane.send(link.peer, codec.encode(messages.EndpointGone(text=error.text)))
            self.board.loop.call_later(SETTLE_S, self._cut, link.peer)
        for record in self._store.ueps_in_use(endpoint_id):
            uep = self.board.uep(record)
            if uep.peer is not None:
                self._plane.send(uep.peer, codec.encode(messages.StopUep(code=error.code, text=error.text)))
                if uep.state is UepState.ONLINE:
                    uep.go(UepState.DRAINING)
            await self.delivery.end_queue(uep, error)


def _check_protocol(theirs: int) -> None:
    if theirs != PROTOCOL_VERSION:
        raise ProtocolMismatch(theirs=theirs, ours=PROTOCOL_VERSION)


def _with_key(record: UepRecord, key: bytes) -> UepRecord:
    return msgspec.structs.replace(record, link_key=key, join_hash=b"", join_expires=0.0)


def _release(tx: Tx, uep_row: int, link_key: bytes) -> tuple[int, list[int]]:
    """Forget a process; queue again what it had not started; return that count and what it had."""
    tx.clear_link(uep_row, link_key)
    return tx.requeue(uep_row, None), tx.running_rows(uep_row)


def _enrol(tx: Tx, uep_row: int, offered: bytes, link_key: bytes) -> list[int] | None:
    """Spend the join token; queue again what a predecessor had not started and return what it had, else None."""
    if not tx.enrol(uep_row, offered, link_key):
        return None
    tx.requeue(uep_row, None)
    return tx.running_rows(uep_row)


_FROM_STRANGER: dict[type[Any], Callable[[Dispatcher, Peer, Any], None]] = {
    messages.ManagerHello: Dispatcher._manager_hello,
    messages.Join: Dispatcher._join,
    messages.UepHello: Dispatcher._uep_hello,
}
_FROM_MANAGER: dict[type[Any], Callable[[Dispatcher, Peer, Any], None]] = {
    messages.Ping: Dispatcher._ping,
    messages.Pong: Dispatcher._pong,
    messages.ManagerHello: Dispatcher._manager_hello,
    messages.StartAnswer: Dispatcher._start_answer,
    messages.UepEnded: Dispatcher._uep_ended,
    messages.RunningUeps: Dispatcher._running_ueps,
}
_FROM_UEP: dict[type[Any], Callable[[Dispatcher, Peer, Any], None]] = {
    messages.Ping: Dispatcher._ping,
    messages.Pong: Dispatcher._pong,
    messages.UepHello: Dispatcher._uep_hello,
    messages.Credit: Dispatcher._credit,
    messages.Started: Dispatcher._started,
    messages.Results: Dispatcher._results,
    messages.Returned: Dispatcher._returned,
    messages.Goodbye: Dispatcher._goodbye,
}
"""Who may say what, and what answers it."""
