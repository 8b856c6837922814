"""Start requests in progress: from the manager's StartEndpoint through the mapper to a keeper, and the answer back.

The monitor never reads the manager's document: it is a sealed memfd that goes to the mapper. The mapper sends back
another memfd, which goes to the keeper. Each start ends in exactly one answer to each of its requesters, or in no
answer if the manager that asked is gone. start.py has the states. Called by permissions.py and monitor.py.

A call changes states and sends answers. What may go on then goes on in `_pump`, which the loop calls: once for all
changes, and never from within another module's work.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import NO_ROOM, NO_SLOT, STILL_ENDING, BoundaryViolation, Refusal, StartStage
from mep.boundary.memfd import NotSealed, check_sealed
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.fd_limit import Reserve
from mep.root.monitor.helper_process import Helper
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.start import (
    TABLE,
    Start,
    Starts,
    StartState,
    StartVerdict,
    level_of,
    outcome_of,
    refused,
    verdict_on,
)
from mep.root.monitor.to_manager import ToManager

MAX_MAPPING = 32
"""Requests that the mapper has at a time; the others wait here."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Total size of the documents of waiting starts. Beyond it, starts are `unavailable`."""
_NOT_ENOUGH_MEMORY = "The site has more start requests than it can take at the moment. Your tasks wait."


