"""The monitor's side of keepers: fork one for a start, grant caps, receive its messages, stop it, clean up after it.

Keepers are root's own processes, yet their messages are checked like all others. Called by handlers.py,
start_requests.py and monitor.py. adoption.py adopts keepers that a former monitor forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from mep.boundary import messages as m
from mep.boundary.cgroup_support import ROOT
from mep.boundary.channel import Channel, clip
from mep.boundary.errors import NO_ROOM, OWN_LIMIT, SCARCE, Refusal, Stage, public_text
from mep.boundary.runtime_files import boot_id, start_ticks
from mep.root.account.lookup import AccountRules
from mep.root.keeper.cgroup import kill, remove
from mep.root.keeper.keeper import KeeperOrder, keeper_main
from mep.root.keeper.supervisor import STOPPED
from mep.root.kernel.keeper_record import ENDED, KeeperRecord, kill_user_endpoint
from mep.root.kernel.subreaper import children
from mep.root.monitor.child import Child, Kind, Phase
from mep.root.monitor.start_requests import Start, outcome_of
from mep.root.monitor.user_endpoints import UserEndpoint
from mep.root.pam.session_process import CLOSE_S

if TYPE_CHECKING:
    from mep.root.monitor.monitor import Monitor

LATE_S = 5.0
"""Extra time after its own deadline before the monitor kills a keeper."""

KILL_AFTER_S = 10.0
"""Extra time after grace and cleanup before the monitor kills a keeper that was told to stop."""

_START_RECORDS_BYTES = 4096
"""Bytes that a start with a keeper adds to log and audit log, including its end, besides the identities."""
BURY_S = 1.0
"""Delay before a group is removed after its processes were killed."""


class Keepers:
    """Starts, stops and cleans up after keepers."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._endpoints = monitor.endpoints
        self.closing: set[int] = set()
        """PAM processes without a keeper, which was killed. They close their session and then exit by themselves."""
        self.burying = 0
        """How many groups are still to be removed because their keeper was killed."""

    def places_left(self) -> int:
        """Return how many more starts may be in progress. `fork` refuses a start beyond max_user_endpoints."""
        return self._monitor.resolved.caps.max_starting - self._endpoints.starting()

    def _full(self, start: Start) -> str:
        """Return the public text of a refusal if there is no room for one more, else an empty string.

        Counts by account name, before the slow look-ups. The keeper asks again with the uid.
        """
        caps = self._monitor.resolved.caps
        if len(self._endpoints) >= caps.max_user_endpoints:
            return public_text(Refusal.SITE_BUSY, limit=caps.max_user_endpoints)
        if self._endpoints.of_user(start.local_user) >= caps.max_user_endpoints_per_user:
            return OWN_LIMIT.format(limit=caps.max_user_endpoints_per_user)
        return ""

    def fork(self, start: Start, descriptor: int) -> None:
        """Fork the keeper of a mapped start. `descriptor` is its document."""
        try:
            if text := self._full(start):
                self._monitor.starts.kept(start.uep_id, m.Outcome.UNAVAILABLE, Refusal.SITE_BUSY, text, stage="CAPS")
                return
            start.paid = self._monitor.start_records.take(2 * len(start.identities) + _START_RECORDS_BYTES)
            if not start.paid or (not self._recorded(start) and self._monitor.resolved.audit_required):
                code = Refusal.AUDIT_UNAVAILABLE
                self._monitor.starts.kept(start.uep_id, m.Outcome.UNAVAILABLE, code, public_text(code), stage="CAPS")
                return
            self._fork(start, descriptor)
        except OSError as error:
            stage = Stage.FORK_KEEPER.name
            code, text = Refusal.START_FAILED, public_text(Refusal.START_FAILED, stage=stage)
            if error.errno in SCARCE:
                code, text = Refusal.SITE_BUSY, NO_ROOM.format(stage=stage)
            self._monitor.starts.kept(start.uep_id, outcome_of(code), code, text, stage=stage, detail=str(error))
        finally:
            os.close(descriptor)

    def _recorded(self, start: Start) -> bool:
        """Record the attempt first. Otherwise a user endpoint could run without a record in the audit log."""
        return self._monitor.audit.write(
            "request", uep_id=start.uep_id, local_user=start.local_user, identities=start.identities,
            correlation_id=start.correlation_id,
        )  # fmt: skip

    def _fork(self, start: Start, descriptor: int) -> None:
        ours, theirs = Channel.pair()
        order = self._order(start, descriptor)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            keeper_main(order, theirs)
        theirs.close()
        child = self._monitor.add_child(Child(Kind.KEEPER, pid, ours, Phase.ADMITTING, self._monitor.loop))
        child.uep_id = start.uep_id
        endpoint = UserEndpoint(
            start.uep_id, start.local_user, start.correlation_id, pid, child, incarnation=start.incarnation
        )
        endpoint.person, endpoint.literal, endpoint.identities = start.person, start.literal, start.identities
        self._monitor.rechecks.ages.confirmed(endpoint, start.mapped_at)
        self._endpoints[start.uep_id] = endpoint
        endpoint.late = self._monitor.loop.after(order.start_timeout_s + LATE_S, lambda: self._late(child))
        self._monitor.status.changed()

    def _order(self, start: Start, descriptor: int) -> KeeperOrder:
        resolved = self._monitor.resolved
        return KeeperOrder(
            uep_id=start.uep_id,
            local_user=start.local_user,
            correlation_id=start.correlation_id,
            incarnation=start.incarnation,
            start_descriptor=descriptor,
            bundle_descriptor=self._monitor.bundle,
            rules=self.rules(),
            switch=resolved.multi_user,
            python=resolved.python,
            user_endpoint_main=resolved.user_endpoint_main,
            path=resolved.user_environment_path,
            runtime_dir=resolved.runtime_dir,
            start_timeout_s=resolved.caps.start_timeout_s,
            stop_grace_s=resolved.caps.stop_grace_s,
            open_files=self._monitor.open_files,
            pam_service=resolved.pam.service_name if resolved.pam.enable else "",
            setuid_programs=resolved.setuid_programs,
            pre_start_hook=resolved.pre_start_hook,
            post_stop_hook=resolved.post_stop_hook,
            limits=resolved.limits,
            group_limits=resolved.group_limits,
            endpoint=resolved.name,
            identities=start.identities,
            person=start.person,
            literal=start.literal,
        )

    def rules(self) -> AccountRules:
        """Return the account rules of the configuration in force."""
        resolved = self._monitor.resolved
        return AccountRules(
            policy=resolved.policy,
            own_accounts=tuple(resolved.own_accounts),
            own_uids=self._monitor.own_uids,
            only_uid=None if resolved.multi_user else os.getuid(),
        )

    def _late(self, child: Child) -> None:
        """Kill a keeper that hangs in NSS. Its child dies with it."""
        endpoint = self._endpoints.get(child.uep_id)
        if endpoint is not None and endpoint.keeper is child and not endpoint.ready and not endpoint.told:
            record = self._monitor.records.read(child.uep_id)
            detail = f"the keeper hangs {record.detail if record is not None else ''}"
            seconds = self._monitor.resolved.caps.start_timeout_s
            text = public_text(Refusal.START_TIMEOUT, seconds=f"{seconds:g}")
            self._answer(endpoint, Refusal.START_TIMEOUT, text, stage=child.phase.name, detail=detail)
            endpoint.told = endpoint.ending = True
            child.signal(signal.SIGKILL)

    def _answer(self, endpoint: UserEndpoint, code: str, public: str, **audit: object) -> None:
        asked_for_place = endpoint.uid >= 0 or audit.get("stage") == Stage.CAPS.name  # caps come after policy
        admitted = "admitted" if asked_for_place else "not asked"
        policy = "refused" if code in {Refusal.ACCOUNT_REFUSED, Refusal.ACCOUNT_SHARED} else admitted
        self._monitor.starts.kept(
            endpoint.uep_id, outcome_of(code), code, public, policy=policy, **_who(endpoint), **audit
        )

    # --- messages from keepers ------------------------------------------------------------------------------

    def grant_or_deny(self, child: Child, message: m.AskCaps) -> None:
        """Answer AskCaps."""
        endpoint, uid = self._endpoints[child.uep_id], message.uid
        if other := self._shared_with(endpoint, uid):
            detail = f"uid {uid} runs {other.uep_id} of {other.local_user} for another person: {other.identities}"
            child.send(m.SharingDenied(detail=clip(detail, m.MAX_TEXT)))
            return
        limit = self._monitor.resolved.caps.max_user_endpoints_per_user
        if self._endpoints.of_uid(uid) >= limit:
            child.send(m.CapsDenied(limit=limit))
            return
        endpoint.uid, endpoint.source = uid, message.source
        child.send(m.CapsGranted())

    def _shared_with(self, endpoint: UserEndpoint, uid: int) -> UserEndpoint | None:
        """Return another person's user endpoint that keeps `endpoint` from running as `uid`, if there is one.

        Accounts are compared by uid, because one uid may have several names.
        """
        mode = self._monitor.resolved.shared_accounts
        if mode == "allow":
            return None
        others = self._endpoints.of_another(endpoint.person, uid)
        return next((one for one in others if mode == "refuse" or not (endpoint.literal and one.literal)), None)

    def spawned(self, child: Child, pid: int) -> None:
        """Record the pid of a user endpoint that was exec'd."""
        endpoint = self._endpoints[child.uep_id]
        endpoint.pid = pid
        self._monitor.tell_account(endpoint)
        self._monitor.status.changed()

    def ready(self, child: Child) -> None:
        """Answer the start of a user endpoint that is ready."""
        endpoint = self._endpoints[child.uep_id]
        endpoint.ready = True
        endpoint.admitted_at = self._monitor.loop.clock()
        endpoint.check_due = endpoint.admitted_at + self._monitor.resolved.manager.recheck_interval_s
        self._monitor.starts.kept(endpoint.uep_id, m.Outcome.STARTED, "", "", policy="admitted", **_who(endpoint))
        self._monitor.status.changed()
        self._monitor.starts.pump()

    def failed(self, child: Child, message: m.KeeperFailed) -> None:
        """Answer a start that failed."""
        endpoint = self._endpoints[child.uep_id]
        endpoint.told = endpoint.ending = True
        stage = Stage(message.stage).name if message.stage in set(Stage) else str(message.stage)
        self._answer(endpoint, message.code, message.public, stage=stage, errno=message.errno, detail=message.detail)

    def exited(self, child: Child, message: m.UepExited) -> None:
        """Report the end of a user endpoint that was ready before."""
        self._report_end(self._endpoints[child.uep_id], message.code, message.public, message.detail)

    def _report_end(self, endpoint: UserEndpoint, code: str, public: str, detail: str) -> None:
        if endpoint.told:
            return
        endpoint.told = endpoint.ending = True
        if endpoint.cause[0]:
            detail = f"{code}: {detail}"
            code, public = endpoint.cause
        self._monitor.tell_ended(endpoint, code, public)
        self._monitor.audit.write(
            "end", code=code, cause=public, uep_id=endpoint.uep_id, local_user=endpoint.local_user, **_who(endpoint),
            detail=detail, correlation_id=endpoint.correlation_id,
        )  # fmt: skip
        self._monitor.log.info(
            "user endpoint ended", code=code, uep=endpoint.uep_id, user=endpoint.local_user, detail=detail
        )

    # --- ends -------------------------------------------------------------------------------------------

    def gone(self, endpoint: UserEndpoint) -> None:
        """The keeper's process is gone: send the reports that it couldn't send, and forget it."""
        record = self._monitor.records.read(endpoint.uep_id)
        if record is not None and record.pam_pid in children() and start_ticks(record.pam_pid) == record.pam_start:
            self.closing.add(record.pam_pid)
        if record is not None and record.state != ENDED and record.boot_id == boot_id():
            kill_user_endpoint(record)
            self._bury(record.cgroup)
        if not endpoint.told:
            self._speak_for(endpoint, record)
        self._monitor.records.remove(endpoint.uep_id)
        for timer in (endpoint.late, endpoint.watchdog):
            if timer is not None:
                timer.cancel()
        if endpoint.pidfd >= 0:
            self._monitor.loop.unwatch(endpoint.pidfd)
            os.close(endpoint.pidfd)
        del self._endpoints[endpoint.uep_id]
        self._monitor.status.changed()
        self._monitor.starts.gone(endpoint.uep_id)

    def _speak_for(self, endpoint: UserEndpoint, record: KeeperRecord | None) -> None:
        if record is not None and record.state == ENDED:
            code, public, detail = record.code, record.public, record.detail
        else:
            code, public = "USER_ENDPOINT_LOST", "The user endpoint's keeper was killed."
            detail = "the keeper ended without a record; what was left was killed"
        if endpoint.ready:
            self._report_end(endpoint, code, public, detail)
            return
        endpoint.told = endpoint.ending = True
        if code == "USER_ENDPOINT_LOST":
            code, public = Refusal.START_FAILED, public_text(Refusal.START_FAILED, stage=Stage.FORK_KEEPER.name)
        self._answer(endpoint, code, public, detail=detail)

    def _bury(self, path: str) -> None:
        """Kill all processes in the group of a user endpoint after its keeper was killed."""
        if not path.startswith(ROOT + "/"):
            return
        kill(path)
        self.burying += 1
        self._monitor.loop.after(BURY_S, lambda: self._buried(path))

    def _buried(self, path: str) -> None:
        self.burying -= 1
        remove(path, tries=1)

    def revoke(self, endpoint: UserEndpoint, code: str, public: str) -> None:
        """End a user endpoint that its owner may no longer have."""
        endpoint.cause = (code, public)
        self.stop(endpoint, public, code)

    def stop(self, endpoint: UserEndpoint, public: str, code: str = STOPPED) -> None:
        """Tell the keeper to end its user endpoint within the configured grace."""
        endpoint.ending = True
        self._monitor.status.changed()
        if endpoint.watchdog is None:
            endpoint.watchdog = self._monitor.loop.after(self.patience_s(), lambda: self._kill(endpoint))
        if endpoint.keeper is not None:
            grace_ms = int(self._monitor.resolved.caps.stop_grace_s * 1000)
            endpoint.keeper.send(m.StopUserEndpoint(grace_ms=grace_ms, code=code, public=public))
        else:
            self._signal(endpoint, signal.SIGTERM)

    def undoing_s(self) -> float:
        """Return how long a keeper may take to close a session and run a hook after its user endpoint is gone."""
        resolved = self._monitor.resolved
        hook = resolved.post_stop_hook.timeout_s if resolved.post_stop_hook.path else 0.0
        return hook + (CLOSE_S if resolved.pam.enable else 0.0)

    def patience_s(self) -> float:
        """Return how long a keeper may take to end after it was told to stop."""
        return self._monitor.resolved.caps.stop_grace_s + self.undoing_s() + KILL_AFTER_S

    def stop_all(self, public: str) -> None:
        """Stop every user endpoint."""
        for endpoint in list(self._endpoints.values()):
            if not endpoint.ending:
                self.stop(endpoint, public)

    def kill_all(self) -> None:
        """Kill the keepers that didn't end their user endpoints in time, and those user endpoints."""
        for endpoint in self._endpoints.values():
            self._kill(endpoint)

    def _kill(self, endpoint: UserEndpoint) -> None:
        """Kill a keeper that doesn't end. Its orphans are killed after its process is gone."""
        self._monitor.log.error("a keeper does not end: killing it", uep=endpoint.uep_id, user=endpoint.local_user)
        self._signal(endpoint, signal.SIGKILL)

    def _signal(self, endpoint: UserEndpoint, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if endpoint.keeper is not None:
                endpoint.keeper.signal(number)
            else:
                signal.pidfd_send_signal(endpoint.pidfd, number)


def _who(endpoint: UserEndpoint) -> dict[str, object]:
    """Return the audit fields of a user endpoint's processes, without those that don't exist."""
    return {
        "uid": endpoint.uid if endpoint.uid >= 0 else None,
        "pid": endpoint.pid or None,
        "keeper_pid": endpoint.keeper_pid or None,
    }
