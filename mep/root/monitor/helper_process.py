"""Manager and mapper: started by drop and exec, ended when they misbehave, and restarted with back-off.

A process that holds the log open could truncate it or overwrite it, so helpers write to a pipe. The monitor copies
well-formed lines of the helper's own log and quotes all others in a line of its own. A compromised helper therefore
can't forge another process's entries. Control characters are escaped and lines are cut. Lines beyond a rate per second
are dropped and counted, and so are bytes beyond a daily budget (log_budget.py).

Trusts the resolved configuration, and nothing that a helper writes. Made and called by the monitor, which is told of
each new process and each failure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from socket import SOCK_STREAM

from mep.boundary import cgroup_support
from mep.boundary.channel import Channel
from mep.boundary.errors import ConfigRefused, SpawnFailed
from mep.boundary.file_trust import ours
from mep.boundary.log import Log, copy_line, own_line
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import Shutdown
from mep.boundary.resolved_config import Limits, ManagerSection, MapperSection, section_json
from mep.boundary.runtime_files import MANAGER_SOCKET
from mep.root.account.system_accounts import invoking_account, system_account
from mep.root.kernel.cgroup import remove_helper_group
from mep.root.kernel.network_namespace import left_network
from mep.root.kernel.spawn import SpawnAccount, SpawnPlan, StageReport, spawn
from mep.root.kernel.unix_socket import listen
from mep.root.monitor.child import Bucket, Child, ChildKind, Phase
from mep.root.monitor.event_loop import PollLoop, Timer
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.helper_limits import enter_group, helper_limits
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 30.0
STEADY_S = 60.0
"""A child that ran this long is restarted without delay: its back-off is reset."""
SHUTDOWN_GRACE_S = 5.0
MAX_LINE = 4000
LINES_A_SECOND, LINES_AT_ONCE = 100.0, 2000.0
_AT_ONCE = 65536


class Helper(Part):
    """The one manager or the one mapper, across restarts of its process."""

    def __init__(
        self, kind: ChildKind, shared: Shared, closer: Closer, budget: DayBudget, *, launched: Callable[[Child], None]
    ) -> None:
        """`launched` is called with each new process."""
        super().__init__(shared)
        self.kind = kind
        self.child: Child | None = None
        self._closer, self._budget, self._launched = closer, budget, launched
        self._relaunches = True
        self._failures = 0
        self._launched_at = 0.0
        self._relaunch: Timer | None = None
        self._stages: StageReport | None = None
        self._helper_log: HelperLog | None = None
        self._said_no_group = False

    @property
    def serving(self) -> bool:
        """Whether it has reported that it is ready."""
        return self.child is not None and self.child.phase is Phase.SERVING and not self.child.fault

    def launch(self) -> None:
        """Start it. If that fails, try again later."""
        self._relaunch = None
        self._launched_at = self._loop.clock()
        try:
            self._launch()
        except (ConfigRefused, SpawnFailed, OSError) as error:
            self._cannot_start(str(error))
            self._again()

    def _cannot_start(self, reason: str) -> None:
        self._log.error(f"cannot start the {self.kind}", reason=reason)
        self._status.show(problem=f"cannot start the {self.kind}: {reason}")

    def _launch(self) -> None:
        helper_log: HelperLog | None = None
        ours, theirs = Channel.pair()
        ours.dispose = self._closer.close
        opened = [theirs.fileno()]
        try:
            helper_log = HelperLog(str(self.kind), self._loop, self._log, self._budget)
            opened.append(helper_log.theirs)
            opened.append(sealed_memfd(f"mep-{self.kind}-section", section_json(self._section())))
            opened.append(open_secret(self._secret_path(), self._account()))
            if self.kind is ChildKind.MANAGER:
                opened.append(listen(self._configuration.resolved.runtime_dir, MANAGER_SOCKET, SOCK_STREAM).detach())
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                pid, stages = spawn(self._plan([null, helper_log.theirs, helper_log.theirs, opened[0], *opened[2:]]))
            finally:
                os.close(null)
        except BaseException:
            ours.close()
            if helper_log is not None:
                helper_log.close()
            raise
        finally:
            theirs.close()
            for descriptor in opened[1:]:
                os.close(descriptor)
        self.child = Child(self.kind, pid, ours, Phase.BEGINNING, self._loop)
        self._stages, self._helper_log = stages, helper_log
        self._loop.watch(stages.fileno(), self._take_stages)
        self._launched(self.child)

    def _section(self) -> ManagerSection | MapperSection:
        resolved = self._configuration.resolved
        return resolved.manager if self.kind is ChildKind.MANAGER else resolved.mapper

    def _secret_path(self) -> str:
        resolved = self._configuration.resolved
        return resolved.manager.link_key_path if self.kind is ChildKind.MANAGER else resolved.mapper.unseal_key_path

    def _account(self) -> SpawnAccount:
        if self._configuration.resolved.multi_user:
            return system_account(self._section().account)
        return invoking_account(self._configuration.resolved.mapper.own_user)

    def _plan(self, descriptors: list[int]) -> SpawnPlan:
        resolved, account = self._configuration.resolved, self._account()
        limits = helper_limits(self.kind, resolved)
        return SpawnPlan(
            account=account,
            switch=resolved.multi_user,
            argv=[resolved.python, "-I", "-m", f"mep.{self.kind}"],
            environment={"HOME": account.home, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            descriptors=descriptors,
            directory="/",
            open_files=self._configuration.open_files,
            rlimits=limits.rlimits,
            enter_group=self._enter_group(limits.group),
            own_network=left_network() and self.kind is ChildKind.MAPPER and not resolved.mapper.network,
            untraceable=resolved.multi_user,
        )

    def _enter_group(self, limits: Limits) -> Callable[[], None] | None:
        """Return the call that enters its control group; None if it can't have one, which is logged once."""
        endpoint = self._configuration.resolved.name
        if reason := cgroup_support.problem([limits]):
            if not self._said_no_group:
                self._said_no_group = True
                self._log.info(f"the {self.kind} has no control group of its own", reason=reason)
            return None
        return lambda: enter_group(endpoint, str(self.kind), limits)

    def _take_stages(self) -> None:
        stages = self._stages
        if stages is None:
            return
        try:
            if not stages.finished():
                return
        except SpawnFailed as failure:
            self._cannot_start(str(failure))
        self._loop.unwatch(stages.fileno())
        stages.close()
        self._stages = None

    def ended(self, how: str) -> None:
        """Record that its process is gone, and start it again unless the monitor is stopping."""
        self._take_stages()
        self.child = None
        remove_helper_group(self._configuration.resolved.name, str(self.kind))
        if self._helper_log is not None:
            self._helper_log.take()
        if not self._relaunches:
            return
        self._log.warning(f"the {self.kind} ended", how=how)
        self._again()

    def _again(self) -> None:
        if self._loop.clock() - self._launched_at >= STEADY_S:
            self._failures = 0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._failures)
        self._failures += 1
        self._relaunch = self._loop.after(delay, self.launch)

    def launch_no_more(self) -> None:
        """Start no further process, because the monitor is stopping."""
        self._relaunches = False
        if self._relaunch is not None:
            self._relaunch.cancel()

    def shut_down(self, reason: str) -> None:
        """Ask it to end, and kill it if it doesn't."""
        child = self.child
        if child is None:
            return
        child.send(Shutdown(reason=reason))
        self._loop.after(SHUTDOWN_GRACE_S, lambda: self._end(child))

    def _end(self, child: Child) -> None:
        if self.child is child:
            child.signal(signal.SIGKILL)


