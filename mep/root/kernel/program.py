"""Runs a program to its end: input from memory, output kept up to a limit, a deadline, and a way to be stopped.

The program has a process group of its own, which is killed at the deadline and when the program ends. It inherits no
descriptor but those it is given. Called by keepers, for hooks and systemd's busctl, and by the child that becomes
manager or mapper. None of them has left the host's network namespace: posix_spawn(3) would not enter it again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_KEPT, _PIECE = 8192, 65536
STOPPED = "stopped while it ran"


@dataclass(frozen=True, slots=True)
class Program:
    """A program: the path that is executed, its arguments with its name, and its environment."""

    path: str
    argv: list[str]
    environment: dict[str, str]
    kept: tuple[int, int] | None = None
    """A descriptor of ours, and its number in the program."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended. `problem` is why it was killed, or empty; `code` its exit status, negative for a signal."""

    problem: str
    code: int
    output: str
    """What it wrote to standard output, and below to standard error: foreign text. Clip it before passing it on."""
    errors: str


def never() -> bool:
    """A `stop` that never stops."""
    return False


def run(
    program: Program, timeout_s: float, *, request: bytes = b"", watch: Sequence[int] = (),
    stop: Callable[[], bool] = never,
) -> Ran:  # fmt: skip
    """Run `program` to its end, with `request` as its standard input. Raises OSError if it can't be started.

    Whenever a descriptor in `watch` is readable, `stop` is asked whether to kill it.
    """
    with contextlib.ExitStack() as opened:
        theirs = [_document(request)]
        try:
            reader = _Reader(opened, theirs)
            pid = _start(program, theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        try:
            problem = _wait(pid, reader, timeout_s, watch, stop)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # its leader is not reaped yet, so the group is its own
            status = os.waitpid(pid, 0)[1]
        reader.take()
    return Ran(problem, os.waitstatus_to_exitcode(status), *reader.texts())


def _document(request: bytes) -> int:
    descriptor = os.memfd_create("mep-request", os.MFD_CLOEXEC)
    os.write(descriptor, request)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _start(program: Program, descriptors: list[int]) -> int:
    """Start the program with `descriptors` as 0, 1 and 2."""
    actions = [(os.POSIX_SPAWN_DUP2, descriptor, at) for at, descriptor in enumerate(descriptors)]
    if program.kept is not None:  # dup2 clears close-on-exec, even if both descriptors are the same
        actions.append((os.POSIX_SPAWN_DUP2, *program.kept))
    every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(
        program.path, program.argv, program.environment,
        file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=every,
    )  # fmt: skip


class _Reader:
    """Reads a program's output: keeps the first bytes and drops the rest, so it never blocks on a full pipe."""

    def __init__(self, opened: contextlib.ExitStack, theirs: list[int]) -> None:
        """Make two pipes. `opened` closes our ends, and `theirs` gets the others."""
        self._kept: dict[int, bytes] = {}
        for _ in range(2):
            ours, end = os.pipe2(os.O_CLOEXEC)
            opened.callback(os.close, ours)
            os.set_blocking(ours, False)
            theirs.append(end)
            self._kept[ours] = b""
        self.open = set(self._kept)

    def take(self) -> None:
        for descriptor in list(self.open):
            with contextlib.suppress(BlockingIOError):
                piece = os.read(descriptor, _PIECE)
                self._kept[descriptor] = (self._kept[descriptor] + piece)[:_KEPT]
                if not piece:
                    self.open.discard(descriptor)

    def texts(self) -> tuple[str, str]:
        output, errors = (data.decode("utf-8", "replace").strip() for data in self._kept.values())
        return output, errors


def _wait(pid: int, reader: _Reader, timeout_s: float, watch: Sequence[int], stop: Callable[[], bool]) -> str:
    """Return an empty string once the program has ended, or the reason to kill it."""
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
                return STOPPED
            if time.monotonic() >= deadline:
                return f"not done within {timeout_s:g} s: killed"
    finally:
        os.close(pidfd)
