"""Hostile users: they attack through their home directory, their processes, their account. Other users don't notice."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import EndpointEnded, Mapped, MapRequest, StartAnswered
from mep.boundary.resolved_config import Caps
from tests.support.accounts import LocalAccount, account, create_account, remove_account
from tests.support.monitor import (
    MonitorRun,
    Puppet,
    ask,
    gone,
    map_next,
    new_uep_id,
    processes_of,
    running_monitor,
    start_as,
)
from tests.support.waiting import until


@pytest.fixture(scope="module")
def bob() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


def bob_is_fine(manager: Puppet, mapper: Puppet, bob: LocalAccount, ref: int = 99) -> None:
    """Another person's start works, as ever."""
    assert start_as(manager, mapper, bob.name, ref=ref)[1].outcome == "started"


def as_user(who: LocalAccount, code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python as an account."""
    command = [sys.executable, "-I", "-c", code, *map(str, words)]
    return subprocess.run(
        command, user=who.uid, group=who.gid, extra_groups=[], capture_output=True, text=True, timeout=30, cwd="/"
    )


# --- their account ------------------------------------------------------------------------------------------


def test_an_account_that_disappears_after_the_mapping() -> None:
    with account() as bob, running_monitor() as (run, manager, mapper):
        made = create_account()
        ask(manager, 1)
        remove_account(made.name)
        map_next(mapper, made.name)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert record["stage"] == "LOOKUP_USER"
        bob_is_fine(manager, mapper, bob)
        run.stop()


def test_a_keeper_that_is_stopped_delays_nobody(alice: LocalAccount, bob: LocalAccount) -> None:
    """As it would be with NSS or PAM hanging for one person."""
    with running_monitor(caps=Caps(start_timeout_s=3.0, stop_grace_s=0.5)) as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        uep_id = map_again(mapper, request, alice.name)
        keeper = until("its keeper is there", lambda: run.record(uep_id).get("keeper_pid"))
        os.kill(keeper, signal.SIGSTOP)
        _, answer = start_as(manager, mapper, bob.name, ref=2)
        assert (answer.ref, answer.outcome) == (2, "started")
        late = manager.take(StartAnswered)[0]
        # A stopped process is noticed after 4 to 8 s, a late keeper here after 8 s.
        assert late.ref == 1 and late.code in {"START_INTERRUPTED", "START_TIMEOUT"}
        until("its record is gone", lambda: not run.record(uep_id))


def map_again(mapper: Puppet, request: MapRequest, user: str) -> str:
    """As the mapper, answer a request that was taken already, with a user endpoint that says nothing."""
    uep_id = new_uep_id()
    document = sealed_memfd("verified", b'{"mode": "silent"}')
    mapper.send(Mapped(request.ref, uep_id, user, "{}", "corr", bytes(32), b"i" * 16, 0), document)
    return uep_id


# --- their processes ------------------------------------------------------------------------------------------


def test_somebody_who_kills_everything_they_own(alice: LocalAccount, bob: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="orphans")
        other, _ = start_as(manager, mapper, bob.name, ref=2)
        record = run.record(uep_id)
        before = (run.pid, manager.pid, mapper.pid, run.record(other))
        done = as_user(alice, "import os, signal\nos.kill(-1, signal.SIGKILL)")
        assert done.returncode in {0, -signal.SIGKILL}
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")
        until("nothing of it is left", lambda: not processes_of(alice.uid) and not run.record(uep_id))
        assert gone(record["keeper_pid"], record["keeper_start"])
        assert before == (run.pid, manager.pid, mapper.pid, run.record(other))
        assert not manager.is_gone() and not mapper.is_gone()
        assert start_as(manager, mapper, alice.name, ref=3)[1].outcome == "started"


def test_somebody_who_signals_and_looks_at_their_keeper(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        keeper = run.record(uep_id)["keeper_pid"]
        code = """
import os, signal, sys
for pid in map(int, sys.argv[1:]):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
        try:
            os.kill(pid, number)
            print("signalled", pid, number)
        except PermissionError:
            pass
    for name in ("mem", "environ", "maps", "fd", "cwd", "root", "exe"):
        try:
            path = f"/proc/{pid}/{name}"
            {"fd": os.listdir, "cwd": os.readlink, "root": os.readlink, "exe": os.readlink}.get(name, open)(path)
            print("looked", pid, name)
        except PermissionError:
            pass
"""
        done = as_user(alice, code, keeper, run.pid, manager.pid, mapper.pid)
        assert (done.stdout, done.stderr) == ("", "")
        assert run.record(uep_id)["keeper_pid"] == keeper


# --- manager, callout and mapper --------------------------------------------------------------------------------


_LOOK = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for pid in map(int, sys.argv[1:]):
    if libc.ptrace(16, pid, 0, 0) == 0:
        print("ptrace", pid)
    for path in (f"/proc/{pid}/mem", f"/proc/{pid}/environ", f"/proc/{pid}/fd/3", f"/proc/{pid}/fd/5"):
        try:
            os.close(os.open(path, os.O_RDONLY))
            print(path)
        except OSError:
            pass
    try:
        print(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        pass
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) >= 0:
        print("process_vm_readv", pid)
    try:
        pidfd = os.pidfd_open(pid)
        if libc.syscall(438, pidfd, 5, 0) >= 0:
            print("pidfd_getfd", pid)
    except OSError:
        pass
"""


@pytest.mark.parametrize("account_name", ["mep", "mep-idmap", "nobody"])
def test_nobody_reads_memory_or_descriptors_of_the_mapper_that_holds_the_key(account_name: str) -> None:
    """The manager, a callout (which runs as the mapper's own account) and any other account, in every possible way.

    The real mapper protects itself in the same way: it makes itself not dumpable, which stops its own account's
    processes too.
    """
    code = "import ctypes, time\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nprint('here', flush=True)\ntime.sleep(60)"
    holder, looker = pwd.getpwnam("mep-idmap"), pwd.getpwnam(account_name)
    command = [sys.executable, "-I", "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, user=holder.pw_uid, group=holder.pw_gid, extra_groups=[], cwd="/"
    ) as mapper:
        assert mapper.stdout is not None
        mapper.stdout.readline()
        words = [sys.executable, "-I", "-c", _LOOK, str(mapper.pid)]
        done = subprocess.run(
            words, user=looker.pw_uid, group=looker.pw_gid, extra_groups=[], capture_output=True, text=True,
            timeout=30, cwd="/",
        )  # fmt: skip
        mapper.kill()
    assert (done.stdout, done.stderr) == ("", "")


# --- the audit log --------------------------------------------------------------------------------------------------


def test_no_start_that_cannot_be_recorded(alice: LocalAccount, small_disk: pathlib.Path) -> None:
    """A full disk; and when there is room again, starts are made and no record is torn."""
    log = small_disk / "audit.jsonl"
    with MonitorRun(audit_required=True, audit_path=str(log)) as run:
        manager, mapper = run.ready()
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 512)
        # The rest of the log's last page holds a record or two, or a part of one.
        answers = [start_as(manager, mapper, alice.name, ref=ref)[1] for ref in range(2, 40)]
        assert (answers[-1].outcome, answers[-1].code) == ("unavailable", "AUDIT_UNAVAILABLE")
        assert "the audit log cannot be written" in run.log_text()
        filler.unlink()
        assert start_as(manager, mapper, alice.name, ref=50)[1].outcome == "started"
        whole, torn = [], 0
        for line in log.read_text().splitlines():
            try:
                whole.append(json.loads(line))
            except ValueError:
                torn += bool(line)
        assert torn <= 1
        assert [one for one in whole if one["event"] == "start"][-1]["outcome"] == "started"
        requests = [one for one in whole if one["event"] == "request"]
        assert requests[0]["local_user"] == alice.name and requests[0]["correlation_id"] == "corr-1"
        run.stop()


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 64 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "meptest", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
