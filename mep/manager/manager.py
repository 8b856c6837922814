"""The manager's loop: one thread between the relay's link and the monitor's channel.

Trusts each side with its own messages only. A frame from the relay that can't be decoded is logged and dropped. A
message that the monitor may not send ends this process. `start_endpoint` here faces `answer_start_endpoint` in the
monitor. Called by mep/manager/main.py.
"""

from __future__ import annotations

import enum
import itertools
import os
import socket
import time

import msgspec
import zmq

from mep import __version__
from mep.boundary.channel import Channel, clip
from mep.boundary.errors import BoundaryViolation, Refusal, public_text
from mep.boundary.log import Log
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    MAX_STARTS_OUTSTANDING,
    EndpointAccount,
    EndpointEnded,
    EndpointRevoked,
    EndpointRunning,
    LinkStatus,
    ManagerReady,
    MapperEpoch,
    Message,
    Outcome,
    RecheckNow,
    Shutdown,
    StartAnswered,
    StartEndpoint,
    StartPlaced,
    StopAll,
    TaskLogFile,
)
from mep.boundary.resolved_config import ManagerSection
from mep.manager.backoff import Backoff
from mep.manager.link import Link, LinkEvent
from mep.manager.outbox import Kept, Outbox
from mep.manager.recheck_schedule import Rechecks
from mep.manager.task_records import TaskRecords
from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.codec import decode_to_manager, encode
from mep_wire.errors import HelloNeeded, LinkMessageInvalid, SiteBusy, StartRequestRefused
from mep_wire.limits import HEARTBEAT_S, LINK_DEAD_S, MAX_PUBLIC_TEXT, MAX_START_REQUEST_BYTES
from mep_wire.start_request import same_process

MAX_PENDING = MAX_STARTS_OUTSTANDING
"""Most start requests that the monitor hasn't answered yet. Further ones are `unavailable` for the moment."""
GREETING_S = 15.0
"""Time limit for connecting and greeting together."""
REFUSED_RETRY_S = 300.0
"""Delay after a final refusal: an administrator has to act, and the relay may be repaired without a change here."""
CLOCK_SKEW_WARN_S = 5.0
RETRY_S = 0.2
"""Delay before retrying a message that a full queue didn't accept."""
SHUTDOWN_LINGER_MS = 500


class State(enum.StrEnum):
    """The state of the link. The values appear in `mep status`."""

    DOWN = "down"
    CONNECTING = "connecting"
    GREETING = "greeting"
    UP = "up"
    REFUSED = "refused"
    GONE = "gone"


