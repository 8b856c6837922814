"""The monitor: forks, watches and reaps. Lists its reactions to signals, children and time.

Trusts its resolved configuration and the kernel. It has one thread and one poll loop, and only the poll blocks. Keepers
make all calls that may hang (NSS, PAM, hooks), and no channel is ever blocking. Called by main.py.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable

from mep.boundary.channel import clip
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.boundary.messages import (
    EndpointAccount,
    EndpointEnded,
    EndpointRevoked,
    EndpointRunning,
    MapperEpoch,
    TaskLogFile,
)
from mep.boundary.resolved_config import Resolved
from mep.root.keeper.supervisor import describe_status
from mep.root.kernel.keeper_record import Records
from mep.root.kernel.signals import Wakeup
from mep.root.kernel.subreaper import MAX_REAPS, children, reap, reap_each
from mep.root.monitor import permissions
from mep.root.monitor.audit_log import Audit, open_appending
from mep.root.monitor.child import Child, Kind
from mep.root.monitor.event_loop import Loop
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.helper_process import Helper
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.orphans import Leavings
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.reload import Reload
from mep.root.monitor.sd_notify import notify
from mep.root.monitor.start_requests import Starts
from mep.root.monitor.status_file import Status
from mep.root.monitor.user_endpoints import Endpoints, UserEndpoint

_MAX_UNTOLD = 4096


class Monitor:
    """All state of the monitor. The package's other modules act on it."""

    def __init__(
        self, resolved: Resolved, bundle: int, log: Log, audit: Audit, status: Status, endpoints: Endpoints,
        own_uids: tuple[int, ...], open_files: tuple[int, int],
    ) -> None:  # fmt: skip
        self.resolved, self.bundle, self.log, self.audit = resolved, bundle, log, audit
        self.status, self.endpoints, self.own_uids, self.open_files = status, endpoints, own_uids, open_files
        self.loop = Loop()
        self.closer = Closer()
        self.refusals = self.log_budget("on starts that no keeper began, and on re-checks")
        self.start_records = self.log_budget("on starts that a keeper began", shares=4)
        self.leavings = Leavings(self.loop, log, self._reap)
        self.records = Records(resolved.runtime_dir)
        self.starts = Starts(self)
        self.keepers = Keepers(self)
        self.helpers = {Kind.MAPPER: Helper(Kind.MAPPER, self), Kind.MANAGER: Helper(Kind.MANAGER, self)}
        self.reload = Reload(self)
        self.rechecks = Rechecks(self)
        self.epoch = b""
        self.stopping = False
        self.keep_user_endpoints = False
        self._helpers_told = False
        self._children: dict[int, Child] = {}
        self._found = set(children())
        """Children of the program that became the monitor by exec. They are left alone."""
        self._untold: deque[EndpointEnded] = deque(maxlen=_MAX_UNTOLD)
        self._wakeup = Wakeup(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)

    def run(self) -> None:
        """Serve until told to stop and all children have ended."""
        self.loop.watch(self._wakeup.fileno(), self._take_signals)
        self.status.attach(self.loop, self.log)
        for helper in self.helpers.values():
            helper.launch()
        self.rechecks.start()
        while not self._ended():
            self.loop.turn()
            self._end_faulty()

    def log_budget(self, what: str, *, shares: int = 1) -> DayBudget:
        """Return a day's budget for log lines that manager or mapper cause."""
        return DayBudget(what, shares * self.resolved.log_bytes_a_day, self.loop, self.log, self.audit)

    # --- children ---------------------------------------------------------------------------------------

    def add_child(self, child: Child) -> Child:
        """Watch a child just forked."""
        self._children[child.pid] = child
        self.loop.watch(child.channel.fileno(), lambda: self._readable(child))
        return child

    def _readable(self, child: Child) -> None:
        child.flush()
        try:
            permissions.take_messages(self, child)
        except BoundaryViolation as violation:
            child.fault = str(violation)

    def _end_faulty(self) -> None:
        """Kill every child that has broken the rules of the boundary."""
        for child in [child for child in self._children.values() if child.fault and child.open]:
            phase = child.phase.name
            self.log.error("boundary violation: killing the child", child=child.name, phase=phase, fault=child.fault)
            self.audit.write("violation", child=child.name, phase=phase, fault=child.fault)
            child.close()
            child.signal(signal.SIGKILL)
        for helper in self.helpers.values():
            # The channel of a living child is closed, so the child is useless.
            if helper.child is not None and not helper.child.open and not helper.child.fault:
                helper.child.fault = "it closed its channel"
                helper.child.signal(signal.SIGKILL)

    def _reap(self) -> None:
        """Reap a bounded number of ended children, then kill the orphans. Reaping first tells orphans from our own."""
        before = children()
        ended, _ = reap()
        more = len(ended) == MAX_REAPS
        if more:
            ended += reap_each([*self._children, *self.keepers.closing])
        for pid, status in ended:
            self._reaped(pid, describe_status(status), status)
        gone = {pid for pid, _ in ended}
        known = {*self._children, *self._found, *self.closer.pids, *self.keepers.closing, self.reload.pid}
        self.leavings.sweep((pid for pid in before if pid not in gone and pid not in known), more=more)

    def _reaped(self, pid: int, how: str, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            self._found.discard(pid)
            self.closer.reaped(pid)
            self.keepers.closing.discard(pid)
            self.reload.reaped(pid, status)
            return
        if not child.fault:
            self._drain(child)
        child.close()
        if child.kind is Kind.KEEPER:
            if (endpoint := self.endpoints.by_keeper(pid)) is not None:
                self.keepers.gone(endpoint)
        elif child.kind is Kind.CHECKER:
            self.rechecks.checker_ended(child)
        else:
            self._helper_ended(child.kind, how)

    def _drain(self, child: Child) -> None:
        """Handle the messages that a child sent before it ended."""
        for _ in range(permissions.AT_ONCE):
            if not child.open:
                return
            with contextlib.suppress(BoundaryViolation):
                permissions.take_messages(self, child)

    def _helper_ended(self, kind: Kind, how: str) -> None:
        self.helpers[kind].ended(how)
        if kind is Kind.MAPPER:
            self.epoch = b""
            self.starts.mapper_lost()
        else:
            self.status.link_state, self.status.link_detail = "gone", "the manager is not running"
            self.starts.manager_lost()
        self.status.changed()

    # --- messages to the manager ------------------------------------------------------------------------------

    def introduce(self) -> None:
        """Send the manager the epoch and the running user endpoints, once both manager and mapper are ready."""
        manager = self.helpers[Kind.MANAGER].child
        if manager is None or not self.helpers[Kind.MANAGER].serving or not self.helpers[Kind.MAPPER].serving:
            return
        if not self.stopping:
            self.status.state, self.status.problem = "up", ""
            notify("READY=1")
        self.hand_over_task_log()
        manager.send(MapperEpoch(epoch=self.epoch))
        for endpoint in self.endpoints.values():
            if endpoint.ready and not endpoint.told:
                self.tell_account(endpoint)
                self.tell_running(endpoint)
        while self._untold:
            manager.send(self._untold.popleft())
        self.status.changed()
        self.rechecks.all_now()

    def hand_over_task_log(self) -> None:
        """Send a fresh descriptor of the task log to the manager if it keeps task records; it can only append to it."""
        manager, path = self.helpers[Kind.MANAGER].child, self.resolved.task_log_path
        if manager is None or not self.helpers[Kind.MANAGER].serving or not path:
            return
        try:
            manager.send(TaskLogFile(), [open_appending(path)])
        except OSError as error:
            self.log.error("task records cannot be written", path=path, error=error.strerror)

    def tell_account(self, endpoint: UserEndpoint) -> None:
        """Tell the manager, if it keeps task records, the account of a user endpoint."""
        manager = self.helpers[Kind.MANAGER].child
        if manager is not None and self.helpers[Kind.MANAGER].serving and self.resolved.task_log_path:
            manager.send(
                EndpointAccount(endpoint.uid, endpoint.uep_id, endpoint.local_user, incarnation=endpoint.incarnation)
            )

    def tell_running(self, endpoint: UserEndpoint) -> None:
        """Tell the manager, if it runs, that a user endpoint runs. A later manager is told when it is ready."""
        manager = self.helpers[Kind.MANAGER].child
        if manager is not None and self.helpers[Kind.MANAGER].serving:
            manager.send(EndpointRunning(endpoint.uep_id, incarnation=endpoint.incarnation))

    def tell_revoked(self, endpoint: UserEndpoint, code: str, public: str) -> None:
        """Tell the manager, if it runs, that a user endpoint is being ended. `tell_ended` always reports the end."""
        manager = self.helpers[Kind.MANAGER].child
        if manager is not None and self.helpers[Kind.MANAGER].serving:
            manager.send(EndpointRevoked(*_said_of(endpoint, code, public), incarnation=endpoint.incarnation))

    def tell_ended(self, endpoint: UserEndpoint, code: str, public: str) -> None:
        """Tell the manager, now or when it next runs, that a user endpoint has ended."""
        message = EndpointEnded(*_said_of(endpoint, code, public), incarnation=endpoint.incarnation)
        manager = self.helpers[Kind.MANAGER].child
        if manager is not None and self.helpers[Kind.MANAGER].serving:
            manager.send(message)
        else:
            self._untold.append(message)

    # --- signals ------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        caught = self._wakeup.take()
        actions: list[tuple[signal.Signals, Callable[[], None]]] = [
            (signal.SIGCHLD, self._reap),
            (signal.SIGHUP, self.reload.start),
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
        if self.stopping:
            return
        self.stopping, self.keep_user_endpoints = True, keep_user_endpoints
        self.log.info("stopping", keep_user_endpoints=keep_user_endpoints)
        self.status.state = "stopping"
        notify("STOPPING=1")
        self.status.changed()
        self.starts.abort("The endpoint is being stopped. Your tasks wait until it runs again.")
        if not keep_user_endpoints:
            self.keepers.stop_all("The endpoint was stopped by its administrator.")
            self.loop.after(self.keepers.patience_s(), self.keepers.kill_all)

    def _ended(self) -> bool:
        """Whether everything has ended. Manager and mapper are told to end once no user endpoint is left."""
        if not self.stopping or (not self.keep_user_endpoints and self._anything_left()):
            return False
        if not self._helpers_told:
            self._helpers_told = True
            for helper in self.helpers.values():
                helper.shut_down("the endpoint is being stopped")
        return all(helper.child is None for helper in self.helpers.values())

    def _anything_left(self) -> bool:
        return bool(self.endpoints or self.keepers.closing or self.keepers.burying) or self.leavings.wait_for()


def _said_of(endpoint: UserEndpoint, code: str, public: str) -> tuple[str, str, str, str]:
    return endpoint.uep_id, clip(code, 64), clip(public, 1024), clip(endpoint.correlation_id, 64)
