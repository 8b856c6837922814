"""A keeper: the process, forked by the monitor, that starts and watches one user endpoint and outlives the monitor.

This file has the start, stage by stage; supervisor.py has the watch from exec to the end of the last descendant,
whether or not the monitor still runs. A keeper runs as root (single-user mode: as the owner). It is the only process
that calls NSS and hooks (hooks.py); PAM has a process of its own (pam_session.py). If one of these hangs, it hangs
here, under a deadline. Only the keeper's child becomes the user (spawn.py). The keeper is the parent of that child and
the subreaper of all its descendants, and keeps a record of it (keeper_record.py). It trusts its order and the monitor
(monitor_link.py), and nothing of the user endpoint's.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from mep.boundary.channel import Channel, clip
from mep.boundary.errors import (
    NO_ROOM,
    SCARCE,
    SITE_SAYS,
    BoundaryViolation,
    Refusal,
    SpawnFailed,
    StartStage,
    public_text,
)
from mep.boundary.figures import make_page
from mep.boundary.log import Log
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    MAX_TEXT,
    AskCaps,
    CapsGranted,
    CheckAccount,
    Message,
    Spawned,
    StartDenied,
    StopUserEndpoint,
    UepEnded,
)
from mep.boundary.resolved_config import Resolved
from mep.boundary.runtime_files import start_ticks
from mep.root.account.account_check import AccountChecks, Subject
from mep.root.account.lookup import (
    StartRefused,
    check_policy,
    facts_of,
    forbidden_gids,
    limits_of,
    lookup,
    source_of,
)
from mep.root.keeper.account_recheck import AccountRecheck
from mep.root.keeper.hooks import HookResult, run_hook
from mep.root.keeper.monitor_link import MonitorLink
from mep.root.keeper.pam_session import PamProcess
from mep.root.keeper.supervisor import MAX_PUBLIC, STOPPED, ProcessEnding, Supervisor
from mep.root.kernel import process_exit, syscalls
from mep.root.kernel.cgroup import Cgroup, CgroupGate
from mep.root.kernel.keeper_record import ENDED, RUNNING, Records, new_record
from mep.root.kernel.process_tree import kill_descendants
from mep.root.kernel.signals import Wakeup, wait_readable
from mep.root.kernel.spawn import SpawnAccount, SpawnPlan, StageReport, spawn

_STOPPING = "The endpoint is being stopped."
_MAX_REASON = 256
_MAX_IDENTITIES = 1024
_NO_DEADLINE = float("inf")
_DIRECTORY = frozenset({StartStage.PAM_ACCOUNT, StartStage.PAM_CRED, StartStage.PAM_SESSION})
"""Stages at which EAGAIN means that a directory doesn't answer."""


@dataclass(frozen=True, slots=True)
class KeeperOrder:
    """Tells a keeper which user endpoint to start. Descriptors are the monitor's own, inherited by fork."""

    uep_id: str
    local_user: str
    correlation_id: str
    incarnation: bytes
    start_descriptor: int
    bundle_descriptor: int
    site: Resolved
    """The configuration in force."""
    checks: AccountChecks
    """The policy, and how often the account is checked again."""
    open_files: tuple[int, int]
    identities: str = ""
    """For hooks: the identities that the mapper wrote for the audit log."""
    person: bytes = b""
    literal: bool = False

    @property
    def pam_service(self) -> str:
        """The PAM service of the session; empty for none."""
        return self.site.pam.service_name if self.site.pam.enable else ""


class MonitorGone(Exception):
    """The monitor ended before it allowed the start: nothing was started."""


def keeper_main(order: KeeperOrder, channel: Channel) -> NoReturn:
    """Run as the keeper of `order` in the process just forked for it. Never returns."""
    log = Log("keeper")
    process_exit.run_process(lambda: _keep(order, channel, log), log, uep=order.uep_id)


def _keep(order: KeeperOrder, channel: Channel, log: Log) -> None:
    signal.set_wakeup_fd(-1)  # still the monitor's pipe; replaced by our own below
    os.setsid()
    syscalls.set_process_name("mep-keeper")
    syscalls.become_subreaper()
    syscalls.close_all_but([0, 1, 2, channel.fileno(), order.start_descriptor, order.bundle_descriptor])
    wakeup = Wakeup(signal.SIGTERM, signal.SIGCHLD)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    Keeper(order, channel, wakeup, log).run()


