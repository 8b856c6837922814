"""The manager's loop: one thread between the relay's link and the monitor's channel.

Trusts each side with its own messages only. A frame from the relay that can't be decoded is logged and dropped. A
message that the monitor may not send ends this process. `start_endpoint` here faces `answer_start_endpoint` in the
monitor. Called by mep/manager/main.py.
"""

from __future__ import annotations

import enum
import itertools
import math
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import zmq

from mep import __version__
from mep.boundary import fd_reserve
from mep.boundary.channel import Channel, DescriptorsLost, clip
from mep.boundary.errors import NO_SLOT, BoundaryViolation, Refusal, public_text
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
    RecheckNow,
    Shutdown,
    StartAnswered,
    StartBegun,
    StartEndpoint,
    StartOutcome,
    StartsAllowed,
    StopAll,
    StopEndpoint,
    TaskLogFile,
)
from mep.boundary.resolved_config import ManagerSection
from mep.manager.outbox import Kept, Outbox
from mep.manager.questions import Questions
from mep.manager.recheck_schedule import RecheckSchedule
from mep.manager.start_queue import StartQueue
from mep.manager.task_records import TaskRecords
from mep_link.client import LinkClient, LinkState, options
from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.codec import decode_to_manager
from mep_wire.errors import (
    HelloNeeded,
    LinkMessageInvalid,
    MepError,
    SiteBusy,
    StartRequestRefused,
    StartRequestStale,
)
from mep_wire.limits import MAX_PUBLIC_TEXT, MAX_START_REQUEST_BYTES
from mep_wire.start_request import same_process

if TYPE_CHECKING:
    from mep.manager.figures import Figures

MAX_PENDING = MAX_STARTS_OUTSTANDING
"""Most start requests that the monitor hasn't answered yet. Further ones are `unavailable` for the moment."""
MAX_INBOUND_BYTES = 1024 * 1024
"""Largest message that a relay sends to a manager, with a margin (a start request has at most 256 KiB)."""
LINK_QUEUE = 1000
"""Most messages that wait in the link's socket, each way."""
REFUSED_RETRY_S = 300.0
"""Delay after a final refusal: an administrator has to act, and the relay may be repaired without a change here."""
CLOCK_SKEW_WARN_S = 5.0
CLOCK_SKEW_REFUSED_S = 30.0
"""The default of clock_skew_s, which the mapper goes by."""
RETRY_S = 0.2
"""Delay before retrying a message that a full queue didn't accept."""
SHUTDOWN_LINGER_S = 0.5


class ManagerState(enum.StrEnum):
    """The state of the link. The values appear in `mep status`."""

    DOWN = "down"
    CONNECTING = "connecting"
    GREETING = "greeting"
    UP = "up"
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class _StartTimes:
    """When a start came from the relay, and when it was sent to the monitor, on time.monotonic."""

    came: float
    sent: float


