"""Decides which peer may send which message on the endpoint link, and hands each message to its handler.

A peer is known by its CURVE key alone. A manager's key (from its endpoint's registration) may speak for that
endpoint, a user endpoint's key (enrolled with a join token) for that user endpoint and its own tasks; an
unknown key may only join. Anything else is logged, refused and dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.errors import (
    EndpointDeleted,
    HelloNeeded,
    JoinRefused,
    LinkForbidden,
    LinkMessageInvalid,
    MepError,
    ProtocolMismatch,
)
from mep_wire.limits import LINK_DEAD_S
from mep_wire.states import TaskState, UepState
from mep_wire.waits import Wait
from relay.dispatch.data_pieces import DataPieces
from relay.dispatch.deadlines import QueueDeadlines
from relay.dispatch.live_output import LiveOutput
from relay.dispatch.live_state import Joining, LiveState, ManagerLink, Uep, durable
from relay.dispatch.manager_handlers import ManagerHandlers
from relay.dispatch.payloads import Payloads
from relay.dispatch.process_loss import ProcessLoss
from relay.dispatch.result_notifier import ResultNotifier
from relay.dispatch.start_requests import StartRequester
from relay.dispatch.start_signing import Signer
from relay.dispatch.stories import Stories
from relay.dispatch.submissions import PersonLimits, Submission, Submissions
from relay.dispatch.task_delivery import TaskDelivery
from relay.dispatch.task_record_feed import TaskRecordFeed
from relay.dispatch.uep_handlers import UepHandlers
from relay.link.base import LinkSession, Peer, RelayLink
from relay.log import RateLimitedLog, peer_log
from relay.store.base import Store
from relay.store.chunks import Chunks
from relay.store.records import EndpointRecord, TaskBrief
from relay.store.task_record_writes import AuditedStore

MAX_EARLY_FRAMES = 64
"""Messages that a peer may send while its join is being stored."""
MAX_STRANGER_BYTES = 8 * 1024 * 1024
"""Largest message from a peer before its welcome: enough for a hello with a million rows."""
SETTLE_S = 600.0
"""After the relay's start, how long user endpoints have to come back before one counts as not heard of."""
OfPeer = Mapping[type[Any], Callable[[Peer, Any], object]]


