"""Revocation: running user endpoints are re-checked periodically, and ended if their owner may no longer have them.

Two things are checked. The first is whether the owner still maps to the account. The manager asks the relay for a new
signed statement of the identities; the mapper verifies and maps it, and its answer arrives here. The second is whether
the account may still be used. Its keeper looks, which needs neither relay nor manager. An answer of "unknown" ends
nothing.

The manager may be compromised, and ask for nothing. So the age of each mapping's last confirmation counts, by two
things alone: the mapper's answer to a statement signed by the relay, and the monotonic clock. Nothing that the manager
says about its link or anything else counts. If a confirmation is too old, the monitor logs a warning. If it is older
than `recheck_max_age_s`, the user endpoint ends. The times outlive the monitor (keeper_record.py).
Called by monitor.py and permissions.py.
"""

from __future__ import annotations

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import REVOCATIONS, Refusal, public_text
from mep.boundary.resolved_config import OVERDUE_INTERVALS
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import RunningEndpoint

_STALL_S = 60.0
"""If this long passes between two looks, the monitor or its host was stopped."""
LONGEST_PAUSE_S = 5.0


class Rechecks(Part):
    """Decides when user endpoints are re-checked, and acts on the answers."""

    def __init__(self, shared: Shared, to_manager: ToManager, keepers: Keepers, budget: DayBudget) -> None:
        super().__init__(shared)
        self._to_manager, self._keepers, self._budget = to_manager, keepers, budget
        self._stopped = False
        self._started_at = self._looked_at = self._ends_from = 0.0

    @property
    def _interval_s(self) -> float:
        return self._configuration.resolved.manager.recheck_interval_s

    def start(self) -> None:
        """Start the periodic checks, and tell the adopted keepers the policy.

        User endpoints of a former monitor are re-checked before any ends; unknown ages count from now.
        """
        now = self._loop.clock()
        self._started_at = self._looked_at = now
        self._ends_from = now + self._warn_age_s()
        for endpoint in self._endpoints.values():
            if not endpoint.mapped_at:
                self._keepers.mapping_confirmed(endpoint, now)
        self._keepers.check_accounts()
        self._tick()

    def stop(self) -> None:
        """Check nothing more, because the endpoint is being stopped."""
        self._stopped = True

    def all_now(self) -> None:
        """Check everything soon, because configuration or mapping may have changed."""
        if self._stopped:
            return
        self._keepers.check_accounts()
        if self._interval_s:
            self._to_manager.recheck_all()

    def _tick(self) -> None:
        if self._stopped:
            return
        self.look()
        interval = self._interval_s
        pause = min(LONGEST_PAUSE_S, max(0.1, interval / 8)) if interval else LONGEST_PAUSE_S
        self._loop.after(pause, self._tick)

    # --- accounts -----------------------------------------------------------------------------------------

    def account_checked(self, uep_id: str) -> None:
        """The keeper of `uep_id` has found that its account may be used."""
        self._endpoints[uep_id].admitted_at = self._loop.clock()
        self._keepers.account_checked(uep_id)

    def account_refused(self, uep_id: str, detail: str) -> None:
        """The keeper of `uep_id` has found that its account may not be used, for this reason."""
        endpoint = self._endpoints[uep_id]
        if endpoint.runs:
            code = Refusal.ACCOUNT_REFUSED
            self._keepers.revoke(endpoint, code, public_text(code), detail, endpoint.correlation_id)

    # --- mapping ------------------------------------------------------------------------------------------

    def mapping_is(self, message: m.MappingStatus) -> None:
        """The mapper says which mapping is in force. If it is a good one, everything is checked by it."""
        self._status.mapping_is(clip(message.loaded, 1024), clip(message.problem, 4096))
        if not message.problem:
            self.all_now()

    def mapper_says(self, message: m.StillMapped | m.NoLongerMapped) -> None:
        """Take the mapper's answer to a re-check."""
        endpoint = self._endpoints.get(message.uep_id)
        if endpoint is None or not endpoint.runs:
            return
        if not endpoint.is_named(message.incarnation):
            self._log.info(
                "a re-check of an earlier process was dropped",
                uep=endpoint.uep_id, user=endpoint.local_user, correlation_id=message.correlation_id,
            )  # fmt: skip
            return
        if isinstance(message, m.StillMapped):
            if message.local_user == endpoint.local_user:
                self.confirmed(endpoint)
                return
            code = Refusal.IDENTITY_REMAPPED
            detail = f"the person maps to {message.local_user} now"
            self._keepers.revoke(endpoint, code, public_text(code), detail, message.correlation_id)
        elif message.code in REVOCATIONS:
            self._keepers.revoke(endpoint, message.code, message.public, message.detail, message.correlation_id)
        elif message.code != endpoint.mapping_said:
            endpoint.mapping_said = message.code
            if not self._budget.take(len(message.detail) + 512):
                return
            self._log.warning(
                "a mapping cannot be checked now: the user endpoint keeps running",
                uep=endpoint.uep_id, user=endpoint.local_user, code=message.code, detail=message.detail,
            )  # fmt: skip

    # --- the age of mappings --------------------------------------------------------------------------------

    def _warn_age_s(self) -> float:
        return OVERDUE_INTERVALS * self._interval_s

    def confirmed(self, endpoint: RunningEndpoint) -> None:
        """Record that the mapping of this person to this account was confirmed now."""
        if endpoint.overdue:
            self._log.info(
                "identity mapping confirmed again after a long gap", uep=endpoint.uep_id, user=endpoint.local_user
            )
            self._status.changed()
        self._keepers.mapping_confirmed(endpoint, self._loop.clock())

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
        self._keepers.revoke(endpoint, code, public_text(code), detail, endpoint.correlation_id)
