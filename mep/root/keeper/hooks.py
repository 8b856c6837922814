"""The administrator's own programs around a user endpoint's life: pre_start_hook and post_stop_hook.

Run by the keeper as what it is itself (root), with the request as JSON on standard input, a clean environment, no
descriptor besides, and a process group of its own that is killed at the timeout and when the program ends. Trusts a
program only if no account but root (single-user mode: the owner) could have put it there. That is checked before every
run, and the descriptor that was checked is what runs. A script keeps that descriptor, which its interpreter reads: its
$0 is /proc/self/fd/3, a link to its path.
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
    """What a hook did. `problem` is empty where it ended with exit status 0."""

    problem: str = ""
    said_no: bool = False
    """It ran to its end and refuses, as opposed to a hook that does not work."""
    output: str = ""
    errors: str = ""


def never() -> bool:
    """Stop for nothing."""
    return False


def run_hook(
    hook: Hook, name: str, request: bytes, *, left_s: float, watch: Sequence[int] = (), stop: Callable[[], bool] = never
) -> HookResult:
    """Run `hook` to its end, for at most its timeout and `left_s`.

    `stop` is asked whether to kill it each time a descriptor in `watch` is readable.
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
                os.killpg(pid, signal.SIGKILL)  # its own pid is not reaped yet, so the group is its own
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
    if is_script(program):  # dup2 clears close-on-exec, also of a descriptor onto itself
        actions.append((os.POSIX_SPAWN_DUP2, program, _SCRIPT_DESCRIPTOR))
        program = _SCRIPT_DESCRIPTOR
    every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    environment = {**_ENVIRONMENT, "MEP_HOOK": name}
    return os.posix_spawn(
        descriptor_path(program), [path, name], environment,
        file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=every,
    )  # fmt: skip


class _Reader:
    """What a hook writes: the first bytes are kept, the rest is read and dropped, so that it never waits for us."""

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
        """What was written to standard output and to standard error: foreign text, to be clipped where it goes on."""
        output, errors = (data.decode("utf-8", "replace").strip() for data in self._kept.values())
        return output, errors


def _wait(pid: int, reader: _Reader, timeout_s: float, watch: Sequence[int], stop: Callable[[], bool]) -> str:
    """Return an empty string once the hook has ended, or why it is to be ended."""
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