class Dispatcher:
    """The relay's side of the endpoint link."""

    def __init__(
        self,
        store: Store,
        link_: RelayLink,
        signing_key: Signer,
        limits: PersonLimits | None = None,
        chunks: tuple[Chunks, int] | None = None,
        stories: Stories | None = None,
    ) -> None:
        """`chunks` are the storage of payloads that are larger than so many bytes."""
        self.streams = ResultNotifier()
        self._audited = AuditedStore(store)
        store = self._audited
        self.output = LiveOutput(store)
        self.live = LiveState(store, link_, asyncio.get_running_loop(), self._cut, stories=stories or Stories())
        limits = limits or PersonLimits()
        self.payloads = Payloads(store, *chunks) if chunks else Payloads(store)
        self.delivery = TaskDelivery(self.live, self.streams, limits.result_bytes, self.payloads)
        self.deadlines = QueueDeadlines(self.live, self.delivery)
        self._up_since = self.live.loop.time()
        self._limited_log = RateLimitedLog()
        self.starts = StartRequester(self.live, self.delivery, signing_key)
        self.delivery.wanted = self.starts.want
        self._process_loss = ProcessLoss(self.live, self.delivery, self.starts)
        self._managers = ManagerHandlers(self.live, self.starts, self._process_loss)
        self._ueps = UepHandlers(self.live, self.delivery, self.starts, self._process_loss)
        self._task_events = TaskRecordFeed(self.live, self._audited)
        self._submissions = Submissions(self.live, self.delivery, self.deadlines, limits)
        self.quota = self._submissions.quota
        self.data = DataPieces(self.live, self.payloads, self.quota, limits.data_bytes)
        self.delivery.max_data_bytes = self.data.most_bytes
        self._store, self._plane = store, link_
        self._from_peer, self._from_manager, self._from_uep = self._of_peers(), self._of_managers(), self._of_ueps()

    def _of_peers(self) -> Mapping[type[LinkSession | None], OfPeer]:
        """The permitted messages about a link itself, by what its peer is so far."""
        hello: OfPeer = {messages.ManagerHello: self._manager_hello}
        uep_hello: OfPeer = {messages.UepHello: self._uep_hello}
        liveness: OfPeer = {messages.Ping: self._ping, messages.Pong: self._pong}
        return {
            type(None): {**hello, **uep_hello, messages.Join: self._join},
            ManagerLink: {**liveness, **hello},
            Uep: {**liveness, **uep_hello},
            Joining: {},
        }

    def _of_managers(self) -> Mapping[type[Any], Callable[[ManagerLink, Any], object]]:
        """The other permitted messages of managers."""
        return {
            messages.StartAnswer: self._managers.start_answer,
            messages.StartQueued: self._managers.start_placed,
            messages.UepEnded: self._managers.uep_ended,
            messages.UepRevoked: self._managers.uep_revoked,
            messages.Recheck: self._managers.recheck,
            messages.RunningUeps: self._managers.running,
            messages.TaskEventsWritten: self._task_events.written,
            messages.Explain: self._managers.explain,
        }

    def _of_ueps(self) -> Mapping[type[Any], Callable[[Uep, Any], object]]:
        """The other permitted messages of user endpoints."""
        return {
            messages.Credit: self._ueps.credit,
            messages.Started: self._started,
            messages.Printed: self._printed,
            messages.Results: self._ueps.results,
            messages.Returned: self._ueps.returned,
            messages.Lost: self._ueps.lost,
            messages.WantPieces: self.data.send,
            messages.StorePiece: self.data.take,
            messages.Goodbye: self._ueps.goodbye,
        }

    def recover(self) -> None:
        """After the relay's start: user endpoints that had a link get a grace time to come back."""
        self.deadlines.recover()
        if awaited := self.delivery.dependents.recover():
            self.live.run(self.delivery.release(awaited))
        for record in self._store.ueps_in_use():
            uep = self.live.uep(record)
            if record.link_key:
                uep.state = UepState.DISCONNECTED
                uep.grace_until = self.live.loop.time() + LINK_DEAD_S
                self.live.loop.call_at(uep.grace_until, self._still_away, uep)
            else:
                self._process_loss.end_if_deleted(uep)

    def _still_away(self, uep: Uep) -> None:
        """The grace time after the relay's start is over."""
        self._process_loss.end_if_exited(uep)
        self.starts.want(uep)

    # --- frames -----------------------------------------------------------------------------------

    def on_frame(self, peer: Peer, frame: bytes) -> None:
        """See `relay.link.base.PlaneHandler`."""
        try:
            if self._is_early(peer, frame):
                return
            message = codec.decode_to_relay(frame)
            self._handle(peer, message)
        except HelloNeeded as error:
            self._plane.send(peer, codec.encode(messages.Refused(code=error.code, text=error.text, final=False)))
        except (LinkMessageInvalid, LinkForbidden, JoinRefused, ProtocolMismatch) as error:
            self._refuse(peer, error)
        except Exception:  # noqa: BLE001 - the outermost frame of a link: the other peers are to be served
            self._limited_log.exception("link: a message failed; the link is cut", peer=peer.key.hex())
            self._cut(peer, "its message failed")

    def _is_early(self, peer: Peer, frame: bytes) -> bool:
        """Whether the frame waits for its sender's join.

        Raises LinkMessageInvalid if an unauthenticated peer sends too much.
        """
        session = peer.session
        if isinstance(session, Uep | ManagerLink):
            return False
        early = session.early if isinstance(session, Joining) else []
        if len(early) >= MAX_EARLY_FRAMES or sum(map(len, early)) + len(frame) > MAX_STRANGER_BYTES:
            raise LinkMessageInvalid(reason="it is too much from somebody who is not welcome yet")
        early.append(frame)
        return isinstance(session, Joining)

    def _handle(self, peer: Peer, message: Any) -> None:
        """Hand a message to its handler. Raises HelloNeeded or LinkForbidden."""
        session, kind = peer.session, type(message)
        if isinstance(session, Uep) and (of_uep := self._from_uep.get(kind)):
            of_uep(session, message)
        elif isinstance(session, ManagerLink) and (of_manager := self._from_manager.get(kind)):
            of_manager(session, message)
        elif of_peer := self._from_peer[type(session)].get(kind):
            of_peer(peer, message)
        elif session is None:
            raise HelloNeeded
        else:
            raise LinkForbidden(what=kind.__name__)

    def _refuse(self, peer: Peer, error: MepError) -> None:
        """Say no, and have nothing more to do with this link."""
        log = self._limited_log if peer.session is None else peer_log  # unauthenticated peers can cause it at will
        log.warning("link: a peer was refused", peer=peer.key.hex(), reason=error)
        final = not isinstance(error, LinkMessageInvalid)
        self._plane.send(peer, codec.encode(messages.Refused(code=error.code, text=error.text, final=final)))
        self._cut(peer, "refused")

    def _cut(self, peer: Peer, reason: str) -> None:
        self._plane.drop(peer)
        if peer.session is not None:
            self.on_gone(peer, reason)

    def on_gone(self, peer: Peer, reason: str) -> None:
        """See `relay.link.base.PlaneHandler`."""
        session, peer.session = peer.session, None
        if isinstance(session, ManagerLink):
            self._managers.gone(session, reason)
            self._task_events.gone(session)
        elif isinstance(session, Uep):
            self._ueps.gone(session, peer, reason)

    def _ping(self, peer: Peer, message: messages.Ping) -> None:
        self._plane.send(peer, codec.encode(messages.Pong(sent_at=message.sent_at)))

    def _pong(self, peer: Peer, message: messages.Pong) -> None:
        """Hearing it is all that it is for."""

    def _manager_hello(self, peer: Peer, message: messages.ManagerHello) -> None:
        _check_protocol(message.protocol)
        self._managers.hello(peer, message)
        if isinstance(peer.session, ManagerLink):
            self._task_events.hello(peer.session, wanted=message.audit_tasks)

    def _started(self, uep: Uep, message: messages.Started) -> None:
        if message.locations and uep.record.endpoint_id in self._audited.kept:
            self._audited.run_at(uep.row, message.rows, message.locations)
        self._ueps.started(uep, message)

    def _printed(self, uep: Uep, message: messages.Printed) -> None:
        self.output.printed(uep.row, message.items)

    def _uep_hello(self, peer: Peer, message: messages.UepHello) -> None:
        _check_protocol(message.protocol)
        self._ueps.hello(peer, message)

    def _join(self, peer: Peer, message: messages.Join) -> None:
        _check_protocol(message.protocol)
        peer.session = self._ueps.join(peer, message) or peer.session
        if isinstance(peer.session, Joining):
            self.live.run(self._enrol(peer, peer.session))

    async def _enrol(self, peer: Peer, joining: Joining) -> None:
        enrolled = await self._ueps.enrol(peer, joining)
        if not enrolled:
            peer.session = None
            self._refuse(peer, JoinRefused())
            return
        for frame in joining.early:
            self.on_frame(peer, frame)

    # --- asked by the HTTP API --------------------------------------------------------------------

    def online(self, endpoint_id: str) -> bool:
        """Whether the endpoint's manager has a link. The check also makes the link layer notice a closed one."""
        link = self.live.managers.get(endpoint_id)
        return link is not None and self._plane.send(link.peer, codec.encode(messages.Ping(sent_at=time.time())))

    async def cancel(self, tasks: Sequence[TaskBrief]) -> set[int]:
        """Cancel unfinished tasks: at once, or (the rows returned) by asking the user endpoint that has them."""
        asked: set[int] = set()
        for uep_row in {task.uep_row for task in tasks}:
            rows = [task.row for task in tasks if task.uep_row == uep_row]
            uep = self.live.by_row.get(uep_row)
            away = await self.delivery.cancel(uep_row, rows, ask=uep is not None and uep.peer is not None)
            ask = codec.encode(messages.CancelTasks(rows=away))
            told = away and uep is not None and uep.peer is not None and self._plane.send(uep.peer, ask)
            if away and not (told and uep is not None and uep.no_room is None):
                # It is away, or has results that cannot come: the tasks end here and now, and it hears of it.
                away = await self.delivery.cancel(uep_row, away, ask=False)
            asked.update(away)  # if its link dies before it hears of it, its next hello brings it up again
        return asked

    async def expire(self, lifetime_s: float) -> None:
        """End tasks that have waited for longer than this, also those at user endpoints that have been silent for
        so long. Raises RelayUnavailable."""
        before = time.time() - lifetime_s
        settled = self.live.loop.time() - self._up_since > min(lifetime_s, SETTLE_S)
        for uep in list(self.live.ueps.values()):
            if uep.has_queued:
                await self.delivery.expire(uep, lifetime_s)
            away = settled and uep.peer is None and uep.record.seen_at < before
            if away and self._store.has_active(uep.row):
                peer_log.warning("user endpoint: not heard of for too long, its tasks expire", uep=uep.record.uep_id)
                await self.delivery.expire_lost(uep, lifetime_s)
            self.live.forget_idle(uep)

    async def note_seen(self) -> None:
        """Note which user endpoints have a link. Raises RelayUnavailable."""
        here = [uep for uep in self.live.ueps.values() if uep.peer is not None]
        if here:
            await durable(self.live.saw(here))

    def cut_user_endpoints(self) -> None:
        """Cut every user endpoint's link: each lists its tasks when it is back, and the store is compared with that."""
        for uep in list(self.live.ueps.values()):
            if uep.peer is not None:
                self._cut(uep.peer, "the store has lost and found a commit")

    def endpoint_changed(self, endpoint: EndpointRecord, old: EndpointRecord) -> None:
        """A registration was updated: a link with the old key is cut."""
        link = self.live.managers.get(endpoint.endpoint_id)
        if link is not None and endpoint.link_key != old.link_key:
            self._refuse(link.peer, LinkForbidden(what=f"endpoint {endpoint.endpoint_id}"))

    def stop_endpoint(self, endpoint_id: str) -> bool:
        """Have an endpoint stop, wherever it runs; return whether its manager has a link."""
        link = self.live.managers.get(endpoint_id)
        text = "stopped by an administrator, by way of the relay"
        return link is not None and self._plane.send(link.peer, codec.encode(messages.StopEndpoint(text=text)))

    async def endpoint_deleted(self, endpoint_id: str) -> None:
        """An endpoint was deleted: tell its manager and user endpoints, and fail its waiting tasks."""
        error = EndpointDeleted(endpoint_id=endpoint_id)
        link = self.live.managers.get(endpoint_id)
        if link is not None:
            self._plane.send(link.peer, codec.encode(messages.EndpointGone(text=error.text)))
        for uep in self.live.of_endpoint(endpoint_id):
            if uep.peer is not None:
                self._plane.send(uep.peer, codec.encode(messages.StopUep(code=error.code, text=error.text)))
            if uep.state is UepState.ONLINE:
                uep.go(UepState.DRAINING)
            await self.delivery.end_queue(uep, error)
            self._process_loss.end_if_deleted(uep)
        self._audited.keep(endpoint_id, keep=False)  # its manager has left permanently

    async def submit(self, submission: Submission) -> str:
        """Store tasks, and have them run: sent, queued, or requested with the start of their user endpoint.

        Returns the Python version of its workers, empty where it is not known. Raises as `Submissions.store`.
        """
        uep = await self._submissions.store(submission)
        self._process_loss.end_if_deleted(uep)  # its endpoint may have been deleted since it was looked up
        self.starts.want(uep)
        return uep.worker_python

    def worker_pythons(self, endpoint_id: str, account_id: str) -> list[str]:
        """Return the Pythons of a person's workers at an endpoint, as far as they are known."""
        own = (uep for uep in self.live.of_endpoint(endpoint_id) if uep.record.account_id == account_id)
        return sorted({uep.worker_python for uep in own if uep.worker_python})

    def holds_tasks(self, endpoint_id: str, account_id: str) -> bool:
        """Whether a person's tasks for this endpoint may wait for others here: its manager, and their processes that
        an older manager may have started, know what to do with them."""
        link = self.live.managers.get(endpoint_id)
        linked = (uep for uep in self.live.of_endpoint(endpoint_id) if uep.peer and uep.record.account_id == account_id)
        return link is not None and link.takes_inputs and all(uep.takes_inputs for uep in linked)

    def why_waiting(self, uep_row: int, state: TaskState, row: int = 0) -> Wait | None:
        """Return why a task of this user endpoint waits in `state`, as far as its person needs to know."""
        if state is TaskState.QUEUED and (held := self.delivery.dependents.why_held(row)) is not None:
            return held
        uep = self.live.by_row.get(uep_row)
        if uep is not None and uep.no_room is not None and state in (TaskState.DISPATCHED, TaskState.RUNNING):
            return uep.no_room
        waits = state in (TaskState.QUEUED, TaskState.DISPATCHED)
        return self.starts.why_waiting(uep_row, state) if waits else None


def _check_protocol(theirs: int) -> None:
    if theirs != PROTOCOL_VERSION:
        raise ProtocolMismatch(theirs=theirs, ours=PROTOCOL_VERSION)
