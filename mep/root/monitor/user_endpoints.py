"""The user endpoints of this host: forked by this monitor, or adopted from a former one.

This module holds the monitor's knowledge and starts or stops nothing. Called by the monitor's other modules.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Any

from mep.boundary.resolved_config import Resolved
from mep.root.monitor.child import Child
from mep.root.monitor.event_loop import Timer


class UepPhase(enum.Enum):
    """A phase of a user endpoint's life. The values are those of the status file."""

    STARTING = "starting"
    CANCELLING = "stopping: it was not ready"
    """Told to stop before it was ready."""
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "stopping: reported"
    """Its failure or end is reported. Its keeper may still be there."""


class UepEvent(enum.Enum):
    """Something that happens to a user endpoint."""

    READY = "it is configured and its engine runs"
    STOP = "it is told to stop"
    REPORTED = "its failure or end was reported"


P, E = UepPhase, UepEvent
TABLE: dict[tuple[UepPhase, UepEvent], UepPhase] = {
    (P.STARTING, E.READY): P.RUNNING,
    (P.STARTING, E.STOP): P.CANCELLING,
    (P.STARTING, E.REPORTED): P.ENDED,
    (P.CANCELLING, E.READY): P.STOPPING,
    (P.CANCELLING, E.STOP): P.CANCELLING,
    (P.CANCELLING, E.REPORTED): P.ENDED,
    (P.RUNNING, E.STOP): P.STOPPING,
    (P.RUNNING, E.REPORTED): P.ENDED,
    (P.STOPPING, E.STOP): P.STOPPING,
    (P.STOPPING, E.REPORTED): P.ENDED,
    (P.ENDED, E.READY): P.ENDED,
    (P.ENDED, E.STOP): P.ENDED,
    (P.ENDED, E.REPORTED): P.ENDED,
}
"""The phase that follows. A user endpoint is ready once: there are no other rows."""


@dataclass(slots=True, eq=False)
class RunningEndpoint:
    """One user endpoint, from the fork of its keeper until that keeper is gone."""

    uep_id: str
    local_user: str
    correlation_id: str
    keeper_pid: int
    keeper: Child | None
    """None if it has ended, before this monitor began."""
    incarnation: bytes = b""
    """The id of this process, from the mapper; empty if its keeper is of an older version."""
    uid: int = -1
    pid: int = 0
    phase: UepPhase = UepPhase.STARTING
    """Changed by `take` alone."""
    cause: tuple[str, str] = ("", "")
    """Code and public text of the end, if the monitor has decided on it."""
    person: bytes = b""
    """The mapper's digest of its owner; empty if its keeper is of an older version."""
    literal: bool = False
    """Whether the mapping file spells the account's name."""
    identities: str = ""
    """Its owner's identities, for the log."""
    mapped_at: float = 0.0
    """Monotonic time of the mapper's last confirmation, from a statement signed by the relay, that the owner maps to
    this account. 0 if unknown, after an adoption."""
    mapping_said: str = ""
    """The code of the mapper's later answer, if it couldn't say."""
    overdue: bool = False
    """Whether the last confirmation is too long ago."""
    warn_age: float = 0.0
    """The age at which the next warning is due, if a confirmation is overdue."""
    admitted_at: float = 0.0
    """When the account was last found usable; 0 if this monitor hasn't checked it yet."""
    account_overdue: bool = False
    """Whether the last successful check of the account is too long ago."""
    checked_by: Resolved | None = None
    """The configuration that has the policy which its keeper checks the account by; None if that isn't known."""
    check_asked: bool = False
    """Whether its keeper was asked for a check, and has made none since."""
    since: float = field(default_factory=time.time)
    """When the present phase began, in seconds since the epoch."""
    draining: bool = False
    """Whether it was told to end once its tasks have."""
    late: Timer | None = None
    """Kills a keeper that hangs."""
    watchdog: Timer | None = None
    """Kills a keeper that doesn't end after being told to stop."""

    def take(self, event: UepEvent) -> None:
        """Change the phase by the table."""
        former, self.phase = self.phase, TABLE[self.phase, event]
        if former is not self.phase:
            self.since = time.time()

    @property
    def starts(self) -> bool:
        """Whether its start is neither answered nor given up."""
        return self.phase in {UepPhase.STARTING, UepPhase.CANCELLING}

    @property
    def runs(self) -> bool:
        """Whether it is ready and not told to stop."""
        return self.phase is UepPhase.RUNNING

    @property
    def is_known_to_run(self) -> bool:
        """Whether its start was answered and its end is not reported: the manager must know of it."""
        return self.phase in {UepPhase.RUNNING, UepPhase.STOPPING}

    @property
    def stops(self) -> bool:
        """Whether it was told to stop, or has ended."""
        return self.phase in {UepPhase.CANCELLING, UepPhase.STOPPING, UepPhase.ENDED}

    @property
    def shown_state(self) -> str:
        """The state that administrators see."""
        return "draining" if self.draining and self.runs else self.phase.value.partition(":")[0]

    def is_named(self, incarnation: bytes) -> bool:
        """Tell whether a message about this incarnation means this process. An unknown incarnation may mean any."""
        return not incarnation or not self.incarnation or incarnation == self.incarnation

    def public(self) -> dict[str, Any]:
        """Return its entry in status.json. The times of checks, which change often, are told at the socket alone."""
        value: dict[str, Any] = {"uep_id": self.uep_id, "local_user": self.local_user, "pid": self.pid}
        value |= {"state": self.shown_state, "keeper_pid": self.keeper_pid, "since": round(self.since, 1)}
        flags = {"overdue": self.overdue, "account_overdue": self.account_overdue}
        return value | {name: True for name, flag in flags.items() if flag}


class Endpoints(dict[str, RunningEndpoint]):
    """User endpoints by their id."""

    def of_uid(self, uid: int) -> int:
        """Return how many user endpoints the account with `uid` has."""
        return sum(one.uid == uid for one in self.values())

    def of_another(self, person: bytes, uid: int) -> list[RunningEndpoint]:
        """Return the user endpoints of `uid` that aren't known to be `person`'s. An unknown owner counts as another."""
        return [one for one in self.values() if one.uid == uid and one.person != person]

    def of_user(self, local_user: str) -> int:
        """Return how many user endpoints were started for the account of this name."""
        return sum(one.local_user == local_user for one in self.values())

    def starting(self) -> int:
        """Return how many user endpoints are being started."""
        return sum(one.phase is UepPhase.STARTING for one in self.values())
