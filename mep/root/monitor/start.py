"""One start request and its states. The tables below are all that may happen to it; start_requests.py acts on them.

This module holds data and starts nothing. Called by start_requests.py and keepers.py.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from mep.boundary import messages as m
from mep.boundary.errors import DRAINED, Refusal, public_text
from mep.boundary.restrictions import Restriction, RestrictionKind
from mep.root.monitor.event_loop import Timer

_TRY_AGAIN = frozenset(
    {
        Refusal.SITE_BUSY, Refusal.PERSON_LIMIT, Refusal.AUDIT_UNAVAILABLE, Refusal.MAPPER_UNAVAILABLE,
        Refusal.START_REQUEST_STALE,
        Refusal.START_INTERRUPTED, Refusal.NOT_ADMITTED_NOW, "STOPPED",
        "RELAY_UNREACHABLE", "RELAY_UNAVAILABLE", "JOIN_REFUSED",
    }
)  # fmt: skip


class StartState(enum.Enum):
    """The state of a start."""

    RECEIVED = "just received"
    WAITING = "waiting for the mapper"
    MAPPING = "with the mapper"
    PARKED = "waiting for the end of the user endpoint before it"
    IN_KEEPER = "with its keeper"
    DONE = "answered or dropped"


@dataclass(frozen=True, slots=True)
class Row:
    """What may happen to a start in one state."""

    then: frozenset[StartState]
    """The states that may follow."""
    overdue: Refusal | None = None
    """The refusal of a start that waited here for too long; None if there is no time limit here."""
    needs_mapper: bool = False
    """Whether it is refused when the mapper is gone: its request was signed for that mapper's epoch."""
    needs_manager: bool = False
    """Whether it is dropped when the manager that asked is gone, and refused when the endpoint stops."""


def _row(
    *then: StartState, overdue: Refusal | None = None, needs_mapper: bool = False, needs_manager: bool = True
) -> Row:
    return Row(frozenset(then), overdue, needs_mapper, needs_manager)


S = StartState
TABLE: dict[StartState, Row] = {
    S.RECEIVED: _row(S.WAITING, S.DONE),
    S.WAITING: _row(S.MAPPING, S.DONE, overdue=Refusal.MAPPER_UNAVAILABLE, needs_mapper=True),
    S.MAPPING: _row(S.IN_KEEPER, S.PARKED, S.DONE, overdue=Refusal.MAPPER_UNAVAILABLE, needs_mapper=True),
    S.PARKED: _row(S.IN_KEEPER, S.DONE, overdue=Refusal.SITE_BUSY),
    S.IN_KEEPER: _row(S.DONE, needs_manager=False),
    S.DONE: _row(needs_manager=False),
}


@dataclass(frozen=True, slots=True)
class StartVerdict:
    """The answer to a start. `audit` are fields for log and audit log, which don't leave the host."""

    outcome: m.StartOutcome
    code: str = ""
    public: str = ""
    audit: dict[str, object] = field(default_factory=dict)


def outcome_of(code: str) -> m.StartOutcome:
    """Return whether a start that failed with `code` is worth another try."""
    return m.StartOutcome.UNAVAILABLE if code in _TRY_AGAIN else m.StartOutcome.REFUSED


def refused(code: Refusal, public: str = "", **audit: object) -> StartVerdict:
    """Return a refusal with the code's own sentence, or another one of its meaning."""
    return StartVerdict(outcome_of(code), code, public or public_text(code), audit)


_NO_REASON = {
    RestrictionKind.DRAIN: "its administrators are draining it",
    RestrictionKind.BAN: "they gave no reason",
}


def verdict_on(restriction: Restriction) -> StartVerdict:
    """Return the refusal of a start that a drain or a ban concerns."""
    kind = RestrictionKind(restriction.kind)
    reason = restriction.message.strip().rstrip(".") or _NO_REASON[kind]
    code = Refusal.ACCOUNT_BANNED if kind is RestrictionKind.BAN else Refusal.ENDPOINT_DRAINING
    public = public_text(code, reason=reason)
    if kind is RestrictionKind.DRAIN and restriction.refuse:
        public = DRAINED.format(reason=reason)
    outcome = m.StartOutcome.REFUSED if restriction.refuse else m.StartOutcome.UNAVAILABLE
    return StartVerdict(outcome, code, public, {"stage": "CAPS"})


@dataclass(slots=True, eq=False)
class Start:
    """One start. `requesters` are the manager's request numbers that wait for the answer."""

    ref: int
    requesters: list[int]
    descriptor: int
    """The document held for it: first the manager's, then the mapper's; -1 for none."""
    size: int
    state: StartState = StartState.RECEIVED
    """Changed by `Starts` alone."""
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
    audit: dict[str, object] = field(default_factory=dict)


class Starts:
    """Every start that is not done, by its state. Within a state, the oldest comes first."""

    def __init__(self) -> None:
        self._of: dict[StartState, dict[int, Start]] = {state: {} for state in StartState}

    def __getitem__(self, state: StartState) -> dict[int, Start]:
        """The starts in `state`, by their number."""
        return self._of[state]

    def __iter__(self) -> Iterator[Start]:
        return iter([start for known in self._of.values() for start in known.values()])

    def enter(self, start: Start, state: StartState) -> None:
        """Change the state of `start`. Raises ValueError if the table doesn't allow it."""
        if state not in TABLE[start.state].then:
            raise ValueError(f"a start {start.state.value} cannot be {state.value} next")
        self._of[start.state].pop(start.ref, None)
        start.state = state
        if state is not StartState.DONE:
            self._of[state][start.ref] = start

    def of_user_endpoint(self, uep_id: str) -> Start | None:
        """Return the start that a keeper works on for this user endpoint: there is at most one."""
        return next((start for start in self._of[StartState.IN_KEEPER].values() if start.uep_id == uep_id), None)


_ADMINISTRATORS = frozenset(
    {
        Refusal.START_FAILED, Refusal.START_TIMEOUT, Refusal.AUDIT_UNAVAILABLE, Refusal.MAPPER_UNAVAILABLE,
        Refusal.START_REQUEST_REFUSED, "ENDPOINT_MISCONFIGURED", "ENGINE_FAILED",
    }
)  # fmt: skip
"""Codes of starts that fail until an administrator acts."""
_NO_FAILURES = frozenset({m.StartOutcome.STARTED, m.StartOutcome.ALREADY_RUNNING, m.StartOutcome.TRY_LATER, "joined"})


def level_of(outcome: str, code: str) -> str:
    """Return the log level of a start's end. A start that failed is never INFO."""
    if outcome in _NO_FAILURES:
        return "INFO"
    return "ERROR" if code in _ADMINISTRATORS else "WARNING"
