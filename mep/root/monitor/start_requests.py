"""Start requests in progress: from the manager's StartEndpoint through the mapper to a keeper, and the answer back.

The monitor never reads the manager's document: it is a sealed memfd that goes to the mapper. The mapper sends back
another memfd, which goes to the keeper. Each start ends in exactly one answer to each of its askers, or in no answer
if the manager that asked is gone. Called by handlers.py and keepers.py.
"""

from __future__ import annotations

import enum
import itertools
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import NO_PLACE, BoundaryViolation, Refusal, public_text
from mep.boundary.memfd import NotSealed, check_sealed
from mep.root.monitor.child import Kind
from mep.root.monitor.event_loop import Timer

if TYPE_CHECKING:
    from mep.root.monitor.monitor import Monitor

MAX_MAPPING = 32
"""Requests that the mapper has at a time; the others wait here."""
PLACES_S = 1.0
"""How often waiting starts are told their queue positions."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Total size of the documents of waiting starts. Beyond it, starts are `unavailable`."""
_TRY_AGAIN = frozenset(
    {
        Refusal.SITE_BUSY, Refusal.AUDIT_UNAVAILABLE, Refusal.MAPPER_UNAVAILABLE, Refusal.START_REQUEST_STALE,
        "STOPPED", "RELAY_UNREACHABLE", "RELAY_UNAVAILABLE", "JOIN_REFUSED",
    }
)  # fmt: skip


class State(enum.Enum):
    """The state of a start."""

    WAITING = "waiting for the mapper"
    MAPPING = "with the mapper"
    MAPPED = "waiting for a keeper"
    PARKED = "waiting for the end of the user endpoint before it"
    KEPT = "with its keeper"


@dataclass(slots=True, eq=False)
class Start:
    """One start. `askers` are the manager's request numbers that wait for the answer."""

    ref: int
    askers: list[int]
    descriptor: int
    """The document held for it: first the manager's, then the mapper's; -1 for none."""
    size: int
    state: State = State.WAITING
    timer: Timer | None = None
    uep_id: str = ""
    local_user: str = ""
    mapped_at: float = 0.0
    """Time of the mapper's answer, by the loop's clock."""
    identities: str = ""
    correlation_id: str = ""
    incarnation: bytes = b""
    """Incarnation of the process to be started; once it is answered, of the running one."""
    person: bytes = b""
    literal: bool = False
    refused_by_mapper: bool = False
    paid: bool = False
    """Whether its records are already counted in the day's budget."""
    told_place: int = 0
    """The queue position that its askers were last told."""
    audit: dict[str, object] = field(default_factory=dict)


def outcome_of(code: str) -> m.Outcome:
    """Return whether a start that failed with `code` is worth another try."""
    return m.Outcome.UNAVAILABLE if code in _TRY_AGAIN else m.Outcome.REFUSED


