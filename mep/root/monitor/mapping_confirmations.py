"""How long ago the mapping of each running user endpoint was last confirmed, and the consequences.

A mapping is re-checked when the manager asks the relay for it, and the manager may be compromised. Nothing that the
manager says counts here, whether about its link or anything else. Only two things count: the mapper's answer to a
statement signed by the relay, and the monotonic clock. If a confirmation is too old, the monitor logs a warning.
If it is older than `recheck_max_age_s`, the monitor ends the user endpoint. The times outlive the monitor
(keeper_record.py). Called by rechecks.py and keepers.py; tells by `revoke` which user endpoint must end.
"""

from __future__ import annotations

from collections.abc import Callable

from mep.boundary.errors import Refusal, public_text
from mep.boundary.log import Log
from mep.boundary.resolved_config import OVERDUE_INTERVALS
from mep.root.kernel.keeper_record import Records
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.user_endpoints import Endpoints, RunningEndpoint

_STALL_S = 60.0
"""If this long passes between two looks, the monitor or its host was stopped."""

Revoke = Callable[[RunningEndpoint, str, str, str, str], None]


class MappingConfirmations:
    """Watches `mapped_at` of every running user endpoint."""

    def __init__(
        self, configuration: Configuration, loop: PollLoop, endpoints: Endpoints, records: Records, log: Log,
        audit: Audit, status: StatusFile, *, revoke: Revoke,
    ) -> None:  # fmt: skip
        """`revoke` ends a user endpoint, given code, public text, detail and correlation id."""
        self._configuration, self._loop, self._endpoints = configuration, loop, endpoints
        self._records, self._log, self._audit, self._status = records, log, audit, status
        self._revoke = revoke
        self._started_at = self._looked_at = self._ends_from = 0.0

    def start(self) -> None:
        """Begin. User endpoints of a former monitor are re-checked before any ends; unknown ages count from now."""
        now = self._loop.clock()
        self._started_at = self._looked_at = now
        self._ends_from = now + self._warn_age_s()
        for endpoint in self._endpoints.values():
            if not endpoint.mapped_at:
                self.confirmed(endpoint, now)

    def _warn_age_s(self) -> float:
        return OVERDUE_INTERVALS * self._configuration.resolved.manager.recheck_interval_s

    def confirmed(self, endpoint: RunningEndpoint, at: float) -> None:
        """Record that the mapping of this person to this account was confirmed `at`."""
        if endpoint.overdue:
            self._log.info(
                "identity mapping confirmed again after a long gap",
                uep=endpoint.uep_id, user=endpoint.local_user,
            )  # fmt: skip
            self._status.changed()  # at once: the next warning may be due before other checks are shown
        endpoint.mapped_at, endpoint.mapping_said = at, ""
        endpoint.overdue, endpoint.warn_age = False, 0.0
        try:
            self._records.note_mapped(endpoint.uep_id, at)
        except OSError as error:
            self._log.error("cannot record a mapping check", uep=endpoint.uep_id, error=error.strerror)

    def look(self) -> None:
        """Warn about overdue confirmations, and end user endpoints with one that is too old."""
        now, warn_age = self._loop.clock(), self._warn_age_s()
        if now - self._looked_at > _STALL_S:
            self._ends_from = now + warn_age  # no re-check was possible while this process was stopped
        self._looked_at = now
        if not warn_age:
            return
        limit = self._configuration.resolved.recheck_max_age_s if now >= self._ends_from else 0.0
        for endpoint in [one for one in self._endpoints.values() if one.runs]:
            self._look_at_account(endpoint, now, warn_age)
            age = now - endpoint.mapped_at
            if limit and age > limit:
                self._end(endpoint, age)
            elif age > warn_age:
                self._warn(endpoint, age, warn_age)

    def _look_at_account(self, endpoint: RunningEndpoint, now: float, warn_age: float) -> None:
        """Show that an account couldn't be checked for long. Each check that fails logs a warning of its own."""
        overdue = now - (endpoint.admitted_at or self._started_at) > warn_age
        if overdue != endpoint.account_overdue:
            endpoint.account_overdue = overdue
            self._status.changed()

    def _warn(self, endpoint: RunningEndpoint, age: float, warn_age: float) -> None:
        """Log a warning, first at `warn_age` and then each time the age has doubled."""
        if age < endpoint.warn_age:
            return
        endpoint.overdue, endpoint.warn_age = True, 2 * max(age, warn_age)
        who = {"uep_id": endpoint.uep_id, "local_user": endpoint.local_user}
        self._log.warning(
            "identity mapping not re-verified for too long: relay or directory unreachable, or the manager (possibly "
            "compromised) no longer asks",
            **who, seconds=round(age), said=endpoint.mapping_said or "nothing",
            link_as_the_manager_says=self._status.link_state,
        )  # fmt: skip
        self._audit.write(
            "overdue", **who, uid=endpoint.uid, pid=endpoint.pid, seconds=round(age), said=endpoint.mapping_said
        )
        self._status.changed()

    def _end(self, endpoint: RunningEndpoint, age: float) -> None:
        limit = self._configuration.resolved.recheck_max_age_s
        code = Refusal.MAPPING_UNCONFIRMED
        detail = f"last confirmed {age:.0f} s ago, and recheck_max_age_s is {limit:g}"
        if endpoint.mapping_said:
            detail += f"; since then {endpoint.mapping_said}"
        self._revoke(endpoint, code, public_text(code), detail, endpoint.correlation_id)