class Keeper:
    """The start of one user endpoint, stage by stage, and its supervision."""

    def __init__(self, order: KeeperOrder, channel: Channel, wakeup: Wakeup, log: Log) -> None:
        self._order, self._site, self._wakeup, self._log = order, order.site, wakeup, log
        self._deadline = time.monotonic() + order.site.caps.start_timeout_s
        self._records = Records(order.site.runtime_dir)
        self._link = MonitorLink(channel, log)
        # Clipped, because a record's size is bounded. The audit log has the whole text.
        names = clip(order.identities, _MAX_IDENTITIES)
        who: dict[str, Any] = {"person": order.person.hex(), "literal": order.literal, "identities": names}
        record = new_record(order.uep_id, order.local_user, order.correlation_id, order.incarnation)
        self._record = replace(record, **who)
        self._recheck: AccountRecheck | None = None
        self._session: PamProcess | None = None
        self._gate: CgroupGate | None = None
        self._group: Cgroup | None = None
        self._prepared: SpawnAccount | None = None
        """The account, once post_stop_hook must be told of its end."""

    def run(self) -> None:
        """Start, supervise, clean up, write the exit record."""
        try:
            self._link.open(self._records.path(self._order.uep_id))
            self._records.write(self._record)
            account = self._admitted_account()
            subject = Subject(account.name, account.uid, source_of(account.name))
            self._recheck = recheck = AccountRecheck(subject, self._order.checks, self._log)
            pid, report = self._spawn(account)
        except StartRefused as refusal:
            self._give_up(ProcessEnding(refusal.code, refusal.public, refusal.detail, stage=refusal.stage))
        except SpawnFailed as failure:
            self._give_up(_failed(failure))
        except OSError as error:
            self._give_up(_failed(SpawnFailed(StartStage.FORK_KEEPER, error.errno or 0, str(error))))
        except MonitorGone:
            self._log.warning("the monitor ended before it allowed the start", uep=self._order.uep_id)
            self._records.remove(self._order.uep_id)
        else:
            self._supervise(pid, report, recheck)
        finally:
            self._undo()

    def _admitted_account(self) -> SpawnAccount:
        account = lookup(self._order.local_user)
        check_policy(account, self._order.checks.rules)
        self._prepare(account)
        if self._site.pre_start_hook.path:
            account = self._still_admitted(account)
        # Written before asking: a keeper with a later grant must see this one.
        self._update(uid=account.uid)
        self._link.send(AskCaps(uid=account.uid))
        answer = self._answer()
        if isinstance(answer, StartDenied):
            raise StartRefused(StartStage.CAPS, answer.code, answer.detail, answer.public)
        if not isinstance(answer, CapsGranted):
            raise BoundaryViolation(f"{type(answer).__name__} to a keeper that asked for caps")
        return account

    def _still_admitted(self, account: SpawnAccount) -> SpawnAccount:
        """Repeat the checks after the hook, which may have taken long or changed the account's groups."""
        now = lookup(account.name)
        if now.uid != account.uid:
            detail = f"{account.name} had uid {account.uid} before pre_start_hook ran, and {now.uid} after it"
            raise StartRefused(StartStage.LOOKUP_USER, Refusal.ACCOUNT_REFUSED, detail)
        check_policy(now, self._order.checks.rules)
        return now

    def _spawn(self, account: SpawnAccount) -> tuple[int, socket.socket]:
        """Fork, drop and exec the user endpoint; return its pid and our end of its report channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        order = self._order
        documents = [_reopened(order.start_descriptor), _reopened(order.bundle_descriptor)]
        documents.append(sealed_memfd("mep-account", json.dumps(facts_of(account)).encode()))
        figures = make_page()  # stays open here, for readers
        inherited = [null, null, null, *documents[:2], theirs.fileno(), documents[2], figures]
        limits = limits_of(account, order.site.limits, order.site.group_limits)
        with_pam = bool(order.pam_service)
        self._gate = gate = CgroupGate(order.site.name, order.uep_id, account, limits, waits=with_pam)
        plan = _plan(order, account, inherited, gate)
        try:
            if with_pam:
                self._session = PamProcess(
                    order.pam_service, account.name, forbidden_gids(order.checks.rules.policy), self._log
                )
                pid, stages = self._session.spawn(plan, self._heard, self._begin, self._left)
            else:
                pid, stages = spawn(plan)
        finally:
            theirs.close()
            for descriptor in (null, *documents, order.start_descriptor, order.bundle_descriptor):
                os.close(descriptor)
        self._update(
            uid=account.uid,
            uep_pid=pid,
            uep_start=start_ticks(pid) or 0,
            detail="",
            figures_fd=figures,
            **self._pam_process(),
        )
        self._await_exec(pid, stages, gate)
        ours.setblocking(False)
        return pid, ours

    def _pam_process(self) -> dict[str, int]:
        pid = self._session.pid if self._session is not None else 0
        return {"pam_pid": pid, "pam_start": start_ticks(pid) or 0} if pid else {}

    def _begin(self, stage: StartStage) -> None:
        """Start or continue a stage that may never end. Record which one, for the process that may have to kill us."""
        self._take_order(stage)
        self._update(detail=f"at {stage.name}", **self._pam_process())

    def _take_order(self, stage: StartStage) -> Message | None:
        """Act on an order, and return any other message. Raises StartRefused if the start is over, by order or time."""
        order, descriptors = self._link.receive() or (None, [])
        if isinstance(order, StopUserEndpoint):
            raise StartRefused(stage, order.code, "stopped before it started", order.public)
        if signal.SIGTERM in self._wakeup.take():
            raise StartRefused(stage, STOPPED, "SIGTERM", _STOPPING)
        if self._left() <= 0:
            seconds = f"{self._site.caps.start_timeout_s:g}"
            raise StartRefused(stage, Refusal.START_TIMEOUT, f"no time was left at {stage.name}", seconds=seconds)
        if isinstance(order, CheckAccount) and self._recheck is not None:
            self._recheck.obey(order, descriptors[0])
            return None
        return order

    def _heard(self) -> list[int]:
        """Return the descriptors to poll for a request to stop."""
        return [self._wakeup.fileno(), *self._link.descriptors()]

    def _undo(self) -> None:
        """At the end: release the group and the session, and run the administrator's hook."""
        if self._gate is not None:
            self._gate.close()
        if self._group is not None:
            self._group.close()
        if self._session is not None:
            self._session.close()
        kill_descendants()
        if self._prepared is not None and self._site.post_stop_hook.path:
            how = {"code": self._record.code, "status": self._record.status}
            request = self._request("post_stop", self._prepared, **how)
            self._log_hook("post_stop", run_hook(self._site.post_stop_hook, "post_stop", request, left_s=_NO_DEADLINE))

    # --- hooks ----------------------------------------------------------------------------------------

    def _prepare(self, account: SpawnAccount) -> None:
        """Run pre_start_hook. Raises StartRefused if it refuses, SpawnFailed if it doesn't work."""
        if not self._site.pre_start_hook.path:
            self._prepared = account
            return
        self._begin(StartStage.HOOK)
        result = run_hook(
            self._site.pre_start_hook, "pre_start", self._request("pre_start", account), left_s=self._left(),
            watch=self._heard(), stop=self._asked_to_stop,
        )  # fmt: skip
        self._log_hook("pre_start", result)
        if result.said_no:
            reason = clip(result.output.partition("\n")[0], _MAX_REASON)
            public = SITE_SAYS.format(reason=reason) if reason else ""
            raise StartRefused(StartStage.HOOK, Refusal.ACCOUNT_REFUSED, self._said(result), public)
        if result.stopped:
            raise StartRefused(StartStage.HOOK, STOPPED, "stopped while pre_start_hook ran", _STOPPING)
        if result.problem:
            raise SpawnFailed(StartStage.HOOK, 0, self._said(result))
        self._prepared = account

    def _said(self, result: HookResult) -> str:
        """Return, for the administrator, which program ended how, and its words."""
        words = result.errors or "nothing on standard error"
        return f"pre_start_hook {self._site.pre_start_hook.path}: {result.problem}: {words}"

    def _asked_to_stop(self) -> bool:
        """Tell whether SIGTERM or any message arrived, or the monitor is gone, which hasn't allowed the start yet."""
        return signal.SIGTERM in self._wakeup.take() or self._link.receive() is not None or not self._link.is_first

    def _request(self, event: str, account: SpawnAccount, **more: object) -> bytes:
        """Return the JSON request for a hook. It holds no secrets: the start document is never opened here."""
        order = self._order
        who = {"local_user": account.name, "uid": account.uid, "gid": account.gid, "home": account.home}
        known = {"event": event, "endpoint": order.site.name, "uep_id": order.uep_id, **who}
        return json.dumps(
            {**known, "identities": order.identities, "correlation_id": order.correlation_id, **more}
        ).encode()

    def _log_hook(self, name: str, result: HookResult) -> None:
        level = "WARNING" if result.problem else "INFO"
        words = {"problem": result.problem, "output": clip(result.output, 1024), "errors": clip(result.errors, 1024)}
        said = {key: value for key, value in words.items() if value}
        self._log.write(level, f"{name}_hook ended", uep=self._order.uep_id, **said)

    # --- from exec on -----------------------------------------------------------------------------------

    def _await_exec(self, pid: int, stages: StageReport, gate: CgroupGate) -> None:
        """Put the child into its group. Return once exec has worked. Raises SpawnFailed after reaping the child."""
        try:
            self._group = gate.admit(pid, self._left)
            if self._group is not None:
                self._update(cgroup=self._group.path)
            while not stages.finished():
                if not wait_readable([stages.fileno()], self._left()):
                    raise SpawnFailed(StartStage.EXEC, 0, f"not done in {self._site.caps.start_timeout_s:g} s")
        except SpawnFailed:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            gate.close()
            stages.close()

    def _supervise(self, pid: int, report: socket.socket, recheck: AccountRecheck) -> None:
        if self._link.is_first:
            self._link.send(Spawned(pid=pid))
            order = self._order
            self._log.info("user endpoint started", uep=order.uep_id, pid=pid, correlation_id=order.correlation_id)
        supervisor = Supervisor(
            pid, report, self._link, self._wakeup, self._log, recheck,
            stop_grace_s=self._site.caps.stop_grace_s, group=self._group, session=self._session,
            uep_id=self._order.uep_id,
        )  # fmt: skip
        self._give_up(
            supervisor.run(self._deadline, self._site.caps.start_timeout_s, lambda: self._update(state=RUNNING))
        )

    def _give_up(self, ending: ProcessEnding) -> None:
        """Write the exit record, and tell the monitor."""
        code, public, detail = ending.code, clip(ending.public, MAX_PUBLIC), clip(ending.detail, MAX_TEXT)
        self._update(state=ENDED, ended_at=time.time(), status=ending.status, code=code, public=public, detail=detail)
        self._link.send(UepEnded(ending.stage or 0, ending.errno, code, public, detail))

    def _update(self, **changes: Any) -> None:
        """Update the record. A full disk must not end a user endpoint, so an error is only logged."""
        self._record = replace(self._record, **changes)
        try:
            self._records.write(self._record)
        except OSError as error:
            self._log.error("cannot write the record", uep=self._order.uep_id, error=error.strerror)

    def _answer(self) -> Message:
        """Return the monitor's answer. Raises MonitorGone, and StartRefused if it comes too late."""
        while self._link.is_first:
            wait_readable(self._heard(), self._left())
            if (answer := self._take_order(StartStage.CAPS)) is not None:
                return answer
        raise MonitorGone

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


