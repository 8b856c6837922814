"""The children of the command line: their identity, the privileges left to them, and who can look into them."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path
from socket import socket

import pytest

from mep.cli.unprivileged_child import UnprivilegedChild
from tests.support.accounts import LocalAccount, account
from tests.support.waiting import until

_SECRET = b"what the child got with the fork"


def _describe_and_wait(answers: socket) -> None:
    fork = "may fork"
    try:
        if os.fork() == 0:
            os._exit(0)
    except BlockingIOError:
        fork = "may not fork"
    said = {
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "status": Path("/proc/self/status").read_text(),
        "fds": sorted(os.listdir("/proc/self/fd")),
        "environ": dict(os.environ),
        "session": os.getsid(0),
        "fork": fork,
        "null": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
        "socket": answers.fileno(),
    }
    answers.send(json.dumps(said).encode())
    time.sleep(600)


@pytest.fixture
def entry(alice: LocalAccount) -> pwd.struct_passwd:
    return pwd.getpwnam(alice.name)


def test_what_is_left_of_root(entry: pwd.struct_passwd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEP_TOKEN", "secret")
    with UnprivilegedChild(_describe_and_wait, entry) as child:
        said = json.loads(child.receive(65536))
    assert said["ids"] == [entry.pw_uid] * 3 + [entry.pw_gid] * 3
    status = dict(line.split(":\t", 1) for line in said["status"].splitlines() if ":\t" in line)
    assert [int(status[one], 16) for one in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0] * 4
    assert status["NoNewPrivs"] == "1"
    assert said["session"] == child.pid
    assert said["fork"] == "may not fork"
    assert said["null"] == ["/dev/null"] * 3
    assert len(set(said["fds"]) - {"0", "1", "2", str(said["socket"])}) == 1, "the listing's own"
    assert set(said["environ"]) <= {"PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR"}


def test_a_process_of_the_same_account_cannot_look_into_it(entry: pwd.struct_passwd) -> None:
    look = "import sys; open(sys.argv[1], 'rb').read(1)"
    with UnprivilegedChild(_describe_and_wait, entry) as child:
        child.receive(65536)
        for name in ("fd/0", "mem", "environ", "maps"):
            spy = [sys.executable, "-I", "-c", look, f"/proc/{child.pid}/{name}"]
            who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            said = subprocess.run(spy, capture_output=True, text=True, check=False, cwd="/", **who)  # type: ignore[call-overload]
            assert "PermissionError" in said.stderr


def test_it_never_is_root() -> None:
    with UnprivilegedChild(lambda answers: print(answers.send(b"ran")), None) as child:
        assert child.receive(16) == b""
    with UnprivilegedChild(lambda answers: print(answers.send(b"ran")), pwd.getpwnam("root")) as child:
        assert child.receive(16) == b""


def test_it_ends_with_its_parent(entry: pwd.struct_passwd) -> None:
    with account() as other:
        code = (
            "import os, pwd, sys, time; from mep.cli.unprivileged_child import UnprivilegedChild\n"
            f"child = UnprivilegedChild(lambda answers: time.sleep(600), pwd.getpwnam({other.name!r}))\n"
            "print(child.pid, flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            time.sleep(0.2)
            pidfd = os.pidfd_open(pid)
            parent.kill()
        until("the child's end", lambda: _state(pid) in {"Z", ""})
        os.close(pidfd)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
