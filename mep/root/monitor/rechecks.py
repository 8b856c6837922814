"""Revocation: running user endpoints are re-checked periodically, and ended if their owner may no longer have them.

Two things are checked. The first is whether the owner still maps to the account. The manager asks the relay for a new
signed statement of the identities; the mapper verifies and maps it, and its answer arrives here.
mapping_confirmations.py, which doesn't trust the manager, watches how long ago the last answer was. The second is
whether the account may still be used. A checker (account_check.py) looks, which needs neither relay nor manager. An
answer of "unknown" ends nothing. Called by monitor.py and handlers.py.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Sequence

from mep.boundary import messages as m
from mep.boundary.channel import Channel
from mep.boundary.errors import REVOCATIONS, Refusal, public_text
from mep.boundary.log import Log
from mep.root.account.account_check import Subject, checker_main
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.mapping_confirmations import MappingConfirmations
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import Endpoints, RunningEndpoint

MAX_CHECKERS = 4
PACE_S = 0.02
"""Pause between two checkers, to spread a thousand checks that are due together."""
LONGEST_PAUSE_S = 5.0
CHECK_DEADLINE_S = 20.0
SOON_S = 5.0
"""Pause before an account is checked again after a checker that gave no answer."""
STATUS_DELAY_S = 2.0


class Rechecks:
    """Decides when user endpoints are re-checked, and acts on the answers."""

    def __init__(
        self, configuration: Configuration, loop: PollLoop, endpoints: Endpoints, log: Log, audit: Audit,
        status: StatusFile, to_manager: ToManager, confirmations: MappingConfirmations, budget: DayBudget, *,
        forked: Callable[[Child], None], revoke: Callable[[RunningEndpoint, str, str], None],
    ) -> None:  # fmt: skip
        """`forked` is called with each new checker. `revoke` ends a user endpoint, given code and public text."""
        self._configuration, self._loop, self._endpoints = configuration, loop, endpoints
        self._log, self._audit, self._status, self._to_manager = log, audit, status, to_manager
        self._confirmations, self._budget, self._forked, self._revoke = confirmations, budget, forked, revoke
        self._stopped = False
        self._queue: deque[Subject] = deque()
        self._checkers: dict[int, tuple[Subject, list[RunningEndpoint]]] = {}
        """By the checker's pid: the account, and its user endpoints when the checker was forked. The answer applies to
        those alone: a later one was admitted later."""
        self._status_due = False

    @property
    def _interval_s(self) -> float:
        return self._configuration.resolved.manager.recheck_interval_s

    def start(self) -> None:
        """Start the periodic checks."""
        self._confirmations.start()
        self._tick()

    def stop(self) -> None:
        """Check nothing more, because the endpoint is being stopped."""
        self._stopped = True

    def all_now(self) -> None:
        """Check everything soon, because configuration or mapping may have changed."""
        running = [one for one in self._endpoints.values() if one.runs]
        if not running or not self._interval_s or self._stopped:
            return
        for endpoint in running:
            endpoint.check_due = 0.0
        self._to_manager.recheck_all()
        self._tick_at_once()

    # --- accounts -----------------------------------------------------------------------------------------

    def _tick_at_once(self) -> None:
        self._loop.after(0.0, self._look)

    def _tick(self) -> None:
        if self._stopped:
            return
        interval = self._interval_s
        self._look()
        self._confirmations.look()
        pause = min(LONGEST_PAUSE_S, max(0.1, interval / 8)) if interval else LONGEST_PAUSE_S
        self._loop.after(pause, self._tick)

    def _look(self) -> None:
        """Queue each account that is due once."""
        now, interval = self._loop.clock(), self._interval_s
        if not interval or self._stopped:
            return
        pumping = bool(self._queue)
        for endpoint in self._endpoints.values():
            if not endpoint.runs or endpoint.check_due > now:
                continue
            endpoint.check_due = now + interval
            subject = Subject(endpoint.local_user, endpoint.uid, endpoint.source)
            if subject not in self._queue:
                self._queue.append(subject)
        if self._queue and not pumping:
            self._pump()

    def _pump(self) -> None:
        if len(self._checkers) < MAX_CHECKERS:
            self._fork(self._queue.popleft())
        if self._queue:
            self._loop.after(PACE_S, self._pump)

    def _fork(self, subject: Subject) -> None:
        ends: Sequence[Channel] = ()
        try:
            ends = ours, theirs = Channel.pair()
            pid = os.fork()
        except OSError as error:
            for end in ends:
                end.close()
            self._log.warning("cannot fork a checker", user=subject.local_user, error=error.strerror)
            self._check_soon(subject)  # a user may have filled the process table
            return
        if pid == 0:
            pam = self._configuration.resolved.pam
            service = pam.service_name if pam.enable and pam.recheck else ""
            checker_main(subject, self._configuration.rules(), theirs, service)
        theirs.close()
        child = Child(ChildKind.CHECKER, pid, ours, Phase.ADMITTING, self._loop)
        self._forked(child)
        self._checkers[pid] = subject, self._of(subject)
        self._loop.after(CHECK_DEADLINE_S, lambda: self._late(child))

    def _check_soon(self, subject: Subject) -> None:
        for endpoint in self._of(subject):
            endpoint.check_due = min(endpoint.check_due, self._loop.clock() + SOON_S)

    def _late(self, child: Child) -> None:
        if self._checkers.get(child.pid) is not None and child.open:
            child.signal(signal.SIGKILL)

    def account_checked(self, child: Child, problem: str) -> None:
        """Take a checker's answer; an empty `problem` means that the account may be used."""
        now = self._loop.clock()
        subject, there = self._checkers[child.pid]
        for endpoint in [one for one in self._of(subject) if one in there]:
            if problem:
                code = Refusal.ACCOUNT_REFUSED
                self.revoke(endpoint, code, public_text(code), problem, endpoint.correlation_id)
            else:
                endpoint.admitted_at = now
        self._show()

    def not_checked(self, child: Child, reason: str) -> None:
        """A checker can't say. The account's user endpoints keep running."""
        user = self._checkers[child.pid][0].local_user
        self._log.warning("an account cannot be checked now: its processes go on", user=user, reason=reason)

    def checker_ended(self, child: Child) -> None:
        """A checker's process is gone. If it gave no answer, it was killed."""
        if child.phase is not Phase.ENDING:
            self.not_checked(child, f"no answer within {CHECK_DEADLINE_S:g} s, or its checker failed")
            self._check_soon(self._checkers[child.pid][0])
        del self._checkers[child.pid]

    def _of(self, subject: Subject) -> list[RunningEndpoint]:
        running = [one for one in self._endpoints.values() if one.runs]
        return [one for one in running if (one.local_user, one.uid) == (subject.local_user, subject.uid)]

    # --- mapping ------------------------------------------------------------------------------------------

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
            self.revoke(endpoint, code, public_text(code), detail, message.correlation_id)
        elif message.code in REVOCATIONS:
            self.revoke(endpoint, message.code, message.public, message.detail, message.correlation_id)
        elif message.code != endpoint.mapping_said:
            endpoint.mapping_said = message.code
            if not self._budget.take(len(message.detail) + 512):
                return
            self._log.warning(
                "a mapping cannot be checked now: the user endpoint keeps running",
                uep=endpoint.uep_id, user=endpoint.local_user, code=message.code, detail=message.detail,
            )  # fmt: skip

    # --- revocation ---------------------------------------------------------------------------------------

    def revoke(self, endpoint: RunningEndpoint, code: str, public: str, detail: str, correlation_id: str) -> None:
        """End a user endpoint with a code of REVOCATIONS, and give log, audit log and manager the reason."""
        who = {"uep_id": endpoint.uep_id, "local_user": endpoint.local_user}
        said = {"code": str(code), "detail": detail, "correlation_id": correlation_id}
        self._audit.write("revoke", **said, **who, uid=endpoint.uid, pid=endpoint.pid)
        self._log.warning("revoking user endpoint: owner no longer authorized", **said, **who)
        endpoint.correlation_id = correlation_id
        self._to_manager.revoked(endpoint, code, public)
        self._revoke(endpoint, code, public)

    def _show(self) -> None:
        """Have the times of checks written to the status file later: checks happen often."""
        if not self._status_due:
            self._status_due = True
            self._loop.after(STATUS_DELAY_S, self._show_now)

    def _show_now(self) -> None:
        self._status_due = False
        self._status.changed()