def open_secret(path: str, account: SpawnAccount) -> int:
    """Return a descriptor of the key file at `path`, which only root and `account` may be able to read.

    Raises UntrustedPath and OSError.
    """
    trust = replace(ours(), last_owner=account.uid, chown_to=account.name)
    return trust.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, secret=True)


class HelperLog:
    """The log pipe of one process. `theirs` is its end; close it here once the process has been forked."""

    def __init__(self, who: str, loop: PollLoop, log: Log, budget: DayBudget) -> None:
        self._who, self._loop, self._log, self._budget = who, loop, log, budget
        self._own = own_line(who)
        self._bucket = Bucket(LINES_A_SECOND, LINES_AT_ONCE, loop.clock)
        self._rest = b""
        self._dropped = 0
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        loop.watch(self._ours, self.take)

    def take(self) -> None:
        """Copy a bounded part of the pipe's content; close the pipe at end-of-file."""
        if self._ours < 0:
            return
        try:
            data = os.read(self._ours, _AT_ONCE)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._say(line)
        if not data:
            self.close()

    def _say(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace")
        if not text.strip():
            return
        if not self._bucket.take():
            self._dropped += 1
            return
        if not self._budget.take(min(len(line), MAX_LINE)):
            return
        if self._dropped:
            self._log.warning(
                "dropped log lines of a helper: too many per second", process=self._who, lines=self._dropped
            )
            self._dropped = 0
        if self._own.fullmatch(text):
            copy_line(text)
        else:
            self._log.warning("a process wrote to its standard error", process=self._who, line=text)

    def close(self) -> None:
        """Stop reading."""
        if self._ours >= 0:
            self._loop.unwatch(self._ours)
            os.close(self._ours)
            self._ours = -1
