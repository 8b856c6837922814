"""The fork server: a small single-threaded process that forks workers, ends them, and reports their deaths.

It is forked from the user endpoint before ZeroMQ is imported, so that a worker costs one or two megabytes,
and no thread exists that a fork could catch holding a lock. It also reads the workers' output, and keeps a
bounded log of it. It trusts the engine that sends its orders (same user), and nothing that tasks do.

Orders:

- ("configure", (environment, umask, soft limit of open files: each may be None), directory, run directory, log path,
  max result bytes, a sandbox for each task, most tasks a worker or 0)
- ("bind", number, variables, processors): the binding of the worker of this number
- ("spawn", number) with the worker's socket
- ("kill", number, signal)
- ("title", text): endpoint, person and site, which the command lines show
- ("ping",)

Reports:

- ("spawned", number, pid)
- ("ended", number, wait status, reason)
- ("pong",)
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from user_endpoint.bounded_log import MAX_HALF_LINE, BoundedFile, escape_output
from user_endpoint.process_exit import name_process, run_and_exit, title_process
from user_endpoint.workers import datagrams
from user_endpoint.workers.descendants import has_children, kill_descendants, reap_ended
from user_endpoint.workers.start_environment import needs_new_process, use_own_commands

_CHUNK = 65536
_MAX_REASON = 600
_PROGRAM = f"{os.path.dirname(os.path.abspath(__file__))}/external_server.py"  # noqa: PTH100, PTH120 - no pathlib: the start is measured
_END_S = 1.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, which may have happened already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


class ForkServer:
    """Holds the workers' process ids. One thread, one poll loop."""

    def __init__(self, control: _socket.socket) -> None:
        self._control = control
        self._workers: dict[int, int] = {}  # pid -> number
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._out_read, self._out_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._out_read, False)
        self._output: BoundedFile | None = None
        self._half_line = b""
        self._directory = self._run_directory = self._title = ""
        self._umask: int | None = None
        self._open_files: int | None = None
        self._max_result_bytes, self._sandbox, self._max_tasks = 0, False, 0
        self._bindings: dict[int, tuple[dict[str, str], list[int]]] = {}

    def run(self) -> None:
        """Serve until the engine closes its end, then kill every worker."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poller = select.poll()
        for descriptor in (self._control.fileno(), self._wake_read, self._out_read):
            poller.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == self._out_read:
                    self._copy_output()
                elif descriptor == self._wake_read:
                    self._drain_wakeups()
                elif not self._obey():
                    self._kill_all()
                    self._copy_output(all_of_it=True)
                    return
            self._reap()

    def _obey(self) -> bool:
        try:
            order, descriptor = datagrams.receive(self._control)
        except datagrams.PeerGone:
            return False
        match order:
            case ("configure", (environment, umask, open_files), directory, run_directory, log_path, *limits):
                self._configure(environment, log_path)
                self._umask, self._open_files = umask, open_files
                self._directory, self._run_directory = directory, run_directory
                self._max_result_bytes, self._sandbox, self._max_tasks = limits
            case ("bind", number, variables, processors):
                self._bindings[number] = (variables, processors)
            case ("spawn", number):
                self._spawn(number, descriptor)
            case ("kill", number, signum):
                self._kill(number, signum)
            case ("title", str(title)):
                self._title = title
                title_process("mep-forkserver", "forkserver", title)
            case ("ping",):
                self._report("pong")
            case _:
                raise ValueError(f"unknown order {order[0]!r}")
        return True

    def _configure(self, environment: dict[str, str] | None, log_path: str) -> None:
        if environment is not None:  # else the one that worker_init has set up
            os.environ.clear()
            os.environ.update(environment)
        use_own_commands()
        self._output = BoundedFile(log_path) if log_path else None

    def _spawn(self, number: int, descriptor: int) -> None:
        parent = os.getpid()
        binding = self._bindings.pop(number, ({}, []))
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._report("ended", number, -1, f"cannot fork: {error.strerror}")
            return
        if pid == 0:
            run_and_exit(lambda: self._be_worker(parent, descriptor, *binding))
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._workers[pid] = number
        self._report("spawned", number, pid)

    def _be_worker(self, parent: int, descriptor: int, variables: dict[str, str], processors: list[int]) -> int:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        die_with_parent(parent)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        if self._title:
            title_process("mep-worker", "worker", self._title)
        else:
            name_process("mep-worker")
        os.environ.update(variables)
        if processors:
            os.sched_setaffinity(0, processors)
        os.dup2(self._out_write, 1)
        os.dup2(self._out_write, 2)
        for inherited in (self._control.detach(), self._wake_read, self._wake_write, self._out_read, self._out_write):
            os.close(inherited)
        if self._output is not None:
            self._output.close()
        from user_endpoint.workers.process_state import start_fresh
        from user_endpoint.workers.worker import serve

        start_fresh(self._umask, self._open_files)
        sock = _socket.socket(fileno=descriptor)
        serve(
            sock,
            self._max_result_bytes,
            directory=self._directory,
            run_directory=self._run_directory,
            sandbox=self._sandbox,
            max_tasks=self._max_tasks,
        )
        return 0

    def _kill(self, number: int, signum: int) -> None:
        for pid, known in self._workers.items():
            if known == number:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signum)
                kill_descendants(pid)  # a worker that waits for a dead file system does not end, and they must

    def _kill_all(self) -> None:
        """Kill every process below this one, and wait a moment until they are gone."""
        deadline = time.monotonic() + _END_S
        while has_children():
            kill_descendants(os.getpid())
            reap_ended()
            left = deadline - time.monotonic()
            if left <= 0 or not has_children():
                return
            select.select([self._wake_read], [], [], left)
            self._drain_wakeups()

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, _CHUNK)

    def _reap(self) -> None:
        ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            ended = True
            number = self._workers.pop(pid, None)
            if number is not None:  # others are orphans of tasks, which come here because we are their subreaper
                self._copy_output(all_of_it=True)
                self._report("ended", number, status, "")
        if ended:
            # Workers are subreapers: a child of ours that is no worker was left by one that has died.
            kill_descendants(os.getpid(), self._workers)

    def _copy_output(self, *, all_of_it: bool = False) -> None:
        with contextlib.suppress(BlockingIOError):
            self._half_line += os.read(self._out_read, _CHUNK)
        whole = self._half_line.rfind(b"\n") + 1
        if all_of_it or len(self._half_line) - whole > MAX_HALF_LINE:
            whole = len(self._half_line)
        if whole and self._output is not None:
            self._output.write(escape_output(self._half_line[:whole]))
        self._half_line = self._half_line[whole:]

    def _report(self, *report: Any) -> None:
        with contextlib.suppress(OSError):  # the engine is gone: the next read says so
            datagrams.send(self._control, report)


def serve_forks(control: _socket.socket, parent_pid: int) -> int:
    """Be the fork server on `control` until its engine is gone."""
    die_with_parent(parent_pid)
    name_process("mep-forkserver")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    import mep_sdk.task_runner  # noqa: F401  # imported once, here, for every worker
    import user_endpoint.workers.worker  # noqa: F401

    gc.freeze()
    ForkServer(control).run()
    return 0


class ServerHandle:
    """A fork server as its engine sees it."""

    def __init__(
        self, sock: _socket.socket, pid: int, errors: IO[bytes] | None = None, *, own_environment: bool = False
    ) -> None:
        """`errors`: a file that takes its standard error until it says ("ready", ...), where it is one that does.
        `own_environment`: whether it keeps the one in which it was started."""
        self.sock, self.pid, self._errors = sock, pid, errors
        self.own_environment, self.ready = own_environment, errors is None

    def failure(self) -> str:
        """Return the last words of a server before it was ready, or became none."""
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-_MAX_REASON:].decode("utf-8", "replace").strip()

    def stop(self, grace_s: float) -> None:
        """End it (it kills its workers first), by force if it has not ended after `grace_s` seconds."""
        self.sock.close()
        if self._errors is not None:
            self._errors.close()
        deadline = time.monotonic() + grace_s
        while not self._ended():
            if time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.pid, 0)
                return
            time.sleep(0.001)

    def _ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return True


def fork_server(close: Sequence[int] = ()) -> ServerHandle:
    """Fork a fork server from this process, without the descriptors `close`. Call before any thread exists."""
    ours, theirs = datagrams.pair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        for descriptor in (ours.detach(), *close):
            os.close(descriptor)
        run_and_exit(lambda: serve_forks(theirs, parent))
    theirs.close()
    return ServerHandle(ours, pid)


def exec_server() -> ServerHandle:
    """Start a fork server from nothing: for processes that have threads, and where a Python must read the environment
    at its start (see start_environment). Raises OSError."""
    ours, theirs = datagrams.pair()
    errors = os.fdopen(os.memfd_create("mep-errors"), "rb+")
    try:
        theirs_fd = theirs.fileno()
        os.set_inheritable(theirs_fd, True)
        isolated = ["-I"] if sys.flags.isolated and not needs_new_process() else []
        command = [sys.executable, *isolated, _PROGRAM, str(theirs_fd), str(os.getpid())]
        to_errors = [(os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        pid = os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=to_errors)
    except OSError:
        ours.close()
        errors.close()
        raise
    finally:
        theirs.close()
    return ServerHandle(ours, pid, errors)
