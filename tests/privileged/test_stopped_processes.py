"""A process of the endpoint's that a signal stopped is noticed, said in the status, and replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mep.boundary.messages import ManagerReady, MapperReady, StartAnswered
from mep.boundary.resolved_config import Hook
from tests.privileged.test_status_command import status
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, ask, map_next, running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.tracer import ptrace
from tests.support.waiting import until

_SLOW_MODULE = """
#include <nss.h>
#include <pwd.h>
#include <unistd.h>
enum nss_status _nss_mepslow_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
    if (access("%s", F_OK) == 0)
        sleep(600);
    return NSS_STATUS_NOTFOUND;
}
"""


def problem(run: MonitorRun) -> str:
    return str(run.status().get("problem", ""))


_WALL = 0x40000000


def _stop(pid: int, how: str) -> None:
    """Stop a process by a signal, or as a debugger does, whose end would let it go on."""
    if how == "signal":
        os.kill(pid, signal.SIGSTOP)
        return
    ptrace(16, pid)  # PTRACE_ATTACH
    os.waitpid(pid, _WALL)
    assert "\nState:\tt " in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("how", ["signal", "debugger"])
@pytest.mark.parametrize("kind", ["manager", "mapper"])
def test_manager_and_mapper(alice: LocalAccount, kind: str, how: str) -> None:
    with running_monitor() as (run, manager, mapper):
        stopped = manager if kind == "manager" else mapper
        _stop(stopped.pid, how)
        until("it is said", lambda: f"{kind}[{stopped.pid}] was stopped" in problem(run))
        if how == "debugger":
            os.waitpid(stopped.pid, _WALL)  # a debugger hears of the end before the parent does
        successor = run.puppet(kind)
        successor.send(ManagerReady(version="test") if kind == "manager" else MapperReady(epoch=bytes(16)))
        manager, mapper = (successor, mapper) if kind == "manager" else (manager, successor)
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        until("all is well", lambda: run.status()["state"] == "up")
        assert f"{kind}[{stopped.pid}] was stopped" in status(run, expect=(0, 8, 9, 10))  # 8: no link


def test_one_that_goes_on_is_left_alone(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        for _ in range(3):
            os.kill(manager.pid, signal.SIGSTOP)
            os.kill(manager.pid, signal.SIGCONT)
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        assert "stopped and does not go on" not in run.log_text()


def test_a_keeper_before_its_user_endpoint_is_there(alice: LocalAccount) -> None:
    """The start is worth another try: nothing was wrong with it."""
    run = MonitorRun()
    script, at = run.root / "hook", run.root / "reached"
    script.write_text(
        f"#!/bin/sh\n[ -e {at} ] && exit 0\necho $PPID > {at}.part && mv {at}.part {at}\nexec sleep 600\n"
    )
    script.chmod(0o755)
    run.resolved = replace(run.resolved, pre_start_hook=Hook(str(script), 600.0))
    with run:
        manager, mapper = run.ready()
        ask(manager, 1)
        map_next(mapper, alice.name)
        os.kill(int(until("the keeper is there", lambda: at.exists() and at.read_text())), signal.SIGSTOP)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("unavailable", "START_INTERRUPTED")
        assert "keeper[" in problem(run)
        assert start_as(manager, mapper, alice.name, ref=2)[1].outcome == "started"


def test_a_keeper_whose_user_endpoint_runs_is_left_alone(alice: LocalAccount) -> None:
    """A person's work goes on under it."""
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        keeper = run.record(uep_id)["keeper_pid"]
        os.kill(keeper, signal.SIGSTOP)
        os.kill(mapper.pid, signal.SIGSTOP)
        until("the other one was noticed", lambda: f"mapper[{mapper.pid}]" in problem(run))
        assert f'process="keeper[{keeper}]' not in run.log_text()
        os.kill(keeper, signal.SIGCONT)


def test_the_resolver(tmp_path: Path) -> None:
    script, at = tmp_path / "resolver", tmp_path / "pids"
    script.write_text(f"#!/bin/sh\necho $$ >> {at}\nexec sleep 600\n")
    script.chmod(0o755)
    with running_monitor(resolver_argv=[str(script)]) as (run, _manager, _mapper):
        os.kill(run.pid, signal.SIGHUP)
        pid = int(until("it runs", lambda: at.exists() and at.read_text().splitlines()[0]))
        os.kill(pid, signal.SIGSTOP)
        until("it is said", lambda: f"resolver[{pid}] was stopped" in problem(run))
        until("another runs", lambda: len(at.read_text().splitlines()) == 2)


def test_a_checker(alice: LocalAccount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account's check that hangs, and is stopped then, is killed by its keeper and made again soon."""
    library, switch, flag = tmp_path / "libnss_mepslow.so.2", tmp_path / "nsswitch.conf", tmp_path / "slow"
    words = ["cc", "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"]
    subprocess.run(words, input=_SLOW_MODULE % flag, text=True, check=True)
    switch.write_text("passwd: mepslow files\ngroup: files\nshadow: files\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    tmp_path.chmod(0o755)
    run = MonitorRun()
    run.before = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"', str(switch)]
    run.resolved = replace(run.resolved, manager=replace(run.resolved.manager, recheck_interval_s=1.0))
    with run:
        manager, mapper = run.ready()
        uep_id, answer = start_as(manager, mapper, alice.name)
        assert answer.outcome == "started"
        keeper = run.record(uep_id)["keeper_pid"]
        flag.touch()
        seen: Counter[int] = Counter()
        checker = int(until("a checker hangs", lambda: _seen_often(keeper, seen)))
        os.kill(checker, signal.SIGSTOP)
        until("it is said", lambda: "an account cannot be checked now" in run.log_text())
        until("it is killed", lambda: not Path(f"/proc/{checker}").exists())
        flag.unlink()
        at = run.listed()[0].account_checked_ms
        until("it was made again", lambda: run.listed()[0].account_checked_ms > at)


def _seen_often(keeper: int, seen: Counter[int]) -> int:
    """Return a checker that was there at twenty looks, 0 if there is none: one from before the flag is soon gone."""
    for pid in map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "mep-checker\n":
                seen[pid] += 1
    return next((pid for pid, times in seen.items() if times >= 20), 0)


def test_a_pam_process(alice: LocalAccount, site: Site) -> None:
    at = site.root / "reached"
    body = f"[ -e {at} ] || {{ echo $PPID > {at}.part; mv {at}.part {at}; exec sleep 600; }}"
    line = f"session required pam_exec.so {site.script('slow', body)}"
    with pam_monitor(site, "account required pam_permit.so", line) as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name)
        until("the module runs", at.exists)
        pam = until("it is recorded", lambda: run.record(uep_id)["pam_pid"])
        os.kill(pam, signal.SIGSTOP)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        assert "was stopped" in str(next(one for one in run.audit_records() if one["event"] == "start")["detail"])
        assert start_as(manager, mapper, alice.name, ref=2)[1].outcome == "started"
