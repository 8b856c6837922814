"""Handles managers' messages on the endpoint link: running user endpoints, results of starts, ended processes."""

from __future__ import annotations

import asyncio
import hmac
import time

from mep_wire import codec, messages
from mep_wire.errors import REVOCATIONS, EndpointDeleted, LinkForbidden, MepError, rebuild
from mep_wire.limits import HEARTBEAT_S, MAX_PUBLIC_TEXT, MAX_RECHECKS
from mep_wire.start_request import same_process
from relay.dispatch.live_state import LiveState, ManagerLink, Uep, durable
from relay.dispatch.process_loss import ProcessLoss
from relay.dispatch.start_requests import StartRequester
from relay.dispatch.stories import MAX_ABOUT, Explainer
from relay.dispatch.task_delivery import MAX_TIME
from relay.link.base import Peer
from relay.log import peer_log

CLOCK_SKEW_WARN_S = 5.0
"""Difference of clocks that is worth a warning: a start request lives for a minute."""
SETTLE_S = 0.5
"""How long after the news of a process's end its last results may still arrive on its own link."""

MAX_QUESTIONS = 64
"""Questions of one manager that wait for their answers: an honest one has eight clients, each for ten seconds."""
QUESTION_PAUSE_S = 0.02
"""Pause before its next question is answered."""


