"""Children of the command line that don't answer or don't end: the command goes on without them."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time

import pytest

from mep.cli import log_view, process_figures, unprivileged_child
from mep.cli.exit_codes import CliFailed
from mep.cli.unprivileged_child import UnprivilegedChild
from tests.support.waiting import until

_HOLD = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 0x4206, 0x40
print(libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, PTRACE_O_TRACEEXIT), flush=True)
time.sleep(600)
"""


@pytest.mark.root
def test_a_child_that_sigkill_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits for a FUSE server. Here a tracer holds it at its exit."""
    monkeypatch.setattr(unprivileged_child, "END_S", 0.2)
    with contextlib.ExitStack() as undo:
        with UnprivilegedChild(_wait, pwd.getpwnam("nobody")) as child:
            assert child.receive(1) == b"x"
            tracer = subprocess.Popen([sys.executable, "-I", "-c", _HOLD, str(child.pid)], stdout=subprocess.PIPE)
            undo.callback(lambda: _end(tracer, child.pid))
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"0\n"
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0), "it is still there"


@pytest.mark.root
def test_a_persons_log_that_does_not_come_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_view, "QUIET_S", 0.2)
    with UnprivilegedChild(lambda _: time.sleep(600), pwd.getpwnam("nobody")) as child:
        tail = log_view._Tail(lambda: os.open(os.devnull, os.O_RDONLY), lambda _: True)
        with pytest.raises(CliFailed, match="was not read within"):
            log_view._chunk(child, tail, "", follow=False)


def _wait(parent: socket.socket) -> None:
    parent.send(b"x")
    time.sleep(600)


def _end(tracer: subprocess.Popen[bytes], pid: int) -> None:
    tracer.kill()
    tracer.communicate()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_figures_that_take_too_long_are_missing_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with process_figures.Sampler() as sampler:
        assert sampler.sample([os.getppid()])
        former = sampler._child.pid
        os.kill(former, signal.SIGSTOP)
        monkeypatch.setattr(process_figures, "_ANSWER_S", 0.2)
        assert sampler.sample([os.getppid()]) == {}
        monkeypatch.undo()
        assert until("another child answers", lambda: sampler.sample([os.getppid()]))
        os.kill(sampler._child.pid, signal.SIGKILL)
        assert until("another child answers again", lambda: sampler.sample([os.getppid()]))
