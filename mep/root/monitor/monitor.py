"""The monitor: wires its parts together, and lists its reactions to signals, children and time.

Trusts its resolved configuration and the kernel. It has one thread and one poll loop, and only the poll blocks. Keepers
make all calls that may hang (NSS, PAM, hooks), and no channel is ever blocking. Each part is given the parts below it,
and calls up only through functions that it was given here. Called by main.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from mep.boundary.channel import clip
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.boundary.messages import LinkStatus, ManagerReady, MapperReady
from mep.boundary.resolved_config import Resolved
from mep.boundary.restrictions import Restrictions
from mep.root.kernel.keeper_record import Records
from mep.root.kernel.process_tree import MAX_REAPS, children, describe_status, reap, reap_each
from mep.root.kernel.signals import Wakeup
from mep.root.monitor import permissions
from mep.root.monitor.admin_socket import AdminPeer, AdminSocket
from mep.root.monitor.administration import Administration
from mep.root.monitor.adoption import Adoption
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.fd_limit import AGAIN_S, Reserve
from mep.root.monitor.helper_process import Helper
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.liveness import Liveness
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.orphans import Orphans
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.reload import Reload
from mep.root.monitor.sd_notify import ServiceManager, notify
from mep.root.monitor.start import StartVerdict
from mep.root.monitor.start_requests import StartRequests
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import Endpoints


class Monitor(Part):
    """The process: its parts, its children and its end."""

    def __init__(
        self, configuration: Configuration, log: Log, audit: Audit, status: StatusFile, endpoints: Endpoints
    ) -> None:
        """Raises OSError, and ConfigRefused for damaged restrictions."""
        resolved = configuration.resolved
        records, restrictions = Records(resolved.runtime_dir), Restrictions(resolved.state_dir)
        shared = Shared(configuration, log, audit, PollLoop(), endpoints, records, status, restrictions)
        super().__init__(shared)
        self._closer, self._reserve = Closer(), Reserve(log)
        self._orphans = Orphans(self._loop, log, self._reap)
        self._of_members = self._log_budget("of members of admin_group")
        self._admins = AdminSocket(shared, self._closer, self._of_members)
        self._helpers = {
            kind: Helper(kind, shared, self._closer, self._log_budget(f"of the {kind}"), launched=self._add_child)
            for kind in (ChildKind.MAPPER, ChildKind.MANAGER)
        }
        self._to_manager = ToManager(shared, self._helpers[ChildKind.MANAGER])
        self._wire(shared)
        self._stopping = False
        self.keep_user_endpoints = False
        self._helpers_told = False
        self._children: dict[int, Child] = {}
        self._found = set(children())
        """Children of the program that became the monitor by exec. They are left alone."""
        self._wakeup = Wakeup(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)

    def _wire(self, shared: Shared) -> None:
        """Make the parts that act, each from those below it."""
        to_manager, mapper = self._to_manager, self._helpers[ChildKind.MAPPER]
        refusals = self._log_budget("on starts that no keeper began, and on re-checks")
        self._keepers = keepers = Keepers(
            shared, to_manager, self._log_budget("on starts that a keeper began", shares=4),
            forked=self._add_child, answered=self._start_answered, gone=self._endpoint_gone,
        )  # fmt: skip
        self._rechecks = rechecks = Rechecks(shared, to_manager, keepers, refusals)
        self._starts = starts = StartRequests(
            shared, self._closer, mapper, to_manager, keepers, self._reserve, refusals, rechecked=rechecks.mapper_says
        )
        self._reload = Reload(shared, send_task_log=to_manager.task_log, taken_over=self._taken_over)
        self._administration = Administration(shared, to_manager, keepers, self._reload, self._of_members)
        self._adoption = Adoption(shared, keepers, adopted=self._add_child)
        self._service_manager = ServiceManager(self._loop)
        self._effects = permissions.Effects(
            starts, keepers, rechecks, self._reload, self._administration,
            manager_ready=self._manager_ready, mapper_ready=self._mapper_ready, link_is=self._link_is,
            deleted=self._deleted, stop=self._told_to_stop,
        )  # fmt: skip

    def _log_budget(self, what: str, *, shares: int = 1) -> DayBudget:
        """Return a day's budget for log lines that manager, mapper or a member of admin_group cause."""
        limit = shares * self._configuration.resolved.log_bytes_a_day
        return DayBudget(what, limit, self._loop, self._log, self._audit)

    def refuse_starts(self) -> None:
        """Start nothing: this monitor runs only until the relay knows of all ends."""
        self._starts.close("The endpoint is being stopped. Your tasks wait until it runs again.")

    def adopt_keepers(self) -> None:
        """Take over the keepers of a former monitor. Raises OSError."""
        self._adoption.adopt_all()

    def run(self) -> None:
        """Serve until told to stop and all children have ended."""
        self._loop.watch(self._wakeup.fileno(), self._take_signals)
        self._status.attach(self._loop, self._log, lambda: self._configuration.resolved.admin_gid)
        for helper in self._helpers.values():
            helper.launch()
        self._rechecks.start()
        self._admins.open(self._take_order)
        self._administration.adopted()
        self._service_manager.start_watchdog()
        Liveness(self._loop, self._watched, self._kill_stopped).start()
        while not self._ended():
            self._loop.turn()
            self._end_faulty()

    # --- calls up from the parts ----------------------------------------------------------------------------

    def _start_answered(self, uep_id: str, answer: StartVerdict) -> None:
        self._starts.finish_from_keeper(uep_id, answer)
        self._administration.started(uep_id)

    def _endpoint_gone(self, uep_id: str) -> None:
        self._starts.endpoint_gone(uep_id)
        self._administration.endpoint_gone(uep_id)

    def _take_order(self, peer: AdminPeer) -> None:
        permissions.take_messages(self._effects, peer)

    def _manager_ready(self, child: Child, message: ManagerReady) -> None:
        self._log.info("the manager is ready", pid=child.pid, version=message.version)
        self._introduce()

    def _mapper_ready(self, child: Child, message: MapperReady) -> None:
        self._log.info("the mapper is ready", pid=child.pid)
        self._to_manager.epoch = message.epoch
        self._introduce()

    def _link_is(self, message: LinkStatus) -> None:
        self._status.show(link_state=clip(message.state, 32), link_detail=clip(message.detail, 1024))
        self._service_manager.link_is(self._status.link_state)

    def _deleted(self, reason: str) -> None:
        self._log.warning("the endpoint was deleted: stopping its user endpoints", reason=clip(reason, 1024))
        self._keepers.stop_all("The endpoint was deleted.")

    def _told_to_stop(self, reason: str) -> None:
        """An administrator has had the relay stop this endpoint (`mep stop --remote`)."""
        self._log.warning("the relay says that the endpoint is to stop", reason=clip(reason, 1024))
        self.stop(keep_user_endpoints=False)

    def _introduce(self) -> None:
        """Tell the manager of the epoch and the user endpoints, once both manager and mapper are ready."""
        if not self._to_manager.introduce():
            return
        if not self._stopping:
            self._status.show(state="up", problem="")
            self._service_manager.helpers_are_ready()
        self._rechecks.all_now()

    def _taken_over(self, former: Resolved, now: Resolved) -> None:
        """Restart each helper if its part of the configuration has changed, and check everything again."""
        changed = {ChildKind.MANAGER: former.manager != now.manager, ChildKind.MAPPER: former.mapper != now.mapper}
        for kind, helper in self._helpers.items():
            if changed[kind] or former.python != now.python:
                helper.shut_down("its configuration has changed")
        self._admins.regroup()
        self._rechecks.all_now()

    # --- children ---------------------------------------------------------------------------------------

    def _add_child(self, child: Child) -> None:
        """Watch a child just forked, or a keeper just adopted."""
        self._children[child.pid] = child
        self._loop.watch(child.channel.fileno(), lambda: self._readable(child))
        if child.pidfd >= 0:
            self._loop.watch(child.pidfd, lambda: self._adopted_gone(child))

    def _adopted_gone(self, child: Child) -> None:
        self._loop.unwatch(child.pidfd)
        os.close(child.pidfd)
        if self._children.get(child.pid) is child:  # else a new child has its pid
            del self._children[child.pid]
        self._gone(child, "")

    def _readable(self, child: Child) -> None:
        child.flush()
        if child.kind in self._helpers and not self._reserve.is_free():  # their messages bring descriptors
            child.pause()
            self._loop.after(AGAIN_S, lambda: child.pause(paused=False))
            return
        try:
            permissions.take_messages(self._effects, child)
        except BoundaryViolation as violation:
            child.fault = str(violation)

    def _end_faulty(self) -> None:
        """Kill every child that has broken the rules of the boundary."""
        for child in [child for child in self._children.values() if child.fault and child.open]:
            phase = child.phase.name
            self._log.error("boundary violation: killing the child", child=child.name, phase=phase, fault=child.fault)
            self._audit.write("violation", child=child.name, phase=phase, fault=child.fault)
            child.close()
            child.signal(signal.SIGKILL)
        for helper in self._helpers.values():
            # The channel of a living child is closed, so the child is useless.
            if helper.child is not None and not helper.child.open and not helper.child.fault:
                helper.child.fault = "it closed its channel"
                helper.child.signal(signal.SIGKILL)

    def _watched(self) -> list[int]:
        """Return the children that something waits for: all but the keepers of user endpoints that are ready."""
        found = [pid for pid, child in self._children.items() if not child.phase & (Phase.RUNNING | Phase.ENDING)]
        return [*found, self._reload.pid] if self._reload.pid else found

    def _kill_stopped(self, pid: int) -> None:
        """Kill a child that was stopped and doesn't go on. It is reaped like any other, and replaced."""
        child = self._children.get(pid)
        name = child.name if child is not None else f"resolver[{pid}]"
        problem = f"{name} was stopped and did not go on: it was killed"
        self._log.error("killing a process that was stopped and does not go on", process=name)
        self._audit.write("killed", child=name, detail="stopped by a signal")
        self._status.report(problem)
        if child is None:
            self._reload.replace()
        else:
            child.signal(signal.SIGKILL)

    def _reap(self) -> None:
        """Reap a bounded number of ended children, then kill the orphans. Reaping first tells orphans from our own."""
        before = children()
        ended, _ = reap()
        more = len(ended) == MAX_REAPS
        if more:
            ended += reap_each([*self._children, *self._keepers.closing])
        for pid, status in ended:
            self._reaped(pid, describe_status(status), status)
        gone = {pid for pid, _ in ended}
        known = {*self._children, *self._found, *self._closer.pids, *self._keepers.closing, self._reload.pid}
        self._orphans.sweep((pid for pid in before if pid not in gone and pid not in known), more=more)

    def _reaped(self, pid: int, how: str, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            self._found.discard(pid)
            self._closer.reaped(pid)
            self._keepers.closing.discard(pid)
            self._reload.reaped(pid, status)
            return
        self._gone(child, how)

    def _gone(self, child: Child, how: str) -> None:
        if not child.fault:
            self._drain(child)
        child.close()
        if child.kind is not ChildKind.KEEPER:
            self._helper_ended(child.kind, how)
        elif (endpoint := self._endpoints.get(child.uep_id)) is not None and endpoint.keeper is child:
            self._keepers.gone(endpoint)

    def _drain(self, child: Child) -> None:
        """Handle the messages that a child sent before it ended."""
        for _ in range(permissions.AT_ONCE):
            if not child.open:
                return
            with contextlib.suppress(BoundaryViolation):
                permissions.take_messages(self._effects, child)

    def _helper_ended(self, kind: ChildKind, how: str) -> None:
        self._helpers[kind].ended(how)
        if kind is ChildKind.MAPPER:
            self._to_manager.epoch = b""
            self._starts.mapper_lost()
        else:
            self._status.show(link_state="gone", link_detail="the manager is not running")
            self._to_manager.manager_lost()
            self._starts.manager_lost()

    # --- signals ------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        caught = self._wakeup.take()
        actions: list[tuple[signal.Signals, Callable[[], None]]] = [
            (signal.SIGCHLD, self._reap),
            (signal.SIGHUP, self._reload.start),
            (signal.SIGUSR1, lambda: self.stop(keep_user_endpoints=True)),
            (signal.SIGTERM, lambda: self.stop(keep_user_endpoints=False)),
            (signal.SIGINT, lambda: self.stop(keep_user_endpoints=False)),
        ]
        for number, action in actions:
            if number in caught:
                action()

    # --- the end --------------------------------------------------------------------------------------------

    def stop(self, *, keep_user_endpoints: bool) -> None:
        """Begin to stop: first user endpoints (unless they are kept), then manager and mapper."""
        if self._stopping:
            return
        self._stopping, self.keep_user_endpoints = True, keep_user_endpoints
        self._log.info("stopping", keep_user_endpoints=keep_user_endpoints)
        self._status.show(state="stopping")
        notify("STOPPING=1")
        for helper in self._helpers.values():
            helper.launch_no_more()
        self._reload.stop()
        self._rechecks.stop()
        self._starts.close("The endpoint is being stopped. Your tasks wait until it runs again.")
        if not keep_user_endpoints:
            self._keepers.stop_all("The endpoint was stopped by its administrator.")
            self._loop.after(self._keepers.patience_s(), self._keepers.kill_all)

    def _ended(self) -> bool:
        """Whether everything has ended. Manager and mapper are told to end once no user endpoint is left."""
        if not self._stopping or (not self.keep_user_endpoints and self._anything_left()):
            return False
        if not self._helpers_told:
            self._helpers_told = True
            for helper in self._helpers.values():
                helper.shut_down("the endpoint is being stopped")
        return all(helper.child is None for helper in self._helpers.values())

    def _anything_left(self) -> bool:
        return bool(self._endpoints or self._keepers.closing or self._keepers.cleaning_up) or self._orphans.wait_for()