class Manager:
    """The manager of one endpoint."""

    def __init__(self, section: ManagerSection, secret: bytes, channel: Channel, log: Log) -> None:
        self._section = section
        self._secret = secret
        self._server_key = bytes.fromhex(section.relay_link_key)
        self._channel = channel
        self._log = log
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._poller.register(channel.fileno(), zmq.POLLIN)
        self._link: Link | None = None
        self._state = State.DOWN
        self._status: LinkStatus | None = None
        self._backoff = Backoff()
        self._outbox = Outbox()
        self._epoch = b""
        self._running: dict[str, bytes] = {}
        """Id and incarnation of every user endpoint that has a process here."""
        self._running_untold = False
        self._pending: dict[int, messages.SignedStart] = {}
        self._pending_rechecks: dict[int, messages.SignedStart] = {}
        self._rechecks = Rechecks(section.recheck_interval_s)
        self._refs = itertools.count(1)
        self._links = 0
        self._records: TaskRecords | None = None
        if section.audit_tasks:
            self._records = TaskRecords(log, required=section.audit_required)
            self._poller.register(self._records.fileno(), zmq.POLLIN)
        self._deadline = 0.0  # of the state: next attempt, end of greeting, or time at which the peer counts as dead
        self._heartbeat_s = HEARTBEAT_S
        self._next_ping = 0.0
        self._ended = False

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the monitor goes away or sends Shutdown."""
        self._tell(ManagerReady(version=__version__))
        try:
            while not self._ended:
                self._poller.poll(self._wait_ms())
                self._take_channel()
                self._tell_running()
                self._take_link()
                self._answer_records()
                self._tick(time.monotonic())
        finally:
            self._close_link(SHUTDOWN_LINGER_MS)
            self._context.term()

    def _wait_ms(self) -> int:
        if not self._epoch or self._state is State.GONE:
            return -1
        wake = self._deadline
        if self._state is State.UP:
            wake = min(wake, self._next_ping, self._rechecks.next_at())
        if self._status is not None or (self._state is State.UP and self._outbox.peek() is not None):
            wake = min(wake, time.monotonic() + RETRY_S)
        return max(0, int((wake - time.monotonic()) * 1000) + 1)

    def _tick(self, now: float) -> None:
        self._flush_status()
        if not self._epoch or self._ended:
            return
        if self._state is State.UP:
            if now >= self._next_ping:
                self._next_ping = now + self._heartbeat_s
                self._send(messages.Ping(sent_at=now))
            if now < self._deadline:
                self._flush_outbox(now)
                self._ask_rechecks(now)
        if now < self._deadline or self._state is State.GONE:
            return
        if self._state in {State.DOWN, State.REFUSED}:
            self._connect(now)
        elif self._state is State.UP:
            self._lose_link(f"nothing heard for {LINK_DEAD_S:g} s", now)
        else:
            self._lose_link("no answer in time", now)

    # --- the link's life ------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        address = self._section.relay_link_address
        self._enter(State.CONNECTING, address, now + GREETING_S)
        self._links += 1
        try:
            self._link = Link(self._context, address, self._server_key, self._secret)
        except zmq.ZMQError as error:
            self._lose_link(str(error), now)
            return
        self._poller.register(self._link.socket, zmq.POLLIN)
        self._poller.register(self._link.monitor, zmq.POLLIN)

    def _close_link(self, linger_ms: int = 0) -> None:
        if self._link is None:
            return
        self._poller.unregister(self._link.socket)
        self._poller.unregister(self._link.monitor)
        self._link.close(linger_ms)
        self._link = None

    def _lose_link(self, reason: str, now: float, wait_s: float | None = None) -> None:
        self._close_link()
        self._outbox.link_lost()
        self._rechecks.link_lost()
        final = wait_s is not None
        wait = self._backoff.next_s() if wait_s is None else wait_s
        address = self._section.relay_link_address
        what = "refused this endpoint" if final else "unreachable"
        self._log.warning(f"relay {address} {what}, next try in {wait:.1f} s", reason=reason)
        detail = f"relay {address}: {reason}; next try in {wait:.0f} s"
        self._enter(State.REFUSED if final else State.DOWN, detail, now + wait)

    def _enter(self, state: State, detail: str, deadline: float) -> None:
        self._state, self._deadline = state, deadline
        self._status = LinkStatus(state=state.value, detail=clip(detail, 1024))
        self._flush_status()

    def _take_link(self) -> None:
        link = self._link
        if link is None:
            return
        for event, reason in link.events():
            if event is LinkEvent.UP:
                self._greet(time.monotonic())
            else:
                # Read the relay's last messages (the reason of a refusal) before closing.
                self._take_frames(link)
                if self._link is link:
                    self._lose_link(reason, time.monotonic())
                return
        self._take_frames(link)

    def _take_frames(self, link: Link) -> None:
        while self._link is link and (frame := link.receive()) is not None:
            try:
                message = decode_to_manager(frame)
            except LinkMessageInvalid as error:
                self._log.warning("dropped malformed message from relay", reason=error.text)
                continue
            self._take_relay_message(message, time.monotonic())

    def _greet(self, now: float) -> None:
        self._enter(State.GREETING, self._section.relay_link_address, now + GREETING_S)
        self._say_hello()

    def _say_hello(self) -> None:
        self._send(
            messages.ManagerHello(
                protocol=PROTOCOL_VERSION,
                endpoint_id=self._section.endpoint_id,
                epoch=self._epoch,
                version=__version__,
                hostname=socket.gethostname(),
                audit_tasks=self._section.audit_tasks,
            )
        )

    def _send(self, message: messages.ToRelay) -> bool:
        return self._link is not None and self._link.send(encode(message))

    def _flush_outbox(self, now: float) -> None:
        while (message := self._outbox.peek()) is not None and self._send(message):
            self._outbox.sent(now)

    def _ask_rechecks(self, now: float) -> None:
        if uep_ids := self._rechecks.take(now):
            named = [self._running.get(uep_id, b"") for uep_id in uep_ids]
            self._send(messages.Recheck(uep_ids=uep_ids, incarnations=named))

    # --- from the relay -------------------------------------------------------------------------------

    def _take_relay_message(self, message: messages.ToManager, now: float) -> None:
        if self._state is State.UP:
            self._deadline = now + LINK_DEAD_S
        match message:
            case messages.Ping():
                self._send(messages.Pong(sent_at=message.sent_at))
            case messages.Pong():
                self._outbox.proven(min(message.sent_at, now))
            case messages.ManagerWelcome():
                self._welcomed(message, now)
            case messages.SignedStart():
                self._start_endpoint(message)
            case messages.Refused():
                self._refused(message, now)
            case messages.TaskEvents():
                self._record(message)
            case messages.EndpointGone():
                self._endpoint_gone(message.text)

    def _refused(self, refused: messages.Refused, now: float) -> None:
        if refused.code == HelloNeeded.code and self._state is State.UP:
            self._log.info("the relay asks who this is: saying hello again")
            self._greet(now)
            return
        reason = f"{refused.code}: {refused.text}"
        self._lose_link(reason, now, REFUSED_RETRY_S if refused.final else None)

    def _welcomed(self, welcome: messages.ManagerWelcome, now: float) -> None:
        skew = time.time() - welcome.relay_time
        if abs(skew) > CLOCK_SKEW_WARN_S:
            self._log.warning("the clocks of relay and endpoint differ", relay_is_behind_by_s=round(skew, 1))
        if self._state is not State.UP:
            self._log.info(f"relay {self._section.relay_link_address} connected")
        self._backoff.reset()
        self._heartbeat_s = min(max(welcome.heartbeat_s, 1.0), LINK_DEAD_S / 3)
        self._next_ping = now + self._heartbeat_s
        self._enter(State.UP, f"relay {self._section.relay_link_address}", now + LINK_DEAD_S)
        self._flush_outbox(now)
        # Sent after the kept messages, so that the relay's last news is the process that runs now.
        self._running_untold = True
        self._tell_running()

    def _tell_running(self) -> None:
        """Tell the relay which processes run that it may not know of, after all earlier messages."""
        if self._running_untold and self._state is State.UP and self._outbox.peek() is None:
            running = sorted(self._running)
            named = [self._running[uep_id] for uep_id in running]
            self._running_untold = not self._send(messages.RunningUeps(uep_ids=running, incarnations=named))

    def _start_endpoint(self, start: messages.SignedStart) -> None:
        if len(start.request) > MAX_START_REQUEST_BYTES:
            error = StartRequestRefused(reason="it is too large")
            self._answer(start, Outcome.REFUSED, error.code, error.text, error.correlation_id)
            return
        ref = next(self._refs)
        if start.recheck:
            self._pass_on_recheck(ref, start)
            return
        if self._records is not None and self._records.refuse_starts:
            code, text = Refusal.AUDIT_UNAVAILABLE, public_text(Refusal.AUDIT_UNAVAILABLE)
            self._answer(start, Outcome.UNAVAILABLE, code, text, "")
            return
        if len(self._pending) + len(self._pending_rechecks) >= MAX_PENDING or not self._ask_monitor(ref, start):
            busy = SiteBusy(limit=MAX_PENDING, text="The endpoint has more start requests than it can take just now.")
            self._answer(start, Outcome.UNAVAILABLE, busy.code, busy.text, busy.correlation_id)
            return
        self._pending[ref] = msgspec.structs.replace(start, request=b"", signature=b"")
        self._log.debug("start request", uep=start.uep_id, ref=ref)

    def _pass_on_recheck(self, ref: int, start: messages.SignedStart) -> None:
        """Pass on a re-check for mapper and monitor. If that isn't possible now, the next one is passed on."""
        outstanding = len(self._pending) + len(self._pending_rechecks)
        if outstanding < MAX_PENDING and self._ask_monitor(ref, start):
            self._pending_rechecks[ref] = msgspec.structs.replace(start, request=b"", signature=b"")
        else:
            self._rechecks.answered(start.uep_id, time.monotonic(), said=False)

    def _ask_monitor(self, ref: int, start: messages.SignedStart) -> bool:
        document = msgspec.msgpack.encode([start.request, start.signature])
        descriptor = sealed_memfd("mep-start-request", document)
        try:
            return self._tell(StartEndpoint(ref=ref), [descriptor])
        finally:
            os.close(descriptor)

    def _endpoint_gone(self, text: str) -> None:
        self._log.error("the relay says that this endpoint was deleted: stopping its user endpoints", text=text)
        self._close_link()
        self._enter(State.GONE, text, float("inf"))
        if not self._tell(StopAll(reason=clip(text, 1024))):
            raise BoundaryViolation("the monitor does not read")

    def _answer(
        self, start: messages.SignedStart, outcome: str, code: str, text: str, correlation_id: str,
        incarnation: bytes = b"",
    ) -> None:  # fmt: skip
        self._keep(
            messages.StartAnswer(
                uep_id=start.uep_id,
                outcome=outcome,
                code=code,
                text=text[:MAX_PUBLIC_TEXT],
                correlation_id=correlation_id,
                asked=start.incarnation,
                incarnation=incarnation,
            )
        )

    def _keep(self, message: Kept) -> None:
        """Send the message to the relay, now or when the link is up."""
        self._outbox.add(message)
        if self._state is State.UP:
            self._flush_outbox(time.monotonic())

    # --- task records -----------------------------------------------------------------------------------

    def _record(self, message: messages.TaskEvents) -> None:
        """Write the relay's task events, if it was asked to send them."""
        if self._records is not None and (answer := self._records.take(message, self._links)):
            self._send(answer)

    def _answer_records(self) -> None:
        """Tell the relay which events have reached the disk."""
        if self._records is not None and (answer := self._records.collect(self._links)):
            self._send(answer)

    # --- from and to the monitor ------------------------------------------------------------------------

    def _tell(self, message: Message, descriptors: list[int] | None = None) -> bool:
        """Send a message to the monitor; return False if it doesn't read now."""
        try:
            self._channel.send(message, descriptors or [])
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionError):
            self._ended = True
            return False
        return True

    def _flush_status(self) -> None:
        if self._status is not None and self._tell(self._status):
            self._status = None

    def _take_channel(self) -> None:
        while not self._ended:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except ConnectionError:
                received = None
            if received is None:
                self._log.warning("the monitor is gone: ending")
                self._ended = True
                return
            self._take_monitor_message(*received)

    def _take_monitor_message(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case TaskLogFile() if self._records is not None:
                self._records.use(descriptors[0])
            case TaskLogFile():
                os.close(descriptors[0])
            case EndpointAccount():
                if self._records is not None:
                    self._records.account(message)
            case MapperEpoch():
                self._new_epoch(message.epoch)
            case EndpointRunning():
                if self._runs(message.uep_id, message.incarnation):
                    self._running_untold = True
            case RecheckNow():
                self._rechecks.all_now(time.monotonic())
            case EndpointRevoked():
                self._endpoint_revoked(message)
            case StartPlaced():
                self._start_placed(message)
            case StartAnswered():
                self._start_answered(message)
            case EndpointEnded():
                self._endpoint_ended(message)
            case Shutdown():
                self._log.info("shutting down", reason=message.reason)
                if self._state is State.UP:
                    self._flush_outbox(time.monotonic())
                self._ended = True
            case _:
                raise BoundaryViolation(f"{type(message).__name__} to the manager")

    def _new_epoch(self, epoch: bytes) -> None:
        self._epoch = epoch
        if self._state in {State.GREETING, State.UP}:
            self._say_hello()

    def _start_answered(self, answer: StartAnswered) -> None:
        if (rechecked := self._pending_rechecks.pop(answer.ref, None)) is not None:
            said = answer.outcome != Outcome.UNAVAILABLE
            if self._is_running(rechecked.uep_id, rechecked.incarnation):
                self._rechecks.answered(rechecked.uep_id, time.monotonic(), said=said)
            return
        start = self._pending.pop(answer.ref, None)
        if start is None:
            self._log.warning("unexpected StartAnswered: no pending request has this ref", ref=answer.ref)
            return
        if answer.outcome in {Outcome.STARTED, Outcome.ALREADY_RUNNING}:
            self._runs(start.uep_id, answer.incarnation)
        self._answer(start, answer.outcome, answer.code, answer.public, answer.correlation_id, answer.incarnation)

    def _start_placed(self, message: StartPlaced) -> None:
        if (start := self._pending.get(message.ref)) is not None:
            self._send(messages.StartPlaced(uep_id=start.uep_id, place=message.place, asked=start.incarnation))

    def _is_running(self, uep_id: str, incarnation: bytes) -> bool:
        """Whether this is the running process, as far as the manager knows."""
        return uep_id in self._running and same_process(self._running[uep_id], incarnation)

    def _endpoint_ended(self, ended: EndpointEnded) -> None:
        if self._is_running(ended.uep_id, ended.incarnation):
            del self._running[ended.uep_id]
            self._rechecks.remove(ended.uep_id)
        self._keep(
            messages.UepEnded(
                uep_id=ended.uep_id,
                code=ended.code,
                text=ended.public,
                correlation_id=ended.correlation_id,
                incarnation=ended.incarnation,
            )
        )

    def _endpoint_revoked(self, revoked: EndpointRevoked) -> None:
        if self._is_running(revoked.uep_id, revoked.incarnation):
            self._rechecks.remove(revoked.uep_id)
        self._keep(
            messages.UepRevoked(
                uep_id=revoked.uep_id,
                code=revoked.code,
                text=revoked.public,
                correlation_id=revoked.correlation_id,
                incarnation=revoked.incarnation,
            )
        )

    def _runs(self, uep_id: str, incarnation: bytes) -> bool:
        """Record that this process runs. Return whether that is new."""
        if self._is_running(uep_id, incarnation):
            self._running[uep_id] = self._running[uep_id] or incarnation
            return False
        self._rechecks.remove(uep_id)  # an answer to the former process's re-check doesn't apply to this one
        self._running[uep_id] = incarnation
        self._rechecks.add(uep_id, time.monotonic())
        return True
