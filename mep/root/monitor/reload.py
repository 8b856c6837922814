"""SIGHUP: run the resolver again and take over its configuration, if it is valid.

The resolver is the administrator's own command line tool, run as root with two memfds to write to. Its output is
sealed and checked as at startup. If the document is bad, or the resolver fails or hangs, the old configuration stays
in force. Called by the monitor, which is told by `taken_over` and opens the logs again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import ours
from mep.boundary.memfd import NotSealed, check_sealed, read_sealed, seal
from mep.boundary.resolved_config import MAX_RESOLVED_BYTES, Resolved, from_json
from mep.boundary.text import set_format
from mep.root.kernel.process_tree import describe_status
from mep.root.kernel.spawn import reset_signals
from mep.root.monitor import fd_limit, sd_notify
from mep.root.monitor.event_loop import Timer
from mep.root.monitor.part import Part, Shared

DEADLINE_S = 60.0
MAPPER_PAUSE_S = 5.0
MAX_BUNDLE_BYTES = 16 * 1024 * 1024
Done = Callable[[str], None]
"""Called after a reload; the problem is empty if the configuration was taken over."""
_FIXED = ("name", "multi_user", "state_dir", "runtime_dir")
"""Settings that can't change while the endpoint runs."""


class Reload(Part):
    """The running resolver, if there is one."""

    def __init__(
        self, shared: Shared, *, send_task_log: Callable[[], None], taken_over: Callable[[Resolved, Resolved], None]
    ) -> None:
        """`taken_over` is called with the former and the new configuration, `send_task_log` to open that log again."""
        super().__init__(shared)
        self.pid = 0
        self._waiting: list[Done] = []
        """Who is told of the running resolver's result."""
        self._next: list[Done] = []
        """Who needs another one: the running resolver may have read the files before."""
        self._send_task_log, self._taken_over = send_task_log, taken_over
        self._stopped = False
        self._documents: tuple[int, ...] = ()
        self._deadline: Timer | None = None
        self._for_mapper: Timer | None = None
        self._next_for_mapper = 0.0

    def start(self, done: Done = lambda _problem: None) -> None:
        """Read the configuration again, at once or after the running reload, and tell `done` what came of it."""
        self._reopen_logs()
        self._next.append(done)
        if not self.pid:
            self._start()

    def _start(self) -> None:
        resolver = self._configuration.resolved.resolver_argv
        self._waiting, self._next = self._next, []
        if self._stopped or not resolver:
            self._tell("the endpoint is being stopped")
            return
        try:
            self._documents = _two_memfds()
            self.pid = os.fork()
        except OSError as error:
            self._failed(str(error))
            return
        if self.pid == 0:
            _exec_resolver(resolver, *self._documents)
        self._deadline = self._loop.after(DEADLINE_S, self._overdue)
        self._log.info("reading the configuration again", resolver=self.pid)

    def stop(self) -> None:
        """Start no more reloads, because the endpoint is being stopped."""
        self._stopped = True

    def start_for_mapper(self) -> None:
        """Start a reload for the mapper: at once, or MAPPER_PAUSE_S after the last one."""
        if self._for_mapper is None:
            wait = max(0.0, self._next_for_mapper - self._loop.clock())
            self._for_mapper = self._loop.after(wait, self._start_for_mapper)

    def _start_for_mapper(self) -> None:
        self._for_mapper = None
        self._next_for_mapper = self._loop.clock() + MAPPER_PAUSE_S
        self.start()

    def _reopen_logs(self) -> None:
        """Reopen each log separately: a failure doesn't keep the others from being reopened."""
        resolved = self._configuration.resolved
        steps: dict[str, Callable[[], object]] = {
            "log": lambda: open_log(resolved.log_path),
            "audit log": lambda: self._audit.reopen(resolved.audit_path),
            "task records": self._send_task_log,
        }
        for what, again in steps.items():
            try:
                again()
            except OSError as error:
                self._log.error("cannot open a log again", which=what, error=str(error))

    def replace(self) -> None:
        """Kill the resolver, which was stopped and doesn't go on, and run another."""
        self._waiting, self._next = [], [*self._waiting, *self._next, lambda _: None]
        os.kill(self.pid, signal.SIGKILL)

    def _overdue(self) -> None:
        if self.pid:
            self._log.error("the resolver hangs: killing it", pid=self.pid)
            os.kill(self.pid, signal.SIGKILL)

    def reaped(self, pid: int, status: int) -> None:
        """A process other than manager, mapper or keeper has ended: the resolver, or an orphan."""
        if pid != self.pid:
            return
        self.pid = 0
        if self._deadline is not None:
            self._deadline.cancel()
        if status != 0:
            self._failed(
                f"the resolver ended with {describe_status(status)}; `mep check` says why, and so does the log"
            )
            return
        try:
            resolved = self._checked()
        except (ConfigRefused, NotSealed, OSError) as error:
            self._failed(str(error))
            return
        self._take_over(resolved)

    def _checked(self) -> Resolved:
        config, bundle = self._documents
        for descriptor in self._documents:
            seal(descriptor)
        check_sealed(bundle, MAX_BUNDLE_BYTES)
        resolved = from_json(read_sealed(config, MAX_RESOLVED_BYTES))
        fd_limit.check(resolved)
        for key in _FIXED:
            if getattr(resolved, key) != getattr(self._configuration.resolved, key):
                raise ConfigRefused("resolved configuration", key, "cannot change while the endpoint runs: restart it")
        return resolved

    def _failed(self, reason: str) -> None:
        self._close(*self._documents)
        self._documents = ()
        self._log.error("the configuration was not reloaded: the old one stays in force", reason=reason)
        self._audit.write("reload", outcome="refused", detail=reason)
        self._status.configured(reason)
        self._tell(reason)

    def _take_over(self, resolved: Resolved) -> None:
        (config, bundle), former = self._documents, self._configuration.resolved
        self._close(config)
        self._documents = ()
        self._configuration.replace(resolved, bundle)
        set_format(resolved.log_format)
        self._reopen_logs()
        self._log.info("configuration reloaded")
        self._audit.write("reload", outcome="taken over")
        self._status.configured("")
        self._taken_over(former, resolved)
        self._tell("")

    def _tell(self, problem: str) -> None:
        """Tell the result, and have another resolver run if one is wanted."""
        told, self._waiting = self._waiting, []
        for done in told:
            done(problem)
        if self._next:
            self._loop.after(0.0, self._start_next)

    def _start_next(self) -> None:
        if self._next and not self.pid:
            self._start()

    def _close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            os.close(descriptor)


def _two_memfds() -> tuple[int, int]:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    config = os.memfd_create("mep-resolved", flags)
    try:
        return config, os.memfd_create("mep-bundle", flags)
    except OSError:
        os.close(config)
        raise


def _exec_resolver(argv: list[str], config: int, bundle: int) -> NoReturn:
    """Become the resolver. It keeps the monitor's environment, which is the administrator's own."""
    try:
        reset_signals()
        for descriptor in (config, bundle):
            os.set_inheritable(descriptor, True)
        for name in sd_notify.VARIABLES:
            os.environ.pop(name, None)
        os.execv(argv[0], [*argv, "--config-fd", str(config), "--bundle-fd", str(bundle)])
    finally:
        os._exit(127)


def open_log(path: str) -> None:
    """Make descriptors 1 and 2 the log at `path`. If `path` is empty, leave them.

    Raises OSError, also if the file or a directory above it isn't trusted.
    """
    if not path:
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = ours().open(path, flags, mode=0o640)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