class Manager:
    """The manager of one endpoint."""

    def __init__(
        self, section: ManagerSection, secret: bytes, channel: Channel, log: Log,
        listener: socket.socket | None = None, figures: Figures | None = None,
    ) -> None:  # fmt: skip
        """`listener` takes the administrator's questions; None: nobody asks. `figures` counts, if the site wants it."""
        self._figures = figures
        self._times: dict[int, _StartTimes] = {}
        """Of the starts in `_pending`, if figures are wanted."""
        self._section = section
        self._channel = channel
        self._log = log
        self._poller = zmq.Poller()
        self._poller.register(channel.fileno(), zmq.POLLIN)
        key = bytes.fromhex(section.relay_link_key)
        self._link = LinkClient(
            section.relay_link_address,
            options(key, secret, max_inbound_bytes=MAX_INBOUND_BYTES, queue=LINK_QUEUE),
            decode_to_manager,
            malformed=self._malformed,
        )
        self._link.hello = self._hello
        self._link_descriptors: list[int] = []
        self._losses_seen = 0
        self._refused_for_good = False
        self._state = ManagerState.DOWN
        self._detail = ""
        self._status: LinkStatus | None = None
        self._outbox = Outbox()
        self._epoch = b""
        self._running: dict[str, bytes] = {}
        """Id and incarnation of every user endpoint that has a process here."""
        self._running_untold = False
        self._queue = StartQueue(section.max_starting)
        self._pending: dict[int, messages.SignedStart] = {}
        self._pending_rechecks: dict[int, messages.SignedStart] = {}
        self._rechecks = RecheckSchedule(section.recheck_interval_s)
        self._refs = itertools.count(1)
        self._records: TaskRecords | None = None
        if section.audit_tasks:
            self._records = TaskRecords(log, required=section.audit_required)
            self._poller.register(self._records.fileno(), zmq.POLLIN)
        self._explains = False
        self._questions: Questions | None = None
        if listener is not None:
            self._questions = Questions(listener, self._watch, self._poller.unregister)
        self._ended = False

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the monitor goes away or sends Shutdown."""
        self._tell(ManagerReady(version=__version__))
        try:
            while not self._ended:
                self._register_link()
                self._poller.poll(self._wait_ms())
                self._take_channel()
                self._tell_running()
                self._take_link()
                self._answer_records()
                self._take_questions()
                self._tick(time.monotonic())
        finally:
            self._link.close(SHUTDOWN_LINGER_S)

    def _register_link(self) -> None:
        descriptors = self._link.descriptors()
        if descriptors == self._link_descriptors:
            return
        for descriptor in self._link_descriptors:
            self._poller.unregister(descriptor)
        for descriptor in descriptors:
            self._poller.register(descriptor, zmq.POLLIN)
        self._link_descriptors = descriptors

    def _wait_ms(self) -> int:
        now = time.monotonic()
        wake = self._questions.next_at() if self._questions is not None else math.inf
        if not self._epoch or self._state is ManagerState.GONE:
            return -1 if wake == math.inf else max(0, int((wake - now) * 1000) + 1)
        if self._link.pending:
            return 0
        wake = min(wake, self._link.next_deadline())
        if self._state is ManagerState.UP:
            wake = min(wake, self._rechecks.next_at())
        wake = min(wake, self._queue.next_at(now))
        if self._status is not None or (self._state is ManagerState.UP and self._outbox.peek() is not None):
            wake = min(wake, now + RETRY_S)
        return max(0, int((wake - now) * 1000) + 1)

    def _tick(self, now: float) -> None:
        self._note_present(now)
        self._flush_status()
        if not self._epoch or self._ended or self._state is ManagerState.GONE:
            return
        self._send_starts(now)
        self._link.tick()
        self._note_link()
        if self._state is ManagerState.UP:
            self._flush_outbox(now)
            self._ask_rechecks(now)

    # --- the link's life ------------------------------------------------------------------------------

    def _take_link(self) -> None:
        for message in self._link.receive():
            self._take_relay_message(message, time.monotonic())
        self._note_link()

    def _malformed(self, error: LinkMessageInvalid) -> None:
        self._log.warning("dropped malformed message from relay", reason=error.text)

    def _note_link(self) -> None:
        """Draw the conclusions from the link's state. While the relay stays away, an attempt is no news."""
        if self._state is ManagerState.GONE:
            return
        if self._link.losses != self._losses_seen:
            self._losses_seen = self._link.losses
            if self._figures is not None:
                self._figures.link_lost()
            self._link_lost()
        elif self._link.state is LinkState.GREETING:
            self._enter(ManagerState.GREETING, self._section.relay_link_address)
        elif self._link.state is LinkState.CONNECTING and not self._detail:
            self._enter(ManagerState.CONNECTING, self._section.relay_link_address)

    def _link_lost(self) -> None:
        self._outbox.link_lost()
        self._rechecks.link_lost()
        address, reason = self._section.relay_link_address, self._link.down_reason
        pause_s = math.ceil(self._link.longest_pause_s())
        state = ManagerState.REFUSED if self._refused_for_good else ManagerState.DOWN
        self._refused_for_good = False
        detail = f"relay {address}: {reason}; next try in {pause_s} s at most"
        if (state, detail) != (self._state, self._detail):
            what = "refused this endpoint" if state is ManagerState.REFUSED else "unreachable"
            self._log.warning(f"relay {address} {what}, next try in {pause_s} s at most", reason=reason)
        self._enter(state, detail)

    def _enter(self, state: ManagerState, detail: str) -> None:
        """Tell the monitor of a new state."""
        if (state, detail) != (self._state, self._detail):
            self._state, self._detail = state, detail
            self._status = LinkStatus(state=state.value, detail=clip(detail, 1024))
        self._flush_status()

    def _hello(self) -> messages.ManagerHello:
        return messages.ManagerHello(
            protocol=PROTOCOL_VERSION,
            endpoint_id=self._section.endpoint_id,
            epoch=self._epoch,
            version=__version__,
            hostname=socket.gethostname(),
            audit_tasks=self._section.audit_tasks,
            clock=time.time(),
            takes_inputs=True,
            end_users=True,
        )

    def _flush_outbox(self, now: float) -> None:
        while (message := self._outbox.peek()) is not None and self._link.send(message):
            self._outbox.sent(now)

    def _ask_rechecks(self, now: float) -> None:
        if uep_ids := self._rechecks.take(now):
            named = [self._running.get(uep_id, b"") for uep_id in uep_ids]
            self._link.send(messages.Recheck(uep_ids=uep_ids, incarnations=named))

    # --- from the relay -------------------------------------------------------------------------------

    def _take_relay_message(self, message: messages.ToManager, now: float) -> None:
        match message:
            case messages.Ping():
                pass  # the link answers
            case messages.Pong():
                self._outbox.proven(min(message.sent_at, now))
            case messages.ManagerWelcome():
                self._welcomed(message, now)
            case messages.SignedStart():
                self._start_endpoint(message)
            case messages.Refused():
                self._refused(message)
            case messages.TaskEvents():
                self._record(message)
            case messages.EndpointGone():
                self._endpoint_gone(message.text)
            case messages.StopEndpoint():
                self._log.warning("the relay says that this endpoint is to stop", text=message.text)
                self._tell(StopEndpoint(reason=clip(message.text, 1024)))
            case messages.Explained() if self._questions is not None:
                self._questions.answered(message)

    def _refused(self, refused: messages.Refused) -> None:
        if refused.code == HelloNeeded.code and self._state is ManagerState.UP:
            self._log.info("the relay asks who this is: saying hello again")
            self._link.greet()
            return
        self._refused_for_good = refused.final
        wait_s = REFUSED_RETRY_S if refused.final else None
        self._link.disconnect(f"{refused.code}: {refused.text}", wait_s=wait_s, patient=True)

    def _welcomed(self, welcome: messages.ManagerWelcome, now: float) -> None:
        detail = f"relay {self._section.relay_link_address}"
        skew = time.time() - welcome.relay_time
        if self._figures is not None:
            self._figures.present.clock_skew_s = skew
        if abs(skew) > CLOCK_SKEW_WARN_S:
            # A start request is refused as stale or as of the future once the skew is as long as it lives.
            level = "ERROR" if abs(skew) > CLOCK_SKEW_REFUSED_S else "WARNING"
            self._log.write(level, "the clocks of relay and endpoint differ", relay_is_behind_by_s=round(skew, 1))
            refused = ", and starts are refused" if level == "ERROR" else ""
            detail += (
                f"; the clocks differ by {abs(skew):.0f} s{refused}: correct the clock of this host or the relay's"
            )
        if self._state is not ManagerState.UP:
            self._log.info(f"relay {self._section.relay_link_address} connected")
        self._explains = welcome.explains
        self._enter(ManagerState.UP, detail)
        self._flush_outbox(now)
        # Sent after the kept messages, so that the relay's last news is the process that runs now.
        self._running_untold = True
        self._tell_running()

    def _tell_running(self) -> None:
        """Tell the relay which processes run that it may not know of, after all earlier messages."""
        if self._running_untold and self._state is ManagerState.UP and self._outbox.peek() is None:
            running = sorted(self._running)
            named = [self._running[uep_id] for uep_id in running]
            self._running_untold = not self._link.send(messages.RunningUeps(uep_ids=running, incarnations=named))

    def _start_endpoint(self, start: messages.SignedStart) -> None:
        if len(start.request) > MAX_START_REQUEST_BYTES:
            error = StartRequestRefused(reason="it is too large")
            self._log_own_answer(start, error)
            self._answer(start, StartOutcome.REFUSED, error.code, error.text, error.correlation_id)
            return
        if start.recheck:
            self._pass_on_recheck(next(self._refs), start)
            return
        if self._records is not None and self._records.refuse_starts:
            code, text = Refusal.AUDIT_UNAVAILABLE, public_text(Refusal.AUDIT_UNAVAILABLE)
            self._answer(start, StartOutcome.UNAVAILABLE, code, text, "")
            return
        if start.uep_id in self._running:
            self._send_start(start)  # begins nothing
        elif len(self._queue) >= MAX_PENDING:
            self._answer_busy(start, "The endpoint has more start requests than it can take at the moment.")
        else:
            self._queue.add(start, time.monotonic())
            self._send_starts(time.monotonic())

    def _send_starts(self, now: float) -> None:
        """Send the monitor the starts that are next, and tell the others their positions."""
        while (chosen := self._queue.take(now)) is not None:
            if (ref := self._send_start(chosen.start, chosen.since)) is not None:
                self._queue.sent(ref, chosen, now)
        for start in self._queue.overdue(now):
            self._answer_busy(start, NO_SLOT.format(limit=self._section.max_starting))
        for start, position in self._queue.positions(now):
            self._link.send(messages.StartQueued(uep_id=start.uep_id, position=position, asked=start.incarnation))

    def _send_start(self, start: messages.SignedStart, since: float | None = None) -> int | None:
        """Send the monitor a start and return its number, or answer that this isn't possible now."""
        ref = next(self._refs)
        outstanding = len(self._pending) + len(self._pending_rechecks)
        if outstanding >= MAX_PENDING or fd_reserve.is_touched() or not self._ask_monitor(ref, start):
            self._answer_busy(start, "The endpoint has more start requests than it can take at the moment.")
            return None
        self._pending[ref] = msgspec.structs.replace(start, request=b"", signature=b"")
        if self._figures is not None:
            now = time.monotonic()
            self._times[ref] = _StartTimes(now if since is None else since, now)
            self._figures.sent(now - self._times[ref].came)
        self._log.debug("start request", uep=start.uep_id, ref=ref)
        return ref

    def _answer_busy(self, start: messages.SignedStart, text: str) -> None:
        busy = SiteBusy(limit=self._section.max_starting, text=text)
        if self._figures is not None:
            self._figures.started(StartOutcome.UNAVAILABLE, busy.code, "", 0.0)
        self._log_own_answer(start, busy)
        self._answer(start, StartOutcome.UNAVAILABLE, busy.code, busy.text, busy.correlation_id)

    def _log_own_answer(self, start: messages.SignedStart, error: MepError) -> None:
        """Log a start that the monitor never saw: no other log has its correlation id."""
        self._log.warning(
            "start not passed on", code=error.code, uep=start.uep_id, correlation_id=error.correlation_id,
            reason=error.text,
        )  # fmt: skip

    def _pass_on_recheck(self, ref: int, start: messages.SignedStart) -> None:
        """Pass on a re-check for mapper and monitor. If that isn't possible now, the next one is passed on."""
        outstanding = len(self._pending) + len(self._pending_rechecks)
        if outstanding < MAX_PENDING and self._ask_monitor(ref, start):
            self._pending_rechecks[ref] = msgspec.structs.replace(start, request=b"", signature=b"")
        else:
            self._rechecks.answered(start.uep_id, time.monotonic(), said=False)

    def _ask_monitor(self, ref: int, start: messages.SignedStart) -> bool:
        document = msgspec.msgpack.encode([start.request, start.signature])
        try:
            descriptor = sealed_memfd("mep-start-request", document)
        except OSError as error:
            self._log.error("a start request cannot be passed on", uep=start.uep_id, error=error.strerror)
            return False
        try:
            return self._tell(StartEndpoint(ref=ref), [descriptor])
        finally:
            os.close(descriptor)

    def _endpoint_gone(self, text: str) -> None:
        self._log.error("the relay says that this endpoint was deleted: stopping its user endpoints", text=text)
        self._link.hang_up()
        self._queue.clear()
        self._enter(ManagerState.GONE, text)
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
        if self._state is ManagerState.UP:
            self._flush_outbox(time.monotonic())

    # --- the administrator's questions ------------------------------------------------------------------

    def _watch(self, descriptor: int, writing: bool) -> None:
        self._poller.register(descriptor, zmq.POLLOUT if writing else zmq.POLLIN)

    def _take_questions(self) -> None:
        if self._questions is not None:
            now = time.monotonic()
            self._questions.take(now, self._ask_relay)
            self._questions.tick(now)

    def _ask_relay(self, about: str) -> int | str:
        """Ask the relay about a start or a task; return the question's number, or why that is not possible."""
        if self._state is not ManagerState.UP:
            return f"the relay's link is {self._state.value}: {self._detail}"
        if not self._explains:
            return "the relay is of an earlier version, which tells nothing"
        ref = next(self._refs)
        if not self._link.send(messages.Explain(ref=ref, about=about)):
            return "the relay's link takes no message just now"
        return ref

    # --- task records -----------------------------------------------------------------------------------

    def _record(self, message: messages.TaskEvents) -> None:
        """Write the relay's task events, if it was asked to send them."""
        if self._records is not None and (answer := self._records.take(message, self._link.connections)):
            self._link.send(answer)

    def _answer_records(self) -> None:
        """Tell the relay which events have reached the disk."""
        if self._records is not None and (answer := self._records.collect(self._link.connections)):
            self._link.send(answer)

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
            except DescriptorsLost as lost:
                # Its successor begins with few, and is sent them again.
                self._log.error("ending, to be started again", reason=str(lost))
                self._ended = True
                return
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
            case StartsAllowed():
                if self._state is ManagerState.UP:
                    self._link.greet()
            case RecheckNow():
                self._rechecks.all_now(time.monotonic())
            case EndpointRevoked():
                self._endpoint_revoked(message)
            case StartBegun():
                self._queue.begun(message.ref)
                self._note_begun(message.ref)
            case StartAnswered():
                self._start_answered(message)
            case EndpointEnded():
                self._endpoint_ended(message)
            case Shutdown():
                self._log.info("shutting down", reason=message.reason)
                if self._state is ManagerState.UP:
                    self._flush_outbox(time.monotonic())
                self._ended = True
            case _:
                raise BoundaryViolation(f"{type(message).__name__} to the manager")

    def _new_epoch(self, epoch: bytes) -> None:
        self._epoch = epoch
        stale = StartRequestStale(reason="it was signed before this endpoint's last start")
        for start in self._queue.clear():
            self._log_own_answer(start, stale)
            self._answer(start, StartOutcome.UNAVAILABLE, stale.code, stale.text, stale.correlation_id)
        if self._state in {ManagerState.GREETING, ManagerState.UP}:
            self._link.greet()

    def _start_answered(self, answer: StartAnswered) -> None:
        if (rechecked := self._pending_rechecks.pop(answer.ref, None)) is not None:
            said = answer.outcome != StartOutcome.UNAVAILABLE
            if self._is_running(rechecked.uep_id, rechecked.incarnation):
                self._rechecks.answered(rechecked.uep_id, time.monotonic(), said=said)
            return
        start = self._pending.pop(answer.ref, None)
        self._queue.answered(answer.ref)
        self._note_answered(answer)
        if start is None:
            self._log.warning("unexpected StartAnswered: no pending request has this ref", ref=answer.ref)
            return
        if answer.outcome in {StartOutcome.STARTED, StartOutcome.ALREADY_RUNNING}:
            self._runs(start.uep_id, answer.incarnation)
        self._log.debug(
            "start answered", uep=start.uep_id, outcome=answer.outcome, code=answer.code,
            correlation_id=answer.correlation_id,
        )  # fmt: skip
        # The mapper takes a request once. The relay signs another, which is queued again here.
        outcome = StartOutcome.UNAVAILABLE if answer.outcome == StartOutcome.TRY_LATER else answer.outcome
        self._answer(start, outcome, answer.code, answer.public, answer.correlation_id, answer.incarnation)

    def _is_running(self, uep_id: str, incarnation: bytes) -> bool:
        """Whether this is the running process, as far as the manager knows."""
        return uep_id in self._running and same_process(self._running[uep_id], incarnation)

    def _note_begun(self, ref: int) -> None:
        if self._figures is not None and (times := self._times.get(ref)) is not None:
            self._figures.mapped(time.monotonic() - times.sent)

    def _note_answered(self, answer: StartAnswered) -> None:
        if self._figures is not None and (times := self._times.pop(answer.ref, None)) is not None:
            self._figures.started(answer.outcome, answer.code, answer.stage, time.monotonic() - times.came)

    def _note_present(self, now: float) -> None:
        """Update the values of this moment."""
        if self._figures is not None:
            present = self._figures.present
            present.link_up = self._state is ManagerState.UP
            present.running, present.queued = len(self._running), len(self._queue)
            present.oldest_queued_s = self._queue.oldest_s(now)
            present.outstanding, present.outbox = len(self._pending), len(self._outbox)

    def _endpoint_ended(self, ended: EndpointEnded) -> None:
        if self._figures is not None:
            self._figures.ended(ended.code)
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
