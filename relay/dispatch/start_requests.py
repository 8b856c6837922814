"""Has user endpoints started: asks their manager, waits for answer and join, and tries again with back-off.

One request in flight per user endpoint, `MAX_UNDER_WAY` per endpoint, half of that per account. While the manager
is offline nothing is sent; its next hello triggers pending starts. The relay decides here only whether to ask
again. The endpoint decides who may run under which account.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable

from mep_wire import codec
from mep_wire.errors import (
    IdentityRemapped,
    MappingUnconfirmed,
    MepError,
    PersonLimit,
    SiteBusy,
    StartRequestRefused,
    StartRequestStale,
    StartTimeout,
    UserEndpointLost,
    UserEndpointSilent,
    rebuild,
)
from mep_wire.identity import IdentitySet
from mep_wire.limits import MAX_PUBLIC_TEXT, START_REQUEST_LIFETIME_S
from mep_wire.messages import CancelTasks, StartAnswer, StartQueued, StopUep, UepEnded
from mep_wire.start_request import same_process
from mep_wire.states import TaskState, UepState
from mep_wire.text import printable
from mep_wire.waits import Wait
from relay.dispatch.live_state import LiveState, ManagerLink, Uep
from relay.dispatch.start_signing import MadeStart, Signer, make_recheck, make_start
from relay.dispatch.start_trouble import TRANSIENT, sentence
from relay.dispatch.task_delivery import TaskDelivery
from relay.dispatch.task_transitions import requeue
from relay.dispatch.wait_reasons import wait_of
from relay.log import peer_log
from relay.store.base import Tx
from relay.store.records import TaskRef

MAX_POSITION = 1_000_000
MAX_UNDER_WAY = 32
"""Start requests that one endpoint has unanswered or unjoined at once."""
FIRST_RETRY_S = 0.25
MAX_RETRY_S = 60.0
MAX_SILENT_STARTS = 3
"""Starts in a row that were answered and never joined, or not answered, before the waiting tasks fail."""
MAX_UNJOINED_S = 600
"""How long tasks wait for a process that its manager says runs and that has no link."""
_FULL = frozenset({SiteBusy.code, PersonLimit.code})
_NOT_RUNNING = frozenset({UepState.ABSENT, UepState.DISCONNECTED})


class StartRequester:
    """Start requests: when to send them, and how to handle their answers."""

    def __init__(self, live: LiveState, delivery: TaskDelivery, key: Signer) -> None:
        self._live, self._delivery, self._key = live, delivery, key
        self.over: Callable[[Uep], None] = lambda _uep: None
        """Called when a start has come to nothing: what was told of its last process may be acted upon."""

    def want(self, uep: Uep) -> None:
        """Ask for this user endpoint if it has tasks, no link, no start under way, and may be asked for now."""
        if uep.needed:
            self._live.keep(uep)
            uep.asked_since = uep.asked_since or time.time()
        link = self._live.managers.get(uep.record.endpoint_id)
        if link is None or not uep.needed or uep.state not in _NOT_RUNNING or uep.starting or uep.timer is not None:
            return
        if not self._has_room(uep):
            return
        uep.starting, uep.start_answered = True, False
        self._live.run(self._ask(uep, link))

    def want_all(self, endpoint_id: str, *, at_once: bool) -> None:
        """Ask for whatever waits at this endpoint; `at_once` does not wait for back-off."""
        for uep in self._live.of_endpoint(endpoint_id):
            if at_once and not uep.starting and uep.state in _NOT_RUNNING:
                uep.set_timer(None)
            self.want(uep)

    def _has_room(self, uep: Uep) -> bool:
        """Whether one more start may be in flight there: no account holds more than half, or the last besides another.

        One account's slow or hanging starts therefore don't block other people's.
        """
        under_way = [one.record.account_id for one in self._live.of_endpoint(uep.record.endpoint_id) if one.starting]
        own, free = under_way.count(uep.record.account_id), MAX_UNDER_WAY - len(under_way)
        return free > 0 and own < (MAX_UNDER_WAY // 2 if free > 1 else 1)

    async def _ask(self, uep: Uep, link: ManagerLink) -> None:
        done = False
        try:
            await self._request(uep, link)
            done = True
        finally:
            if (
                not done and uep.starting
            ):  # whatever it was: its start slot must not be lost, nor its tasks wait for ever
                self._again_later(uep)

    async def _request(self, uep: Uep, link: ManagerLink) -> None:
        made = self._make(uep, link)
        if made is None:
            await self._refuse(uep, StartRequestRefused(reason="the relay cannot make the request"))
            return

        def store(tx: Tx) -> list[TaskRef]:
            tx.add_join(uep.row, made.join_hash, made.join_expires_at, time.time())
            return tx.queued_refs(uep.row, 1)

        waiting = await self._live.submit_retrying(store)
        if uep.state not in _NOT_RUNNING or self._live.managers.get(link.endpoint_id) is not link:
            uep.starting = False
            self.want(uep)
            return
        uep.go(UepState.STARTING)
        uep.queue_position, uep.queued_since = 0, 0.0
        uep.asked, uep.answered = made.incarnation, b""
        uep.correlation_id = made.correlation_id
        self._live.tell(uep, "INFO", f"start of {uep.record.uep_id} asked of the endpoint")
        uep.set_timer(self._live.loop.call_later(START_REQUEST_LIFETIME_S, self._overdue, uep))
        self._live.link_.send(link.peer, codec.encode(made.message))
        # From a task's id, which the person knows, to the start's, which is in the endpoint's logs.
        task = str(uuid.UUID(bytes=waiting[0].task_id)) if waiting else ""
        peer_log.info(
            "start requested", uep=uep.record.uep_id, endpoint=link.endpoint_id,
            correlation_id=made.correlation_id, task=task,
        )  # fmt: skip

    def _make(self, uep: Uep, link: ManagerLink) -> MadeStart | None:
        record = self._live.store.uep(uep.record.uep_id) or uep.record  # its account may have been linked
        endpoint = self._live.store.endpoint(record.endpoint_id)
        identities = self._live.store.identity_set(record.account_id, record.identity_id)
        if endpoint is None or identities is None:
            peer_log.error("start: its endpoint or its account is gone", uep=record.uep_id)
            return None
        try:
            return make_start(
                self._key, record, identities, endpoint.unseal_key, link.epoch, time.time(),
                end_users=link.end_users,
            )  # fmt: skip
        except (ValueError, OverflowError) as error:
            peer_log.error("start cannot be requested", uep=record.uep_id, reason=error)
            return None

    def say_who(self, link: ManagerLink, processes: Iterable[tuple[str, bytes]]) -> None:
        """Tell a manager who owns its user endpoints now: an empty identity set if the relay account is gone.

        `processes`: id and incarnation of each.
        """
        for uep_id, incarnation in processes:
            record = self._live.store.uep(uep_id)
            if record is None or record.endpoint_id != link.endpoint_id:
                continue
            identities = self._live.store.identity_set(record.account_id, record.identity_id)
            identities = identities or IdentitySet(record.account_id, ())
            try:
                message = make_recheck(
                    self._key, record, identities, link.epoch, time.time(), incarnation, end_users=link.end_users
                )
            except (ValueError, OverflowError) as error:
                peer_log.error("re-check cannot be requested", uep=uep_id, reason=error)
                continue
            self._live.link_.send(link.peer, codec.encode(message))

    # --- answers ----------------------------------------------------------------------------------

    def answered(self, link: ManagerLink, answer: StartAnswer) -> None:
        """The manager reports the outcome of a start request."""
        uep = self._live.ueps.get(answer.uep_id)
        if uep is not None and not same_process(answer.asked, uep.asked):
            peer_log.info("start: an answer to an earlier request was dropped", uep=uep.record.uep_id)
            return
        if answer.outcome in ("started", "already_running") and self._is_at(link, uep, answer.uep_id):
            link.running[answer.uep_id] = answer.incarnation
        if uep is None or uep.record.endpoint_id != link.endpoint_id or uep.state is not UepState.STARTING:
            return  # joined before its answer came, or an answer to something long given up
        if answer.code != uep.last_code or not uep.last_text:
            uep.answered_since = time.time()
        uep.last_code, uep.last_text = answer.code, printable(answer.text[:MAX_PUBLIC_TEXT])
        self._tell_answer(uep, answer)
        if answer.outcome == "started":
            uep.start_answered, uep.answered, uep.unjoined_since = True, answer.incarnation, 0.0
            return  # its join ends the wait, or the deadline does
        if answer.code in TRANSIENT:
            self._interrupted(uep, answer)
            return
        if answer.outcome == "refused":
            error = rebuild(answer.code[:64], answer.text[:MAX_PUBLIC_TEXT], answer.correlation_id[:64] or None)
            self._live.run(self._refuse(uep, error))
            return
        log = peer_log.info if answer.outcome == "already_running" else peer_log.warning
        log(
            "start answered", uep=answer.uep_id, outcome=answer.outcome, code=answer.code,
            correlation_id=answer.correlation_id[:64],
        )  # fmt: skip
        if answer.outcome == "already_running" and self._is_long_unjoined(uep):
            self._live.run(self._refuse(uep, UserEndpointSilent(seconds=MAX_UNJOINED_S)))
            return
        if answer.code == PersonLimit.code:
            self._make_room(uep)
        self._again_later(uep, at_once=answer.code == StartRequestStale.code and uep.attempts == 0)

    def _tell_answer(self, uep: Uep, answer: StartAnswer) -> None:
        level = "INFO" if answer.outcome in ("started", "already_running") else "WARNING"
        said = f" code={answer.code[:64]} {uep.last_text}" if answer.code else ""
        self._live.tell(uep, level, f"start answered: {answer.outcome[:32]}{said}", answer.correlation_id)

    def _make_room(self, uep: Uep) -> None:
        """The person has as many user endpoints there as the site allows: end the least recently used idle one.

        At most one for each of theirs that waits for room. Where all are in use, the tasks wait.
        """
        own = [
            one
            for one in self._live.of_endpoint(uep.record.endpoint_id)
            if one.record.account_id == uep.record.account_id and one is not uep
        ]
        ending = sum(one.ends_for_room for one in own)
        waiting = 1 + sum(one.needed and one.last_code == PersonLimit.code for one in own)
        idle = [
            one
            for one in own
            if one.state is UepState.ONLINE and not one.needed and not self._live.store.has_active(one.row)
        ]
        if ending >= waiting or not idle:
            return
        chosen = min(idle, key=lambda one: one.used_at)
        text = "idle, and its person needs the room for another user endpoint"
        if chosen.peer is None or not self._live.link_.send(chosen.peer, codec.encode(StopUep(code="IDLE", text=text))):
            return
        chosen.go(UepState.DRAINING)
        chosen.ends_for_room = True
        peer_log.info(
            "user endpoint ends, so that another can start", uep=chosen.record.uep_id, other=uep.record.uep_id
        )
        self._live.tell(chosen, "INFO", f"it was told to end, so that {uep.record.uep_id} can start")
        self._live.tell(uep, "INFO", f"{chosen.record.uep_id} of the same person, idle, was told to end for it")

    def _is_at(self, link: ManagerLink, uep: Uep | None, uep_id: str) -> bool:
        """Whether there is a user endpoint of this id at that endpoint: a manager may invent any number of ids."""
        record = uep.record if uep is not None else self._live.store.uep(uep_id)
        return record is not None and record.endpoint_id == link.endpoint_id

    def _interrupted(self, uep: Uep, answer: StartAnswer) -> None:
        """The process was lost while it started: have another one started after a pause, for as long as tasks wait."""
        now = self._live.loop.time()
        peer_log.warning(
            "start not made",
            uep=answer.uep_id,
            code=answer.code,
            reason=answer.text,
            correlation_id=answer.correlation_id[:64],
        )
        if not uep.trouble.note(now, sentence(uep.last_text), answer.code):
            self._again_later(uep, delay=uep.trouble.pause(first_at_once=False))
            return
        text = uep.trouble.so_far(now)[:MAX_PUBLIC_TEXT]
        uep.trouble.over()
        self._live.run(self._refuse(uep, rebuild(answer.code[:64], text, answer.correlation_id[:64] or None)))

    def placed(self, link: ManagerLink, message: StartQueued) -> None:
        """The manager says that a start waits for others, and its position in the queue."""
        uep = self._live.ueps.get(message.uep_id)
        if uep is None or uep.record.endpoint_id != link.endpoint_id or not same_process(message.asked, uep.asked):
            return
        if uep.state is UepState.STARTING:
            uep.queue_position = max(0, min(message.position, MAX_POSITION))
            uep.queued_since = uep.queued_since or time.time()

    def why_waiting(self, uep_row: int, state: TaskState) -> Wait | None:
        """Return, for the person, why a task of this user endpoint waits in `state`; None where it is not known."""
        uep = self._live.by_row.get(uep_row)
        return None if uep is None else wait_of(self._live, uep, state, self._has_room)

    def _is_long_unjoined(self, uep: Uep) -> bool:
        """Note that it runs without a link, and whether it has for longer than tasks are to wait for one."""
        now = self._live.loop.time()
        uep.unjoined_since = uep.unjoined_since or now
        return now - uep.unjoined_since >= MAX_UNJOINED_S

    def _again_later(self, uep: Uep, *, at_once: bool = False, delay: float | None = None) -> None:
        """Give this try up and set the time of the next, `delay` seconds from now if that is given."""
        if uep.state is UepState.STARTING:
            uep.go(UepState.ABSENT)
        uep.starting = False
        if delay is None:
            delay = min(MAX_RETRY_S, FIRST_RETRY_S * 2**uep.attempts) * random.uniform(0.8, 1.2)  # noqa: S311
            delay = 0.0 if at_once else delay
            uep.attempts = min(uep.attempts + 1, 16)
        uep.set_timer(self._live.loop.call_later(delay, self._timer_up, uep))
        self.want_all(uep.record.endpoint_id, at_once=False)
        self.over(uep)

    def _timer_up(self, uep: Uep) -> None:
        uep.timer = None
        self.want(uep)
        self._live.forget_idle(uep)

    def _overdue(self, uep: Uep) -> None:
        """The deadline of a start has passed without a join."""
        uep.timer = None
        if uep.state is not UepState.STARTING:
            return
        peer_log.warning("start: no join in time", uep=uep.record.uep_id, seconds=START_REQUEST_LIFETIME_S)
        self._live.tell(uep, "WARNING", f"no join within {START_REQUEST_LIFETIME_S:g} s")
        if uep.attempts + 1 >= MAX_SILENT_STARTS and uep.record.endpoint_id in self._live.managers:
            self._live.run(self._refuse(uep, StartTimeout(seconds=START_REQUEST_LIFETIME_S * MAX_SILENT_STARTS)))
        else:
            self._again_later(uep)

    async def _refuse(self, uep: Uep, error: MepError) -> None:
        """The start will not be: the tasks that wait for it fail with the reason."""
        peer_log.warning("start refused", uep=uep.record.uep_id, code=error.code, reason=error)
        self._live.tell(
            uep, "ERROR", f"start refused, its tasks fail: code={error.code} {error.text}", error.correlation_id
        )
        uep.set_timer(None)
        given_up = False
        try:
            await self._give_up(uep, error)
            given_up = True
        finally:
            if not given_up:
                self._again_later(uep)
        if uep.state is UepState.STARTING:
            uep.go(UepState.ABSENT)
        uep.starting, uep.attempts, uep.unjoined_since, uep.last_text = False, 0, 0.0, ""
        uep.asked_since = uep.queued_since = 0.0
        self.want_all(uep.record.endpoint_id, at_once=False)
        self.over(uep)
        self._live.forget_idle(uep)

    async def _give_up(self, uep: Uep, error: MepError) -> None:
        """Fail waiting tasks, and those of a process that is gone: its spool will not be read."""
        if uep.unsettled:
            await self._delivery.end_sent(uep, error)
            uep.unsettled = False
        await self._delivery.end_queue(uep, error)

    async def revoke(self, uep: Uep, error: MepError) -> None:
        """Its owner is no longer authorized: its tasks end with that reason, not with that of its process's end.

        If the owner now maps to another account, waiting tasks can run there. If the owner's mapping could not be
        determined, it is requested again for the waiting tasks.
        """
        if uep.state is UepState.ONLINE:
            uep.go(UepState.DRAINING)
        uep.credit = 0
        self._delivery.flush_started()
        may_start_again = error.code in {IdentityRemapped.code, MappingUnconfirmed.code}
        rows = await self._live.submit_retrying(lambda tx: tx.running_rows(uep.row))
        await self._delivery.fail_rows(uep, rows, error)
        if uep.peer is not None and rows:  # so that its end need not wait for them
            self._live.link_.send(uep.peer, codec.encode(CancelTasks(rows=rows)))
        if not may_start_again:
            self._delivery.requeued(uep, await self._live.submit_retrying(lambda tx: requeue(tx, uep.row, None)))
            await self._delivery.end_queue(uep, error)
        uep.unsettled = uep.unsettled and self._live.store.has_active(uep.row)

    # --- other ends of a start --------------------------------------------------------------------

    def joined(self, uep: Uep) -> None:
        """Its link is up: the start, if there was one, is done."""
        uep.set_timer(None)
        uep.starting, uep.attempts, uep.unjoined_since, uep.last_text = False, 0, 0.0, ""
        uep.asked_since = uep.queued_since = 0.0
        self.want_all(uep.record.endpoint_id, at_once=False)

    async def died_unjoined(self, uep: Uep, message: UepEnded) -> None:
        """A process ended before it joined."""
        uep.set_timer(None)
        if uep.state is UepState.STARTING:
            uep.go(UepState.ABSENT)
        uep.starting = False
        try:
            await self.count_loss(uep, message.code, message.text)
        finally:
            self.want(uep)

    async def count_loss(self, uep: Uep, code: str, text: str) -> None:
        """A process that had joined was lost: the next is asked for at once, those after it after growing pauses."""
        self._live.tell(uep, "WARNING", f"its process was lost: code={code[:64]} {text}")
        now = self._live.loop.time()
        if uep.trouble.note(now, sentence(text or code), code or UserEndpointLost.code):
            reason = uep.trouble.so_far(now)[:MAX_PUBLIC_TEXT]
            uep.trouble.over()
            await self._give_up(uep, UserEndpointLost(reason=reason))
        elif not uep.starting and uep.state is UepState.ABSENT:
            pause = uep.trouble.pause(first_at_once=True)
            uep.set_timer(self._live.loop.call_later(pause, self._timer_up, uep) if pause else None)

    def room(self, endpoint_id: str) -> None:
        """A process ended at this endpoint: those that were refused for lack of room may be asked for again."""
        for uep in self._live.of_endpoint(endpoint_id):
            if uep.last_code in _FULL and not uep.starting:
                uep.set_timer(None)
                self.want(uep)

    def manager_gone(self, endpoint_id: str) -> None:
        """Starts requested from a manager that lost its link: they may still join; requested again at its hello."""
        for uep in self._live.of_endpoint(endpoint_id):
            if uep.state is UepState.STARTING:
                uep.set_timer(None)
                uep.go(UepState.ABSENT)
                uep.starting = False
