"""The parent of one callout: `PYTHON -I -S subreaper.py DESCRIPTOR PROGRAM ARGV...`. Started by `process`.

PROGRAM is the descriptor of the program that was checked; ARGV is its argument list, name included.
It makes itself the subreaper of the program's descendants. A process that has left the program's group or session is
reparented to it as soon as its own parent ends. When the program has ended, or when the other end of DESCRIPTOR (a
socket) is closed, it kills every process below it. It then reports on DESCRIPTOR how the program ended:
`exit STATUS`, `signal NUMBER`, or `error REASON` if it could not be run. Neither it nor its descendants can gain
privilege (no_new_privs). Should it be killed itself, the kernel ends the program with it.

It runs as a file of its own, not as a module, and imports the standard library alone: it must start quickly. It has one
thread, so it may fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_PROGRAM_DESCRIPTOR = 3
REPORT_S, KILL_S = 1.5, 60.0
"""Seconds until the program's end is reported although descendants are left, and until killing them is given up.
Processes that wait for a dead file server don't end, and on a busy host every process ends late."""


def _prctl(option: int, value: int = 1) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _become_program(program: int, argv: list[str], report: int) -> None:
    """In the forked child: turn into the program. Returns where that fails, with the reason written to `report`."""
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 10)  # out of the way of the program's descriptor
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should anything kill us before it
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):  # the two that libc keeps for itself
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        script = os.pread(program, 2, 0) == b"#!"  # its interpreter opens the descriptor again
        os.set_inheritable(program, False)  # the parent passed it on under any number
        os.dup2(program, _PROGRAM_DESCRIPTOR)
        os.set_inheritable(_PROGRAM_DESCRIPTOR, script)
        os.execve(f"/proc/self/fd/{_PROGRAM_DESCRIPTOR}", argv, os.environ)  # noqa: S606  # no shell is wanted
    except (OSError, ValueError) as error:
        os.write(report, str(getattr(error, "strerror", None) or error).encode())


def _start(program: int, argv: list[str]) -> tuple[int, str]:
    """Return the program's pid and an empty text, or why it could not be run."""
    reader, writer = os.pipe()  # both close on exec
    pid = os.fork()
    if pid == 0:
        try:
            _become_program(program, argv, writer)
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    return pid, reason


def _let_go_of_its_streams() -> None:
    """Hold none of the program's pipes: their other ends must see when it closes them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _wait(pid: int, control: int) -> None:
    """Return when the program has ended (it is not reaped yet) or its answer is no longer wanted."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLIN)
    poll.poll()
    os.close(ended)


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _kill_all(program: int, control: int, reason: str) -> None:
    """Kill and reap everything below us, and say on `control` how the program ended, or `reason` if it never began."""
    status, began, said = signal.SIGKILL.value, time.monotonic(), False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(program, signal.SIGKILL)  # at once, before anything of it can leave the group
    while (spent := time.monotonic() - began) < KILL_S:
        for pid in _children():  # orphans come here as their parents die
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = ended[1] if ended[0] == program else status
        except ChildProcessError:
            break
        if spent > REPORT_S and not said:
            _say(control, status, reason)
            said = True
        time.sleep(0.002 if spent < REPORT_S else 0.1)
    if not said:
        _say(control, status, reason)


def _say(control: int, status: int, reason: str) -> None:
    with contextlib.suppress(OSError):  # the answer is no longer wanted
        os.write(control, (f"error {reason}" if reason else _ending(status)).encode())


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit {os.WEXITSTATUS(status)}"


def main() -> None:
    """Run the program that the arguments name, to its end or ours."""
    control, program, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(control, False)
    os.set_inheritable(program, False)
    _prctl(_PR_SET_CHILD_SUBREAPER)
    _prctl(_PR_SET_NO_NEW_PRIVS)
    pid, reason = _start(program, argv)
    os.close(program)
    _let_go_of_its_streams()
    if not reason:
        _wait(pid, control)
    _kill_all(pid, control, reason)


if __name__ == "__main__":
    main()