class Starts:
    """Every start that is not answered yet."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._refs = itertools.count(1)
        self._all: dict[int, Start] = {}
        self._waiting: deque[Start] = deque()
        self._mapping: dict[int, Start] = {}
        self._abandoned: set[int] = set()
        self._mapped: deque[Start] = deque()
        self._by_uep: dict[str, Start] = {}
        self._parked: dict[str, list[Start]] = {}
        self._served: dict[str, int] = {}
        """By local user: our number of the latest start that went to a keeper."""
        self._askers: set[int] = set()
        self._held = 0
        self._places_due = False
        self._mapper_moved_at = 0.0
        """When the mapper last answered, or got a request while it had none."""

    # --- from the manager -----------------------------------------------------------------------------

    def ask(self, asker: int, descriptor: int) -> None:
        """Accept the manager's request number `asker`. Raises BoundaryViolation."""
        try:
            size = check_sealed(descriptor, m.MAX_DOCUMENT_BYTES)
        except NotSealed as error:
            self._monitor.closer.close([descriptor])
            raise BoundaryViolation(f"StartEndpoint: {error}") from None
        if asker in self._askers or len(self._askers) >= m.MAX_STARTS_OUTSTANDING:
            os.close(descriptor)
            raise BoundaryViolation(f"StartEndpoint: ref {asker} repeated, or too many starts outstanding")
        self._askers.add(asker)
        start = Start(next(self._refs), [asker], descriptor, size)
        self._all[start.ref] = start
        self._held += size
        refusal = self._cannot_map()
        if refusal is not None:
            self.finish(start, m.Outcome.UNAVAILABLE, refusal[0], refusal[1])
            return
        start.timer = self._monitor.loop.after(self._timeout_s(), lambda: self._overdue(start))
        self._waiting.append(start)
        self.pump()

    def _timeout_s(self) -> float:
        return self._monitor.resolved.caps.start_timeout_s

    def _cannot_map(self) -> tuple[Refusal, str] | None:
        if self._monitor.stopping:
            return Refusal.SITE_BUSY, "The endpoint is being stopped. Your tasks wait until it runs again."
        if not self._monitor.helpers[Kind.MAPPER].serving:
            return Refusal.MAPPER_UNAVAILABLE, public_text(Refusal.MAPPER_UNAVAILABLE)
        if self._held > MAX_HELD_BYTES:
            return Refusal.SITE_BUSY, "The site has more start requests than it can take just now. Your tasks wait."
        return None

    def pump(self) -> None:
        """Pass on every start that can go on: requests to the mapper, mapped ones to keepers."""
        mapper = self._monitor.helpers[Kind.MAPPER].child
        while mapper is not None and self._waiting and len(self._mapping) < MAX_MAPPING:
            start = self._waiting.popleft()
            if not self._mapping:
                self._mapper_moved_at = self._monitor.loop.clock()
            start.state, self._mapping[start.ref] = State.MAPPING, start
            mapper.send(m.MapRequest(ref=start.ref), [self._release(start)])
        while (chosen := self._fairest()) is not None:
            chosen.state = State.KEPT
            if chosen.timer is not None:
                chosen.timer.cancel()
            self._monitor.keepers.fork(chosen, self._release(chosen))

        if self._mapped and not self._places_due:
            self._places_due = True
            self._monitor.loop.after(PLACES_S, self._tell_places)

    def _tell_places(self) -> None:
        """Send waiting starts their queue positions: at first, and again each time a position has halved."""
        self._places_due = False
        manager, served = self._monitor.helpers[Kind.MANAGER].child, self._served
        turns = Counter(start.local_user for start in self._by_uep.values() if start.state is State.KEPT)
        order: list[tuple[int, int, int, Start]] = []
        for start in self._mapped:
            order.append((turns[start.local_user], served.get(start.local_user, 0), start.ref, start))
            turns[start.local_user] += 1
        for place, (_, _, _, start) in enumerate(sorted(order, key=lambda one: one[:3]), start=1):
            if manager is not None and (not start.told_place or place <= start.told_place // 2):
                start.told_place = place
                for asker in start.askers:
                    manager.send(m.StartPlaced(ref=asker, place=place))
        if self._mapped:
            self._places_due = True
            self._monitor.loop.after(PLACES_S, self._tell_places)

    def _fairest(self) -> Start | None:
        """Choose the next start: fewest in progress first, then least recently served.

        One user's burst delays another user by at most one start. Starts that hang don't block others either: no user
        may hold more than half the slots, or take the last free slot while holding another. Returns None if no waiting
        user may have one now.
        """
        places, free = self._monitor.resolved.caps.max_starting, self._monitor.keepers.places_left()
        if not self._mapped or free <= 0:
            return None
        under_way = Counter(start.local_user for start in self._by_uep.values() if start.state is State.KEPT)
        most = places // 2 if free > 1 else 1
        able = [one for one in self._mapped if under_way[one.local_user] < max(1, most)]
        if not able:
            return None
        start = min(able, key=lambda one: (under_way[one.local_user], self._served.get(one.local_user, 0)))
        self._mapped.remove(start)
        self._served[start.local_user] = start.ref
        return start

    def _release(self, start: Start) -> int:
        """Return the descriptor of `start`. The caller owns it from now on."""
        descriptor, start.descriptor = start.descriptor, -1
        self._held -= start.size
        start.size = 0
        return descriptor

    # --- from the mapper ------------------------------------------------------------------------------

    def _answered_by_mapper(self, ref: int, name: str) -> Start | None:
        """Return the start that was sent to the mapper as `ref`; None if it was given up since."""
        self._mapper_moved_at = self._monitor.loop.clock()
        if ref in self._abandoned:
            self._abandoned.discard(ref)
            return None
        start = self._mapping.pop(ref, None)
        if start is None:
            raise BoundaryViolation(f"{name}: nothing was asked with ref {ref}")
        return start

    def mapped(self, message: m.Mapped, descriptor: int) -> None:
        """Go on with a genuine request that maps to `message.local_user`. Raises BoundaryViolation."""
        try:
            size = check_sealed(descriptor, m.MAX_DOCUMENT_BYTES)
            start = self._answered_by_mapper(message.ref, "Mapped")
        except (NotSealed, BoundaryViolation) as error:
            self._monitor.closer.close([descriptor])
            raise BoundaryViolation(f"Mapped: {error}") from None
        if start is None:
            os.close(descriptor)
            return
        start.descriptor, start.size = descriptor, size
        self._held += size
        start.uep_id, start.local_user = message.uep_id, message.local_user
        start.identities, start.correlation_id = message.identities, message.correlation_id
        start.incarnation = message.incarnation
        start.person, start.literal = message.person, bool(message.literal)
        start.mapped_at = self._monitor.loop.clock()
        self._place(start)
        self.pump()

    def _place(self, start: Start) -> None:
        """Route a mapped start: a new user endpoint, one that already runs, or one that is being started."""
        running = self._monitor.endpoints.get(start.uep_id)
        if other := self._by_uep.get(start.uep_id):
            start.audit["with"] = other.correlation_id
            self._record(start, "joined", "")
            other.askers += start.askers
            start.askers = []
            self._drop(start)
        elif running is None:
            start.state = State.MAPPED
            self._by_uep[start.uep_id] = start
            self._mapped.append(start)
        elif running.ending or running.local_user != start.local_user:
            if not running.ending:
                # The administrator has since mapped this person to another account.
                self._monitor.keepers.stop(running, "The mapping of your identity has changed.")
            start.state = State.PARKED
            self._parked.setdefault(start.uep_id, []).append(start)
        else:
            start.incarnation = running.incarnation
            self.finish(start, m.Outcome.ALREADY_RUNNING, "", "")

    def not_mapped(self, message: m.NotMapped) -> None:
        """Answer a request that the mapper refused. Raises BoundaryViolation."""
        start = self._answered_by_mapper(message.ref, "NotMapped")
        if start is None:
            return
        start.uep_id, start.correlation_id = clip(message.uep_id, 36), message.correlation_id
        start.identities, start.refused_by_mapper = message.identities, True
        start.audit["detail"] = message.detail
        self.finish(start, outcome_of(message.code), message.code, message.public)
        self.pump()

    def rechecked(self, message: m.StillMapped | m.NoLongerMapped) -> None:
        """Take the mapper's answer to a re-check: it concerns a running user endpoint, so nothing starts."""
        start = self._answered_by_mapper(message.ref, type(message).__name__)
        if start is None:
            return
        unavailable = isinstance(message, m.NoLongerMapped) and message.code in _TRY_AGAIN
        outcome = m.Outcome.UNAVAILABLE if unavailable else m.Outcome.ALREADY_RUNNING
        self._answer(start, outcome, message.uep_id, "", "", message.correlation_id)
        self._drop(start)
        self._monitor.rechecks.mapper_says(message)
        self.pump()

    # --- from the keepers -----------------------------------------------------------------------------

    def kept(self, uep_id: str, outcome: m.Outcome, code: str, public: str, **audit: object) -> None:
        """Answer the start that the keeper of `uep_id` worked on, if it is still unanswered."""
        start = self._by_uep.get(uep_id)
        if start is not None and start.state is State.KEPT:
            start.audit.update(audit)
            self.finish(start, outcome, code, public)

    def gone(self, uep_id: str) -> None:
        """Go on with the starts that waited for the end of `uep_id`."""
        for start in self._parked.pop(uep_id, []):
            self._place(start)
        self.pump()

    # --- ends -------------------------------------------------------------------------------------------

    def finish(self, start: Start, outcome: m.Outcome, code: str, public: str) -> None:
        """Write the audit record first, then answer every asker."""
        self._record(start, outcome, code)
        runs = outcome in {m.Outcome.STARTED, m.Outcome.ALREADY_RUNNING}
        incarnation = start.incarnation if runs else b""
        self._answer(start, outcome, start.uep_id, code, public, start.correlation_id, incarnation)
        if outcome is m.Outcome.STARTED and not start.askers:  # a former manager asked, and the present one must know
            self._monitor.tell_running(self._monitor.endpoints[start.uep_id])
        self._drop(start)

    def _record(self, start: Start, outcome: str, code: str) -> None:
        """Write the outcome of a start to log and audit log."""
        mapping = "mapped" if start.local_user else "refused" if start.refused_by_mapper else "not asked"
        said = {"outcome": outcome, "code": code, "correlation_id": start.correlation_id, "mapping": mapping}
        who = {"uep_id": start.uep_id, "local_user": start.local_user}
        audit = {"policy": "not asked", **start.audit}
        if not start.paid:
            size = sum(len(str(value)) for value in (*said.values(), *who.values(), start.identities, *audit.values()))
            if not self._monitor.refusals.take(2 * size + 512):
                return
        self._monitor.audit.write("start", **said, **who, identities=start.identities, **audit)
        self._monitor.log.info("start answered", **said, **who, **audit)

    def _answer(
        self, start: Start, outcome: m.Outcome, uep_id: str, code: str, public: str, correlation_id: str,
        incarnation: bytes = b"",
    ) -> None:  # fmt: skip
        manager = self._monitor.helpers[Kind.MANAGER].child
        for asker in start.askers:
            self._askers.discard(asker)
            if manager is not None:
                manager.send(
                    m.StartAnswered(
                        ref=asker,
                        outcome=outcome,
                        uep_id=uep_id,
                        code=clip(code, 64),
                        public=clip(public, 1024),
                        correlation_id=clip(correlation_id, 64),
                        incarnation=incarnation,
                    )
                )

    def _drop(self, start: Start) -> None:
        """Forget `start`."""
        if start.timer is not None:
            start.timer.cancel()
        if start.descriptor >= 0:
            os.close(self._release(start))
        if self._by_uep.get(start.uep_id) is start:
            del self._by_uep[start.uep_id]
        self._all.pop(start.ref, None)

    def _overdue(self, start: Start) -> None:
        """Refuse a start that has waited for too long."""
        if start.state is State.MAPPING:
            del self._mapping[start.ref]
            self._abandoned.add(start.ref)
            silent_s = self._monitor.loop.clock() - self._mapper_moved_at
            if silent_s >= 0.9 * self._timeout_s() and (mapper := self._monitor.helpers[Kind.MAPPER].child):
                mapper.fault = f"has not answered for {silent_s:.0f} s"
        self._forget_queued(start)
        code = Refusal.MAPPER_UNAVAILABLE if start.state in {State.WAITING, State.MAPPING} else Refusal.SITE_BUSY
        busy = NO_PLACE.format(limit=self._monitor.resolved.caps.max_starting)
        text = busy if code is Refusal.SITE_BUSY else public_text(code)
        self.finish(start, m.Outcome.UNAVAILABLE, code, text)

    def _forget_queued(self, start: Start) -> None:
        for queue in (self._waiting, self._mapped, self._parked.get(start.uep_id, [])):
            if start in queue:
                queue.remove(start)

    def mapper_lost(self) -> None:
        """The mapper is gone: all its requests, sent or waiting, were signed for its epoch. Answer them."""
        lost = [*self._mapping.values(), *self._waiting]
        self._mapping.clear()
        self._waiting.clear()
        self._abandoned.clear()
        for start in lost:
            text = public_text(Refusal.MAPPER_UNAVAILABLE)
            self.finish(start, m.Outcome.UNAVAILABLE, Refusal.MAPPER_UNAVAILABLE, text)

    def manager_lost(self) -> None:
        """The manager is gone, so no answers are awaited. Starts with a keeper go on; the rest is dropped."""
        self._askers.clear()
        self._abandoned.update(self._mapping)
        self._mapping.clear()
        for start in list(self._all.values()):
            start.askers = []
            if start.state is not State.KEPT:
                self._forget_queued(start)
                start.audit["detail"] = "the manager is gone"
                self._record(start, "dropped", "")
                self._drop(start)

    def abort(self, public: str) -> None:
        """Answer every start that has no keeper yet, because the endpoint is being stopped."""
        self._abandoned.update(self._mapping)
        self._mapping.clear()
        for start in list(self._all.values()):
            if start.state is not State.KEPT:
                self._forget_queued(start)
                self.finish(start, m.Outcome.UNAVAILABLE, Refusal.SITE_BUSY, public)