def _failed(failure: SpawnFailed) -> ProcessEnding:
    """Return the result of a start that failed at a stage. If resources were only scarce, another try may succeed."""
    code, public = Refusal.START_FAILED, public_text(Refusal.START_FAILED, stage=failure.stage.name)
    if failure.errno == errno.EAGAIN and failure.stage in _DIRECTORY:
        code, public = Refusal.MAPPER_UNAVAILABLE, public_text(Refusal.MAPPER_UNAVAILABLE)
    elif failure.errno == errno.EINTR:
        code, public = Refusal.START_INTERRUPTED, public_text(Refusal.START_INTERRUPTED, reason=failure.detail)
    elif failure.errno in SCARCE:
        code, public = Refusal.SITE_BUSY, NO_ROOM.format(stage=failure.stage.name)
    return ProcessEnding(code, public, str(failure), stage=failure.stage, errno=failure.errno)


def _plan(order: KeeperOrder, account: SpawnAccount, inherited: list[int], gate: CgroupGate) -> SpawnPlan:
    return SpawnPlan(
        account=account,
        switch=order.site.multi_user,
        argv=[order.site.python, "-I", order.site.user_endpoint_main],
        environment={
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": account.shell or "/bin/sh",
            "PATH": order.site.user_environment_path,
            "LANG": "C.UTF-8",
        },
        descriptors=inherited,
        directory=account.home or "/",
        open_files=order.open_files,
        setuid_programs=order.site.setuid_programs,
        gate=gate.pipe,
        rlimits=gate.rlimits,
    )


def _reopened(descriptor: int) -> int:
    """Return the same memfd, read-only and with an offset of its own, which user endpoints must not share."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
