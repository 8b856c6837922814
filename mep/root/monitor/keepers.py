"""The monitor's side of keepers: fork one for a start, grant caps, receive its messages, stop it, clean up after it.

Keepers are root's own processes, yet their messages are checked like all others. Called by the modules above this
one, which are told by `answered` and `gone`. adoption.py adopts keepers that a former monitor forked.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from mep.boundary import messages as m
from mep.boundary.cgroup_support import ROOT
from mep.boundary.channel import Channel, clip
from mep.boundary.errors import NO_ROOM, OWN_LIMIT, SCARCE, Refusal, StartStage, public_text
from mep.boundary.memfd import sealed_memfd
from mep.boundary.runtime_files import boot_id, start_ticks
from mep.root.keeper.keeper import KeeperOrder, keeper_main
from mep.root.keeper.supervisor import STOPPED
from mep.root.kernel.cgroup import kill, remove
from mep.root.kernel.keeper_record import ENDED, KeeperRecord, kill_user_endpoint
from mep.root.kernel.process_tree import children
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.start import Start, StartVerdict, outcome_of, refused, verdict_on
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import RunningEndpoint, UepEvent, UepPhase
from mep.root.pam.session_process import CLOSE_S

LATE_S = 5.0
"""Extra time after its own deadline before the monitor kills a keeper."""

KILL_AFTER_S = 10.0
"""Extra time after grace and cleanup before the monitor kills a keeper that was told to stop."""

_START_RECORDS_BYTES = 4096
"""Bytes that a start with a keeper adds to log and audit log, including its end, besides the identities."""
_KEEPER_KILLED = "its keeper was killed"
PACE_S = 0.02
"""Keepers check their accounts at different times, this long apart on average."""
AGAIN_S = 5.0
CLEAN_UP_S = 1.0
"""Delay before a group is removed after its processes were killed."""


class Keepers(Part):
    """Starts, stops and cleans up after keepers."""

    def __init__(
        self, shared: Shared, to_manager: ToManager, budget: DayBudget, *, forked: Callable[[Child], None],
        answered: Callable[[str, StartVerdict], None], gone: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`budget` is for records of starts. `forked` is called with each new keeper, `answered` once for each start
        that `fork` began, `gone` when the keeper of a user endpoint is gone; the two are given its id.
        """
        super().__init__(shared)
        self._to_manager, self._budget = to_manager, budget
        self._forked, self._answered, self._gone = forked, answered, gone
        self.closing: set[int] = set()
        """PAM processes without a keeper, which was killed. They close their session and then exit by themselves."""
        self.cleaning_up = 0
        """How many groups are still to be removed because their keeper was killed."""

    def free_slots(self) -> int:
        """Return how many more starts may be in progress. `fork` refuses a start beyond max_user_endpoints."""
        return self._configuration.resolved.caps.max_starting - self._endpoints.starting()

    def _full(self, start: Start) -> StartVerdict | None:
        """Return a refusal if there is no room for one more.

        Counts by account name, before the slow look-ups. The keeper asks again with the uid.
        """
        caps = self._configuration.resolved.caps
        if len(self._endpoints) >= caps.max_user_endpoints:
            text = public_text(Refusal.SITE_BUSY, limit=caps.max_user_endpoints)
            return refused(Refusal.SITE_BUSY, text, stage=StartStage.CAPS.name)
        if self._endpoints.of_user(start.local_user) >= caps.max_user_endpoints_per_user:
            text = OWN_LIMIT.format(limit=caps.max_user_endpoints_per_user)
            return refused(Refusal.PERSON_LIMIT, text, stage=StartStage.CAPS.name)
        return None

    def fork(self, start: Start, descriptor: int) -> StartVerdict | None:
        """Fork the keeper of a mapped start; return the refusal if there can't be one. `descriptor` is its document.

        If a keeper is forked, `answered` is called later, never from here.
        """
        try:
            if full := self._full(start):
                return full
            start.paid = self._budget.take(2 * len(start.identities) + _START_RECORDS_BYTES)
            if not start.paid or (not self._recorded(start) and self._configuration.resolved.audit_required):
                return refused(Refusal.AUDIT_UNAVAILABLE, stage=StartStage.CAPS.name)
            self._fork(start, descriptor)
        except OSError as error:
            stage = StartStage.FORK_KEEPER.name
            code, text = Refusal.START_FAILED, public_text(Refusal.START_FAILED, stage=stage)
            if error.errno in SCARCE:
                code, text = Refusal.SITE_BUSY, NO_ROOM.format(stage=stage)
            return refused(code, text, stage=stage, detail=str(error))
        finally:
            os.close(descriptor)
        return None

    def _recorded(self, start: Start) -> bool:
        """Record the attempt first. Otherwise a user endpoint could run without a record in the audit log."""
        return self._audit.write(
            "request", uep_id=start.uep_id, local_user=start.local_user, identities=start.identities,
            correlation_id=start.correlation_id,
        )  # fmt: skip

    def _fork(self, start: Start, descriptor: int) -> None:
        self._records.make(start.uep_id)
        ours, theirs = Channel.pair()
        order = self._order(start, descriptor)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            self._records.remove(start.uep_id)
            raise
        if pid == 0:
            keeper_main(order, theirs)
        theirs.close()
        child = Child(ChildKind.KEEPER, pid, ours, Phase.ADMITTING, self._loop)
        child.uep_id = start.uep_id
        self._forked(child)
        endpoint = RunningEndpoint(
            start.uep_id, start.local_user, start.correlation_id, pid, child, incarnation=start.incarnation,
            person=start.person, literal=start.literal, identities=start.identities,
            checked_by=self._configuration.resolved,
        )  # fmt: skip
        self.mapping_confirmed(endpoint, start.mapped_at)
        self._endpoints[start.uep_id] = endpoint
        endpoint.late = self._loop.after(order.site.caps.start_timeout_s + LATE_S, lambda: self._late(child))
        self._status.changed()

    def mapping_confirmed(self, endpoint: RunningEndpoint, at: float) -> None:
        """Store that the mapping of this person to this account was confirmed `at`, also for a later monitor."""
        endpoint.mapped_at, endpoint.mapping_said = at, ""
        endpoint.overdue, endpoint.warn_age = False, 0.0
        try:
            self._records.note_mapped(endpoint.uep_id, at)
        except OSError as error:
            self._log.error("cannot record a mapping check", uep=endpoint.uep_id, error=error.strerror)

    def _order(self, start: Start, descriptor: int) -> KeeperOrder:
        configuration = self._configuration
        return KeeperOrder(
            start.uep_id, start.local_user, start.correlation_id, start.incarnation, descriptor, configuration.bundle,
            configuration.resolved, configuration.account_checks(), configuration.open_files,
            identities=start.identities, person=start.person, literal=start.literal,
        )  # fmt: skip

    def _late(self, child: Child) -> None:
        """Kill a keeper that hangs in NSS. Its child dies with it."""
        endpoint = self._endpoints.get(child.uep_id)
        if (
            endpoint is not None
            and endpoint.keeper is child
            and endpoint.phase in {UepPhase.STARTING, UepPhase.CANCELLING}
        ):
            record = self._records.read(child.uep_id)
            detail = f"the keeper hangs {record.detail if record is not None else ''}"
            seconds = self._configuration.resolved.caps.start_timeout_s
            text = public_text(Refusal.START_TIMEOUT, seconds=f"{seconds:g}")
            self._answer(endpoint, Refusal.START_TIMEOUT, text, stage=child.phase.name, detail=detail)
            endpoint.take(UepEvent.REPORTED)
            child.signal(signal.SIGKILL)

    def _answer(self, endpoint: RunningEndpoint, code: str, public: str, **audit: object) -> None:
        asked_for_place = endpoint.uid >= 0 or audit.get("stage") == StartStage.CAPS.name  # caps come after policy
        admitted = "admitted" if asked_for_place else "not asked"
        policy = "refused" if code in {Refusal.ACCOUNT_REFUSED, Refusal.ACCOUNT_SHARED} else admitted
        audit = {"policy": policy, **_who(endpoint), **audit}
        self._answered(endpoint.uep_id, StartVerdict(outcome_of(code), code, public, audit))

    # --- messages from keepers ------------------------------------------------------------------------------

    def grant_or_deny(self, child: Child, message: m.AskCaps) -> None:
        """Answer AskCaps."""
        endpoint = self._endpoints[child.uep_id]
        denied = self._denied(endpoint, message.uid)
        if denied is None:
            endpoint.uid = message.uid
        child.send(denied or m.CapsGranted())

    def _denied(self, endpoint: RunningEndpoint, uid: int) -> m.StartDenied | None:
        """Return why `uid`, which the keeper has found and admitted, may have no further user endpoint."""
        if (ban := self._restrictions.ban_of(endpoint.local_user, uid)) is not None:
            verdict = verdict_on(ban)
            return m.StartDenied(verdict.code, verdict.public, f"uid {uid} is banned as {ban.local_user}")
        if other := self._shared_with(endpoint, uid):
            detail = f"uid {uid} runs {other.uep_id} of {other.local_user} for another person: {other.identities}"
            code = Refusal.ACCOUNT_SHARED
            return m.StartDenied(code, public_text(code), clip(detail, m.MAX_TEXT))
        limit = self._configuration.resolved.caps.max_user_endpoints_per_user
        if self._endpoints.of_uid(uid) >= limit:
            public = OWN_LIMIT.format(limit=limit)
            return m.StartDenied(Refusal.PERSON_LIMIT, public, f"{endpoint.local_user} has {limit} already")
        return None

    def _shared_with(self, endpoint: RunningEndpoint, uid: int) -> RunningEndpoint | None:
        """Return another person's user endpoint that keeps `endpoint` from running as `uid`, if there is one.

        Accounts are compared by uid, because one uid may have several names.
        """
        mode = self._configuration.resolved.shared_accounts
        if mode == "allow":
            return None
        others = self._endpoints.of_another(endpoint.person, uid)
        return next((one for one in others if mode == "refuse" or not (endpoint.literal and one.literal)), None)

    def spawned(self, child: Child, pid: int) -> None:
        """Record the pid of a user endpoint that was exec'd."""
        endpoint = self._endpoints[child.uep_id]
        endpoint.pid = pid
        self._to_manager.account(endpoint)
        self._status.changed()

    def ready(self, child: Child) -> None:
        """Answer the start of a user endpoint that is ready."""
        endpoint = self._endpoints[child.uep_id]
        endpoint.take(UepEvent.READY)
        endpoint.admitted_at = self._loop.clock()
        audit = {"policy": "admitted", **_who(endpoint)}
        self._answered(endpoint.uep_id, StartVerdict(m.StartOutcome.STARTED, "", "", audit))
        self._status.changed()
        self.account_checked(endpoint.uep_id)

    def ended(self, child: Child, message: m.UepEnded) -> None:
        """Answer a start that failed; if it was answered already, report the user endpoint's end."""
        endpoint = self._endpoints[child.uep_id]
        if not endpoint.starts:
            self._report_end(endpoint, message.code, message.public, message.detail)
            return
        endpoint.take(UepEvent.REPORTED)
        stage = StartStage(message.stage).name if message.stage in set(StartStage) else str(message.stage)
        self._answer(endpoint, message.code, message.public, stage=stage, errno=message.errno, detail=message.detail)

    def _report_end(self, endpoint: RunningEndpoint, code: str, public: str, detail: str) -> None:
        if endpoint.phase is UepPhase.ENDED:
            return
        endpoint.take(UepEvent.REPORTED)
        if endpoint.cause[0]:
            detail = f"{code}: {detail}"
            code, public = endpoint.cause
        self._to_manager.ended(endpoint, code, public)
        self._audit.write(
            "end", code=code, cause=public, uep_id=endpoint.uep_id, local_user=endpoint.local_user, **_who(endpoint),
            detail=detail, correlation_id=endpoint.correlation_id,
        )  # fmt: skip
        self._log.write(
            "INFO" if code in {STOPPED, "IDLE"} else "WARNING", "user endpoint ended", code=code, uep=endpoint.uep_id,
            user=endpoint.local_user, detail=detail, correlation_id=endpoint.correlation_id,
        )  # fmt: skip

    # --- re-checks of accounts ----------------------------------------------------------------------------

    def check_accounts(self) -> None:
        """Have every keeper check its account soon, by the policy in force."""
        running = [one for one in self._endpoints.values() if one.runs]
        for endpoint in running:
            if not endpoint.check_asked:
                self._check(endpoint, int(PACE_S * 1000 * len(running)))

    def account_checked(self, uep_id: str) -> None:
        """The keeper of `uep_id` has checked its account. Have it check again if the policy was another one."""
        endpoint = self._endpoints[uep_id]
        endpoint.check_asked = False
        if endpoint.runs and endpoint.checked_by is not self._configuration.resolved:
            self._check(endpoint, 0)

    def _check(self, endpoint: RunningEndpoint, within_ms: int) -> None:
        """Ask for one check at a time: a keeper that is stopped must not collect descriptors."""
        if endpoint.keeper is None:
            return
        try:
            policy = sealed_memfd("mep-policy", self._configuration.account_checks().to_json())
        except OSError as error:
            self._log.error("a keeper does not get the policy now", uep=endpoint.uep_id, error=error.strerror)
            self._loop.after(AGAIN_S, self.check_accounts)
            return
        endpoint.check_asked, endpoint.checked_by = True, self._configuration.resolved
        endpoint.keeper.send(m.CheckAccount(within_ms=within_ms), [policy])

    # --- ends -------------------------------------------------------------------------------------------

    def gone(self, endpoint: RunningEndpoint) -> None:
        """The keeper's process is gone: send the reports that it couldn't send, and forget it."""
        record = self._records.read(endpoint.uep_id)
        if record is not None and record.pam_pid in children() and start_ticks(record.pam_pid) == record.pam_start:
            self.closing.add(record.pam_pid)
        if record is not None and record.state != ENDED and record.boot_id == boot_id():
            kill_user_endpoint(record)
            self._clean_up_cgroup(record.cgroup)
        if endpoint.phase is not UepPhase.ENDED:
            self._speak_for(endpoint, record)
        self._records.remove(endpoint.uep_id)
        for timer in (endpoint.late, endpoint.watchdog):
            if timer is not None:
                timer.cancel()
        del self._endpoints[endpoint.uep_id]
        self._status.changed()
        self._gone(endpoint.uep_id)

    def _speak_for(self, endpoint: RunningEndpoint, record: KeeperRecord | None) -> None:
        if record is not None and record.state == ENDED:
            code, public, detail = record.code, record.public, record.detail
        else:
            code, public = "USER_ENDPOINT_LOST", "The user endpoint's keeper was killed."
            detail = "the keeper ended without a record; what was left was killed"
        if endpoint.is_known_to_run:
            self._report_end(endpoint, code, public, detail)
            return
        endpoint.take(UepEvent.REPORTED)
        if code == "USER_ENDPOINT_LOST":
            code, public = Refusal.START_INTERRUPTED, public_text(Refusal.START_INTERRUPTED, reason=_KEEPER_KILLED)
        self._answer(endpoint, code, public, detail=detail)

    def _clean_up_cgroup(self, path: str) -> None:
        """Kill all processes in the group of a user endpoint after its keeper was killed."""
        if not path.startswith(ROOT + "/"):
            return
        kill(path)
        self.cleaning_up += 1
        self._loop.after(CLEAN_UP_S, lambda: self._cgroup_killed(path))

    def _cgroup_killed(self, path: str) -> None:
        self.cleaning_up -= 1
        remove(path, tries=1)

    def revoke(self, endpoint: RunningEndpoint, code: str, public: str, detail: str, correlation_id: str) -> None:
        """End a user endpoint with a code of REVOCATIONS, and give log, audit log and manager the reason."""
        who = {"uep_id": endpoint.uep_id, "local_user": endpoint.local_user}
        said = {"code": str(code), "detail": detail, "correlation_id": correlation_id}
        self._audit.write("revoke", **said, **who, uid=endpoint.uid, pid=endpoint.pid)
        self._log.warning("revoking user endpoint: owner no longer authorized", **said, **who)
        endpoint.correlation_id = correlation_id
        self._to_manager.revoked(endpoint, code, public)
        self.end(endpoint, code, public)

    def end(self, endpoint: RunningEndpoint, code: str, public: str) -> None:
        """End a user endpoint; whatever its keeper says later, its end has this code and text."""
        endpoint.cause = (code, public)
        self.stop(endpoint, public, code)

    def stop(self, endpoint: RunningEndpoint, public: str, code: str = STOPPED) -> None:
        """Tell the keeper to end its user endpoint within the configured grace."""
        endpoint.take(UepEvent.STOP)
        self._status.changed()
        if endpoint.watchdog is None:
            endpoint.watchdog = self._loop.after(self.patience_s(), lambda: self._kill(endpoint))
        keeper = endpoint.keeper
        if keeper is not None and keeper.open:
            grace_ms = int(self._configuration.resolved.caps.stop_grace_s * 1000)
            keeper.send(m.StopUserEndpoint(grace_ms=grace_ms, code=code, public=public))
        elif keeper is not None:
            keeper.signal(signal.SIGTERM)

    def undoing_s(self) -> float:
        """Return how long a keeper may take to close a session and run a hook after its user endpoint is gone."""
        resolved = self._configuration.resolved
        hook = resolved.post_stop_hook.timeout_s if resolved.post_stop_hook.path else 0.0
        return hook + (CLOSE_S if resolved.pam.enable else 0.0)

    def patience_s(self) -> float:
        """Return how long a keeper may take to end after it was told to stop."""
        return self._configuration.resolved.caps.stop_grace_s + self.undoing_s() + KILL_AFTER_S

    def stop_all(self, public: str) -> None:
        """Stop every user endpoint."""
        for endpoint in list(self._endpoints.values()):
            if not endpoint.stops:
                self.stop(endpoint, public)

    def kill_all(self) -> None:
        """Kill the keepers that didn't end their user endpoints in time, and those user endpoints."""
        for endpoint in self._endpoints.values():
            self._kill(endpoint)

    def _kill(self, endpoint: RunningEndpoint) -> None:
        """Kill a keeper that doesn't end. Its orphans are killed after its process is gone."""
        self._log.error("a keeper does not end: killing it", uep=endpoint.uep_id, user=endpoint.local_user)
        if endpoint.keeper is not None:
            endpoint.keeper.signal(signal.SIGKILL)


def _who(endpoint: RunningEndpoint) -> dict[str, object]:
    """Return the audit fields of a user endpoint's processes, without those that don't exist."""
    return {
        "uid": endpoint.uid if endpoint.uid >= 0 else None,
        "pid": endpoint.pid or None,
        "keeper_pid": endpoint.keeper_pid or None,
    }
