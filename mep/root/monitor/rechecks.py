"""Revocation: running user endpoints are re-checked periodically, and ended if their owner may no longer have them.

Two things are checked. The first is whether the owner still maps to the account. The manager asks the relay for a new
signed statement of the identities; the mapper verifies and maps it, and its answer arrives here.
mapping_confirmations.py, which doesn't trust the manager, watches how long ago the last answer was. The second is
whether the account may still be used. Its keeper looks, which needs neither relay nor manager. An answer of "unknown"
ends nothing. Called by monitor.py and permissions.py.
"""

from __future__ import annotations

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import REVOCATIONS, Refusal, public_text
from mep.boundary.log import Log
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.mapping_confirmations import MappingConfirmations
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import Endpoints

LONGEST_PAUSE_S = 5.0
STATUS_DELAY_S = 2.0


class Rechecks:
    """Decides when user endpoints are re-checked, and acts on the answers."""

    def __init__(
        self, configuration: Configuration, loop: PollLoop, endpoints: Endpoints, log: Log,
        status: StatusFile, to_manager: ToManager, confirmations: MappingConfirmations, keepers: Keepers,
        budget: DayBudget,
    ) -> None:  # fmt: skip
        self._configuration, self._loop, self._endpoints = configuration, loop, endpoints
        self._log, self._status, self._to_manager = log, status, to_manager
        self._confirmations, self._keepers, self._budget = confirmations, keepers, budget
        self._stopped = False
        self._status_due = False

    @property
    def _interval_s(self) -> float:
        return self._configuration.resolved.manager.recheck_interval_s

    def start(self) -> None:
        """Start the periodic checks, and tell the adopted keepers the policy."""
        self._confirmations.start()
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
        self._confirmations.look()
        interval = self._interval_s
        pause = min(LONGEST_PAUSE_S, max(0.1, interval / 8)) if interval else LONGEST_PAUSE_S
        self._loop.after(pause, self._tick)

    # --- accounts -----------------------------------------------------------------------------------------

    def account_checked(self, uep_id: str) -> None:
        """The keeper of `uep_id` has found that its account may be used."""
        self._endpoints[uep_id].admitted_at = self._loop.clock()
        self._keepers.account_checked(uep_id)
        self._show()

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
                self._confirmations.confirmed(endpoint, self._loop.clock())
                self._show()
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

    def _show(self) -> None:
        """Have the times of checks written to the status file later: checks happen often."""
        if not self._status_due:
            self._status_due = True
            self._loop.after(STATUS_DELAY_S, self._show_now)

    def _show_now(self) -> None:
        self._status_due = False
        self._status.changed()
