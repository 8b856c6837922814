"""The administrator's own programs around a user endpoint's life: pre_start_hook and post_stop_hook.

The keeper runs a hook as its own account (root), with the request as JSON on standard input, a clean environment and
no other descriptor. The hook has a process group of its own, which is killed at the timeout and when the hook ends.
A program is trusted only if no account but root (single-user mode: the owner) could have written it. This is checked
before every run, and the checked descriptor is executed. A script keeps that descriptor for its interpreter to read:
its $0 is /proc/self/fd/3, a link to its path.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mep.boundary.file_trust import descriptor_path, is_script, ours
from mep.boundary.resolved_config import Hook

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
_KEPT, _PIECE = 8192, 65536
_SCRIPT_DESCRIPTOR = 3
STOPPING = "the endpoint is being stopped"


@dataclass(frozen=True, slots=True)
class HookResult:
    """The result of a hook. `problem` is empty if the hook ended with exit status 0."""

    problem: str = ""
    said_no: bool = False
    """The hook ran to its end and refused, as opposed to a hook that doesn't work."""
    output: str = ""
    errors: str = ""


def never() -> bool:
    """A `stop` that never stops."""
    return False


def run_hook(
    hook: Hook, name: str, request: bytes, *, left_s: float, watch: Sequence[int] = (), stop: Callable[[], bool] = never
) -> HookResult:
    """Run `hook` to its end, for at most its timeout and `left_s`.

    Whenever a descriptor in `watch` is readable, `stop` is asked whether to kill the hook.
    """
    with contextlib.ExitStack() as opened:
        try:
            program = ours().open_program(hook.path)
        except OSError as error:
            return HookResult(f"{hook.path} cannot be run: {error}")
        opened.callback(os.close, program)
        descriptors = [_document(request), *os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]
        for descriptor in descriptors[1::2]:
            os.set_blocking(descriptor, False)
            opened.callback(os.close, descriptor)
        try:
            pid = _start(hook.path, program, name, [descriptors[0], descriptors[2], descriptors[4]])
        except OSError as error:
            return HookResult(f"{hook.path}: cannot be run: {error.strerror}")
        finally:
            for descriptor in descriptors[0::2]:
                os.close(descriptor)
        reader = _Reader(descriptors[1], descriptors[3])
        timeout_s = min(hook.timeout_s, left_s)
        try:
            problem = _wait(pid, reader, timeout_s, watch, stop)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # its leader is not reaped yet, so the group is its own
            status = os.waitpid(pid, 0)[1]
        reader.take()
    return _result(problem, status, *reader.texts())


def _result(problem: str, status: int, output: str, errors: str) -> HookResult:
    if problem:
        return HookResult(problem, output=output, errors=errors)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return HookResult(output=output, errors=errors)
    how = f"exit status {code}" if code > 0 else f"killed by signal {-code}"
    return HookResult(how, said_no=code > 0, output=output, errors=errors)


def _document(request: bytes) -> int:
    descriptor = os.memfd_create("mep-hook-request", os.MFD_CLOEXEC)
    os.write(descriptor, request)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _start(path: str, program: int, name: str, descriptors: list[int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, descriptor, at) for at, descriptor in enumerate(descriptors)]
    if is_script(program):  # dup2 clears close-on-exec, even if both descriptors are the same
        actions.append((os.POSIX_SPAWN_DUP2, program, _SCRIPT_DESCRIPTOR))
        program = _SCRIPT_DESCRIPTOR
    every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    environment = {**_ENVIRONMENT, "MEP_HOOK": name}
    return os.posix_spawn(
        descriptor_path(program), [path, name], environment,
        file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=every,
    )  # fmt: skip


class _Reader:
    """Reads a hook's output: keeps the first bytes and drops the rest, so the hook never blocks on a full pipe."""

    def __init__(self, output: int, errors: int) -> None:
        self._kept = {output: b"", errors: b""}
        self.open = {output, errors}

    def take(self) -> None:
        for descriptor in list(self.open):
            with contextlib.suppress(BlockingIOError):
                piece = os.read(descriptor, _PIECE)
                self._kept[descriptor] = (self._kept[descriptor] + piece)[:_KEPT]
                if not piece:
                    self.open.discard(descriptor)

    def texts(self) -> tuple[str, str]:
        """Return its standard output and standard error. This is foreign text: clip it before passing it on."""
        output, errors = (data.decode("utf-8", "replace").strip() for data in self._kept.values())
        return output, errors


def _wait(pid: int, reader: _Reader, timeout_s: float, watch: Sequence[int], stop: Callable[[], bool]) -> str:
    """Return an empty string once the hook has ended, or the reason to kill it."""
    deadline = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            poller = select.poll()
            for descriptor in (pidfd, *watch, *reader.open):
                poller.register(descriptor, select.POLLIN)
            ready = {descriptor for descriptor, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            reader.take()
            if pidfd in ready:
                return ""
            if not ready.isdisjoint(watch) and stop():
                return STOPPING
            if time.monotonic() >= deadline:
                return f"not done within {timeout_s:g} s: killed"
    finally:
        os.close(pidfd)