class ManagerHandlers:
    """Handlers of managers' messages."""

    def __init__(self, live: LiveState, starts: StartRequester, endings: ProcessLoss) -> None:
        self._live, self._starts, self._process_loss = live, starts, endings
        self._explainer = Explainer(live.store, live.stories)

    def hello(self, peer: Peer, message: messages.ManagerHello) -> None:
        """A manager's link is up, or its mapper's epoch changed. Raises LinkForbidden."""
        live = self._live
        endpoint = live.store.endpoint(message.endpoint_id)
        if endpoint is None or not hmac.compare_digest(endpoint.link_key, peer.key):
            raise LinkForbidden(what=f"endpoint {message.endpoint_id[:64]!r}")
        if endpoint.deleted_at:
            error = EndpointDeleted(endpoint_id=endpoint.endpoint_id)
            live.link_.send(peer, codec.encode(messages.EndpointGone(text=error.text)))
            return
        link = live.managers.get(message.endpoint_id)
        if link is None or link.peer is not peer:
            if link is not None:  # an older link of the same manager
                self._starts.manager_gone(message.endpoint_id)
                link.peer.session = None
                live.link_.drop(link.peer)
            link = live.managers[message.endpoint_id] = ManagerLink(
                endpoint_id=message.endpoint_id, peer=peer, epoch=message.epoch
            )
            peer_log.info("manager is here", endpoint=message.endpoint_id)
            live.stories.note(message.endpoint_id, "INFO", "the endpoint's manager is here")
            live.away_since.pop(message.endpoint_id, None)
            self._compare_clocks(link, message.clock)
        link.epoch, peer.session = message.epoch, link
        link.takes_inputs, link.end_users = message.takes_inputs, message.end_users
        welcome = messages.ManagerWelcome(relay_time=time.time(), heartbeat_s=HEARTBEAT_S, explains=True)
        live.link_.send(peer, codec.encode(welcome))
        self._starts.want_all(message.endpoint_id, at_once=True)

    def _compare_clocks(self, link: ManagerLink, theirs: float) -> None:
        """Say so where the clocks differ by so much that start requests look stale there, or soon will."""
        link.skew_s = theirs - time.time() if 0.0 < theirs < MAX_TIME else 0.0
        if abs(link.skew_s) > CLOCK_SKEW_WARN_S:
            which = "ahead of" if link.skew_s > 0 else "behind"
            seconds = round(abs(link.skew_s))
            peer_log.warning(f"endpoint: its clock is {which} the relay's", endpoint=link.endpoint_id, seconds=seconds)
            text = f"the endpoint's clock is {seconds} s {which} the relay's"
            self._live.stories.note(link.endpoint_id, "WARNING", text)

    def gone(self, link: ManagerLink, reason: str) -> None:
        """A manager's link is down."""
        if self._live.managers.get(link.endpoint_id) is link:
            del self._live.managers[link.endpoint_id]
            self._starts.manager_gone(link.endpoint_id)
            self._live.away_since[link.endpoint_id] = time.time()
            peer_log.info("manager is away", endpoint=link.endpoint_id, reason=reason)
            self._live.stories.note(link.endpoint_id, "WARNING", f"the endpoint's manager is away: {reason}")

    def start_answer(self, link: ManagerLink, message: messages.StartAnswer) -> None:
        """The outcome of a start request."""
        self._starts.answered(link, message)

    def start_placed(self, link: ManagerLink, message: messages.StartQueued) -> None:
        """A start request waits for others."""
        self._starts.placed(link, message)

    def running(self, link: ManagerLink, message: messages.RunningUeps) -> None:
        """Every user endpoint that has a process there: those that should and do not have ended."""
        link.running, link.reported = dict(_processes(message)), True
        for uep in self._live.of_endpoint(link.endpoint_id):
            self._process_loss.end_if_exited(uep)

    def uep_ended(self, link: ManagerLink, message: messages.UepEnded) -> None:
        """A user endpoint's process has ended."""
        if same_process(link.running.get(message.uep_id, b""), message.incarnation):
            link.running.pop(message.uep_id, None)
        uep = self._own(link, message.uep_id)
        if uep is not None and self._is_of_now(uep, message):
            log = peer_log.info if message.code in ("", "IDLE", "STOPPED") else peer_log.warning
            correlation_id = message.correlation_id[:64]
            log("user endpoint ended", uep=message.uep_id, code=message.code, correlation_id=correlation_id)
            level = "INFO" if message.code in ("", "IDLE", "STOPPED") else "WARNING"
            self._live.tell(
                uep, level, f"its process ended: code={message.code[:64]} {message.text}", message.correlation_id
            )
            self._live.run(self._process_ended(uep, message, uep.record.link_key))
        self._starts.room(link.endpoint_id)

    def _own(self, link: ManagerLink, uep_id: str) -> Uep | None:
        """Return the user endpoint with this id, None where it is not one of the manager's."""
        record = self._live.store.uep(uep_id)
        return self._live.uep(record) if record is not None and record.endpoint_id == link.endpoint_id else None

    def _is_of_now(self, uep: Uep, message: messages.UepEnded | messages.UepRevoked) -> bool:
        """Whether a manager's message is about the process that joined last or is being started. The manager repeats
        unconfirmed messages, and another process may have followed the one that the message is about."""
        said = message.incarnation
        if uep.has_joined(said) or uep.is_starting(said) or not said:
            return True
        peer_log.info(
            "user endpoint: a message about an earlier process was dropped",
            uep=uep.record.uep_id,
            message=type(message).__name__,
            code=message.code,
        )
        self._live.forget_idle(uep)
        return False

    def uep_revoked(self, link: ManagerLink, message: messages.UepRevoked) -> None:
        """A user endpoint is being ended: its person may not have it any more."""
        uep = self._own(link, message.uep_id) if message.code in REVOCATIONS else None
        if uep is not None and self._is_of_now(uep, message):
            peer_log.info("user endpoint is revoked", uep=message.uep_id, code=message.code)
            self._live.tell(
                uep, "WARNING", f"it is revoked: code={message.code} {message.text}", message.correlation_id
            )
            self._live.run(self._starts.revoke(uep, _reason(message)))

    def recheck(self, link: ManagerLink, message: messages.Recheck) -> None:
        """The manager asks who the people of its user endpoints are now."""
        self._starts.say_who(link, _processes(message)[:MAX_RECHECKS])

    def explain(self, link: ManagerLink, message: messages.Explain) -> None:
        """The endpoint's administrator asks about a start or a task. A manager that asks more at a time than an honest
        one ever does gets no answer to the rest, as if the relay were slow."""
        if len(link.questions) >= MAX_QUESTIONS:
            peer_log.warning("manager: it asks too much at a time", endpoint=link.endpoint_id, limit=MAX_QUESTIONS)
            return
        link.questions.append(messages.Explain(ref=message.ref, about=message.about[:MAX_ABOUT]))
        if len(link.questions) == 1:
            self._live.run(self._explain(link))

    async def _explain(self, link: ManagerLink) -> None:
        """Answer a manager's questions in turn, with a pause and while it reads: they cost the relay reads and room."""
        live = self._live
        try:
            while link.questions and live.managers.get(link.endpoint_id) is link:
                if not live.link_.writable(link.peer):
                    await asyncio.sleep(QUESTION_PAUSE_S)
                    continue
                answer = await self._explainer.explain(
                    link.endpoint_id, link.questions[0], lambda read: durable(live.store.submit(read))
                )
                if live.managers.get(link.endpoint_id) is link:
                    live.link_.send(link.peer, codec.encode(answer))
                await asyncio.sleep(QUESTION_PAUSE_S)
                link.questions.popleft()
        finally:
            link.questions.clear()

    async def _process_ended(self, uep: Uep, message: messages.UepEnded, link_key: bytes) -> None:
        if not link_key or not uep.has_joined(message.incarnation):
            if uep.is_starting(message.incarnation):
                await self._starts.died_unjoined(uep, message)
            return  # else the news is of an earlier process, and settled
        if self._live.store.has_active(uep.row):
            await asyncio.sleep(SETTLE_S)
        if uep.record.link_key == link_key:  # with another, the process that joined has settled it
            if message.code in REVOCATIONS:
                await self._starts.revoke(uep, _reason(message))
            await self._process_loss.process_exited(uep, message.code, message.text)


def _processes(message: messages.RunningUeps | messages.Recheck) -> list[tuple[str, bytes]]:
    """Return id and incarnation of each; an older manager names no process."""
    known = len(message.incarnations) == len(message.uep_ids)
    return list(zip(message.uep_ids, message.incarnations if known else [b""] * len(message.uep_ids), strict=True))


def _reason(message: messages.UepEnded | messages.UepRevoked) -> MepError:
    return rebuild(message.code, message.text[:MAX_PUBLIC_TEXT], message.correlation_id[:64] or None)