class StartRequests(Part):
    """Every start that is not answered yet."""

    def __init__(
        self, shared: Shared, closer: Closer, mapper: Helper, to_manager: ToManager, keepers: Keepers,
        reserve: Reserve, budget: DayBudget, *, rechecked: Callable[[m.StillMapped | m.NoLongerMapped], None],
    ) -> None:  # fmt: skip
        """`budget` is for records of starts without a keeper. `rechecked` takes the mapper's answers to re-checks."""
        super().__init__(shared)
        self._closer, self._mapper = closer, mapper
        self._to_manager, self._keepers, self._reserve = to_manager, keepers, reserve
        self._budget, self._rechecked = budget, rechecked
        self._refs = itertools.count(1)
        self._starts = Starts()
        self._abandoned: set[int] = set()
        """Numbers of starts that were given up while the mapper had them."""
        self._requesters: set[int] = set()
        self._held = 0
        self._closed = ""
        """The public text with which all starts are refused because the endpoint is being stopped."""
        self._pump_due = False
        self._mapper_moved_at = 0.0
        """When the mapper last answered, or got a request while it had none."""

    # --- from the manager -----------------------------------------------------------------------------

    def request(self, requester: int, descriptor: int) -> None:
        """Accept the manager's request number `requester`. Raises BoundaryViolation."""
        try:
            size = check_sealed(descriptor, m.MAX_DOCUMENT_BYTES)
        except NotSealed as error:
            self._closer.close([descriptor])
            raise BoundaryViolation(f"StartEndpoint: {error}") from None
        if requester in self._requesters or len(self._requesters) >= m.MAX_STARTS_OUTSTANDING:
            os.close(descriptor)
            raise BoundaryViolation(f"StartEndpoint: ref {requester} repeated, or too many starts outstanding")
        self._requesters.add(requester)
        start = Start(next(self._refs), [requester], descriptor, size)
        self._held += size
        refusal = self._cannot_map()
        if refusal is not None:
            self._finish(start, refusal)
            return
        start.timer = self._loop.after(self._timeout_s(), lambda: self._overdue(start))
        self._starts.enter(start, StartState.WAITING)
        self._go_on()

    def request_lost(self, requester: int) -> None:
        """Refuse the manager's request number `requester`: there was no room for its document."""
        if requester not in self._requesters:
            self._requesters.add(requester)
            self._finish(Start(next(self._refs), [requester], -1, 0), _no_room())

    def mapped_lost(self, ref: int) -> None:
        """Refuse a start that was mapped: there was no room for its document. Raises BoundaryViolation."""
        if (start := self._answered_by_mapper(ref, "Mapped")) is not None:
            self._finish(start, _no_room())

    def _timeout_s(self) -> float:
        return self._configuration.resolved.caps.start_timeout_s

    def _cannot_map(self) -> StartVerdict | None:
        if self._closed:
            return refused(Refusal.SITE_BUSY, self._closed)
        if not self._mapper.serving:
            return refused(Refusal.MAPPER_UNAVAILABLE)
        if self._held > MAX_HELD_BYTES:
            return refused(Refusal.SITE_BUSY, _NOT_ENOUGH_MEMORY)
        return None

    def _go_on(self) -> None:
        """Have the loop call `_pump`."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.after(0.0, self._pump)

    def _pump(self) -> None:
        """Pass on every start that can go on: requests to the mapper, parked ones after the end they wait for."""
        self._pump_due = False
        waiting, mapper = self._starts[StartState.WAITING], self._mapper.child
        while mapper is not None and waiting and len(self._starts[StartState.MAPPING]) < MAX_MAPPING:
            if not self._starts[StartState.MAPPING]:
                self._mapper_moved_at = self._loop.clock()
            start = next(iter(waiting.values()))
            self._starts.enter(start, StartState.MAPPING)
            mapper.send(m.MapRequest(ref=start.ref), [self._release(start)])
        for start in [one for one in self._starts[StartState.PARKED].values() if one.uep_id not in self._endpoints]:
            self._route(start)

    def _release(self, start: Start) -> int:
        """Return the descriptor of `start`. The caller owns it from now on."""
        descriptor, start.descriptor = start.descriptor, -1
        self._held -= start.size
        start.size = 0
        return descriptor

    # --- from the mapper ------------------------------------------------------------------------------

    def _answered_by_mapper(self, ref: int, name: str) -> Start | None:
        """Return the start that was sent to the mapper as `ref`; None if it was given up since."""
        self._mapper_moved_at = self._loop.clock()
        self._go_on()
        if ref in self._abandoned:
            self._abandoned.discard(ref)
            return None
        start = self._starts[StartState.MAPPING].get(ref)
        if start is None:
            raise BoundaryViolation(f"{name}: nothing was asked with ref {ref}")
        return start

    def mapped(self, message: m.Mapped, descriptor: int) -> None:
        """Go on with a genuine request that maps to `message.local_user`. Raises BoundaryViolation."""
        try:
            size = check_sealed(descriptor, m.MAX_DOCUMENT_BYTES)
            start = self._answered_by_mapper(message.ref, "Mapped")
        except (NotSealed, BoundaryViolation) as error:
            self._closer.close([descriptor])
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
        start.mapped_at = self._loop.clock()
        self._route(start)

    def _route(self, start: Start) -> None:
        """Route a mapped start: a new user endpoint, one that already runs, or one that is being started."""
        running = self._endpoints.get(start.uep_id)
        if other := self._starts.of_user_endpoint(start.uep_id):
            start.audit["with"] = other.correlation_id
            self._record(start, "joined", "")
            other.requesters += start.requesters
            start.requesters = []
            self._drop(start)
        elif running is None:
            self._begin(start)
        elif running.stops or running.local_user != start.local_user:
            if not running.stops:
                # The administrator has since mapped this person to another account.
                self._keepers.stop(running, "The mapping of your identity has changed.")
            self._starts.enter(start, StartState.PARKED)
        else:
            start.incarnation = running.incarnation
            self._finish(start, StartVerdict(m.StartOutcome.ALREADY_RUNNING))

    def _begin(self, start: Start) -> None:
        """Have a keeper forked, if there is a slot for this account: the queue is the manager's."""
        if (restriction := self._restrictions.of(start.local_user)) is not None:
            self._finish(start, verdict_on(restriction))
            return
        if not self._has_slot(start.local_user) or not self._reserve.is_free():
            limit = self._configuration.resolved.caps.max_starting
            self._finish(start, StartVerdict(m.StartOutcome.TRY_LATER, Refusal.SITE_BUSY, NO_SLOT.format(limit=limit)))
            return
        self._starts.enter(start, StartState.IN_KEEPER)
        if start.timer is not None:
            start.timer.cancel()
        for requester in start.requesters:
            self._to_manager.answered(m.StartBegun(ref=requester))
        if (refusal := self._keepers.fork(start, self._release(start))) is not None:
            self._finish(start, refusal)

    def _has_slot(self, local_user: str) -> bool:
        """Whether one more start of this account may be in progress.

        Starts that hang block no other account: none may hold more than half the slots, or take the last free one
        while it holds another.
        """
        slots, free = self._configuration.resolved.caps.max_starting, self._keepers.free_slots()
        own = sum(one.local_user == local_user for one in self._starts[StartState.IN_KEEPER].values())
        return free > 0 and own < max(1, slots // 2 if free > 1 else 1)

    def not_mapped(self, message: m.NotMapped) -> None:
        """Answer a request that the mapper refused. Raises BoundaryViolation."""
        start = self._answered_by_mapper(message.ref, "NotMapped")
        if start is None:
            return
        start.uep_id, start.correlation_id = clip(message.uep_id, 36), message.correlation_id
        start.identities, start.refused_by_mapper = message.identities, True
        start.audit["detail"] = message.detail
        self._finish(start, StartVerdict(outcome_of(message.code), message.code, message.public))

    def rechecked(self, message: m.StillMapped | m.NoLongerMapped) -> None:
        """Take the mapper's answer to a re-check: it concerns a running user endpoint, so nothing starts."""
        start = self._answered_by_mapper(message.ref, type(message).__name__)
        if start is None:
            return
        unavailable = isinstance(message, m.NoLongerMapped) and outcome_of(message.code) is m.StartOutcome.UNAVAILABLE
        outcome = m.StartOutcome.UNAVAILABLE if unavailable else m.StartOutcome.ALREADY_RUNNING
        start.uep_id, start.correlation_id = message.uep_id, message.correlation_id
        self._answer(start, StartVerdict(outcome))
        self._drop(start)
        self._rechecked(message)

    # --- from the keepers -----------------------------------------------------------------------------

    def finish_from_keeper(self, uep_id: str, answer: StartVerdict) -> None:
        """Answer the start that the keeper of `uep_id` worked on, if it is still unanswered."""
        start = self._starts.of_user_endpoint(uep_id)
        if start is not None and start.state is StartState.IN_KEEPER:
            self._finish(start, answer)

    def endpoint_gone(self, uep_id: str) -> None:
        """Have the starts go on that waited for the end of `uep_id`."""
        self._go_on()

    # --- ends -------------------------------------------------------------------------------------------

    def _finish(self, start: Start, answer: StartVerdict) -> None:
        """Write the audit record first, then answer every requester."""
        start.audit.update(answer.audit)
        self._record(start, answer.outcome, answer.code)
        self._answer(start, answer)
        if answer.outcome is m.StartOutcome.STARTED and not start.requesters:
            self._to_manager.running(self._endpoints[start.uep_id])  # a former manager asked; the present one must know
        self._drop(start)

    def _record(self, start: Start, outcome: str, code: str) -> None:
        """Write the outcome of a start to log and audit log."""
        mapping = "mapped" if start.local_user else "refused" if start.refused_by_mapper else "not asked"
        said = {"outcome": outcome, "code": code, "correlation_id": start.correlation_id, "mapping": mapping}
        who = {"uep_id": start.uep_id, "local_user": start.local_user}
        audit = {"policy": "not asked", **start.audit}
        if not start.paid:
            size = sum(len(str(value)) for value in (*said.values(), *who.values(), start.identities, *audit.values()))
            if not self._budget.take(2 * size + 512):
                return
        self._audit.write("start", **said, **who, identities=start.identities, **audit)
        self._log.write(level_of(outcome, code), "start answered", **said, **who, **audit)

    def _answer(self, start: Start, answer: StartVerdict) -> None:
        runs = answer.outcome is m.StartOutcome.STARTED or answer.outcome is m.StartOutcome.ALREADY_RUNNING
        for requester in start.requesters:
            self._requesters.discard(requester)
            self._to_manager.answered(
                m.StartAnswered(
                    ref=requester,
                    outcome=answer.outcome,
                    uep_id=start.uep_id,
                    code=clip(answer.code, 64),
                    public=clip(answer.public, 1024),
                    correlation_id=clip(start.correlation_id, 64),
                    incarnation=start.incarnation if runs else b"",
                    stage=clip(str(start.audit.get("stage", "")), 32),
                )
            )

    def _drop(self, start: Start) -> None:
        """Forget `start`, in whichever state it is."""
        if start.timer is not None:
            start.timer.cancel()
        if start.descriptor >= 0:
            os.close(self._release(start))
        self._starts.enter(start, StartState.DONE)
        self._go_on()

    def _abandon(self, start: Start) -> None:
        """Expect the mapper's answer to a start that is given up."""
        if start.state is StartState.MAPPING:
            self._abandoned.add(start.ref)

    def _overdue(self, start: Start) -> None:
        """Refuse a start that has waited for too long."""
        code = TABLE[start.state].overdue
        if code is None:
            return
        if start.state is StartState.MAPPING:
            silent_s = self._loop.clock() - self._mapper_moved_at
            if silent_s >= 0.9 * self._timeout_s() and (mapper := self._mapper.child):
                mapper.fault = f"has not answered for {silent_s:.0f} s"
        self._abandon(start)
        self._finish(start, refused(code, STILL_ENDING if code is Refusal.SITE_BUSY else ""))

    def mapper_lost(self) -> None:
        """The mapper is gone: all its requests, sent or waiting, were signed for its epoch. Answer them."""
        self._abandoned.clear()
        for start in [one for one in self._starts if TABLE[one.state].needs_mapper]:
            self._finish(start, refused(Refusal.MAPPER_UNAVAILABLE))

    def manager_lost(self) -> None:
        """The manager is gone, so no answers are awaited. Starts with a keeper go on; the rest is dropped."""
        self._requesters.clear()
        for start in self._starts:
            start.requesters = []
            if TABLE[start.state].needs_manager:
                self._abandon(start)
                start.audit["detail"] = "the manager is gone"
                self._record(start, "dropped", "")
                self._drop(start)

    def close(self, public: str) -> None:
        """Refuse every start that has no keeper yet, and further ones, because the endpoint is being stopped."""
        self._closed = public
        for start in [one for one in self._starts if TABLE[one.state].needs_manager]:
            self._abandon(start)
            self._finish(start, refused(Refusal.SITE_BUSY, public))


def _no_room() -> StartVerdict:
    text = NO_ROOM.format(stage=StartStage.MAP.name)
    return refused(Refusal.SITE_BUSY, text, detail="the monitor has no free descriptor")
