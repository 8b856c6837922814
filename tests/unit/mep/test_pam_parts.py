"""The parts of PAM's work that need no PAM: which variables pass, and restoring a process's state."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mep.boundary.resolved_config import Hook
from mep.root.keeper.hooks import run_hook
from mep.root.pam.session_process import admitted

CHANGES = """
import json, os, resource, signal
from mep.boundary.log import Log
from mep.root.pam.process_context import Context

def facts():
    with open("/proc/self/status") as file:
        masks = [line for line in file if line.startswith(("SigBlk", "Umask"))]
    return [masks, os.getcwd(), resource.getrlimit(resource.RLIMIT_FSIZE)]

os.chdir("/")
os.umask(0o077)
before, context = facts(), Context()
os.umask(0)
os.chdir("/tmp")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
changed = facts()
context.restore(Log("test"))
print(json.dumps([before, changed, facts()]))
"""


def test_a_process_is_put_back_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", CHANGES], check=True, capture_output=True, text=True, timeout=30)
    before, changed, after = json.loads(done.stdout)
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert before == after


@pytest.mark.parametrize(
    ("entry", "passes"),
    [
        (b"SITE=x", True), (b"PATH=/a:/b", True), (b"PATH=/a:b", False), (b"PATH=:/a", False), (b"LD_AUDIT=x", False),
        (b"PYTHONHOME=x", False), (b"BASH_FUNC_ls%%=() { x; }", False), (b"HOME=/x", False), (b"NOVALUE", False),
        (b"odd name=x", False), (b"=x", False), (b"1A=x", False), (b"BIG=" + b"x" * 9000, False), (b"E=", True),
        (b"BYTES=\xff", True),
    ],
)  # fmt: skip
def test_which_variables_pass(entry: bytes, passes: bool) -> None:
    found, dropped = admitted([entry])
    assert (len(found), len(dropped)) == ((1, 0) if passes else (0, 1))


def test_no_more_than_so_many_variables() -> None:
    found, dropped = admitted(b"N%d=x" % number for number in range(1000))
    assert len(found) == 128 and len(dropped) == 872


def test_a_hook_of_the_owners_own(tmp_path: Any) -> None:
    """In single-user mode the endpoint's owner is who may write to it."""
    path = tmp_path / "hook"
    path.write_text('#!/bin/sh\nread line; echo "$1 $line"; echo no >&2; exit 4\n')
    path.chmod(0o755)
    result = run_hook(Hook(str(path), 5.0), "pre_start", b"request\n", left_s=5.0)
    assert (result.problem, result.said_no) == ("exit status 4", True)
    assert (result.output, result.errors) == ("pre_start request", "no")
    path.chmod(0o757)
    assert "chmod go-w" in run_hook(Hook(str(path), 5.0), "pre_start", b"", left_s=5.0).problem
