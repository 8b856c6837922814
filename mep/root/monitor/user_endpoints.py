"""The user endpoints of this host: those whose keepers the monitor forked, and those it adopted.

Nothing here starts or stops anything; it is what the monitor knows. Called by the monitor's other modules.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mep.root.monitor.child import Child
from mep.root.monitor.event_loop import Timer


@dataclass(slots=True, eq=False)
class UserEndpoint:
    """One user endpoint from the fork of its keeper until that keeper is gone."""

    uep_id: str
    local_user: str
    correlation_id: str
    keeper_pid: int
    keeper: Child | None
    """None for an adopted one: there is no channel to it, only `pidfd`."""
    incarnation: bytes = b""
    """What names this process, as the mapper has said: empty for one whose keeper is of an older version."""
    pidfd: int = -1
    uid: int = -1
    pid: int = 0
    ready: bool = False
    ending: bool = False
    told: bool = False
    """Whether its end has been reported."""
    cause: tuple[str, str] = ("", "")
    """Code and public text of the end, where the monitor has decided on it."""
    person: bytes = b""
    """The mapper's digest of whose it is; empty for one whose keeper is of an older version."""
    literal: bool = False
    """Whether the mapping file spells the account's name."""
    identities: str = ""
    """Whose it is, for the log."""
    source: str = ""
    """Where the account was found at the start: `files` for this host's own, else empty."""
    mapped_at: float = 0.0
    """By the monotonic clock, when the mapper last said, of what the relay had signed, that its person maps to this
    account. 0: not known, of one that was just adopted."""
    mapping_said: str = ""
    """The code of what the mapper has said since, where it could not say."""
    overdue: bool = False
    """Whether that is too long ago."""
    warn_age: float = 0.0
    """The age at which the next warning is due, once it is overdue."""
    admitted_at: float = 0.0
    """When the account was last found fit; 0 is not by this monitor."""
    account_overdue: bool = False
    """Whether that is too long ago."""
    check_due: float = 0.0
    """When the account is to be looked at again."""
    late: Timer | None = None
    """Ends a keeper that hangs."""
    watchdog: Timer | None = None
    """Ends a keeper that was told to stop and does not end."""

    def is_named(self, incarnation: bytes) -> bool:
        """Tell whether a message about this incarnation is about this process; an unknown one may be about any."""
        return not incarnation or not self.incarnation or incarnation == self.incarnation

    def public(self) -> dict[str, Any]:
        """What status.json, which everybody may read, says of it."""
        state = "stopping" if self.ending else "running" if self.ready else "starting"
        value = {"uep_id": self.uep_id, "local_user": self.local_user, "pid": self.pid, "state": state}
        times = {"mapping_checked_at": self.mapped_at, "account_checked_at": self.admitted_at}
        if self.mapped_at and self.admitted_at:
            times["checked_at"] = min(self.mapped_at, self.admitted_at)
        # They are by the monotonic clock; what is shown goes by the calendar.
        now, calendar = time.monotonic(), time.time()
        value |= {name: round(calendar - (now - at), 1) for name, at in times.items() if at}
        flags = {"overdue": self.overdue, "account_overdue": self.account_overdue}
        return value | {name: True for name, flag in flags.items() if flag}


class Endpoints(dict[str, UserEndpoint]):
    """User endpoints by their id."""

    def of_uid(self, uid: int) -> int:
        """Return how many the account with `uid` has."""
        return sum(one.uid == uid for one in self.values())

    def of_another(self, person: bytes, uid: int) -> list[UserEndpoint]:
        """Return those of the account with `uid` that are not `person`'s; one of an unknown person may be anybody's."""
        return [one for one in self.values() if one.uid == uid and one.person != person]

    def of_user(self, local_user: str) -> int:
        """Return how many were started for the account of this name."""
        return sum(one.local_user == local_user for one in self.values())

    def starting(self) -> int:
        """Return how many are being started."""
        return sum(not one.ready and not one.ending and one.keeper is not None for one in self.values())

    def by_keeper(self, pid: int) -> UserEndpoint | None:
        """Return the one whose keeper has `pid`."""
        return next((one for one in self.values() if one.keeper_pid == pid), None)
