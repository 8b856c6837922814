"""A passing failure ends no running task and admits no new person: such a start is tried again."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mep.boundary.messages import MapperReady, StartAnswered
from mep.boundary.resolved_config import Caps, GroupLimits, Hook, Limits, Policy
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, ask, map_next, start_as
from tests.support.waiting import until

_MODULE = """
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
enum nss_status _nss_meptestaway_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
    *e = ENOENT;
    return NSS_STATUS_UNAVAIL;
}
enum nss_status _nss_meptestaway_getgrnam_r(const char *name, struct group *g, char *b, size_t n, int *e) {
    *e = ENOENT;
    return NSS_STATUS_UNAVAIL;
}
"""
_BIND = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command in front of another, for which a directory is silent."""
    library = tmp_path / "libnss_meptestaway.so.2"
    words = ["cc", "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"]
    subprocess.run(words, input=_MODULE, text=True, check=True)
    switch = tmp_path / "nsswitch.conf"
    switch.write_text("passwd: files meptestaway\ngroup: files meptestaway\nshadow: files\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return ["unshare", "--mount", "sh", "-c", _BIND, str(switch)]


def said_of(run: MonitorRun, user: str) -> tuple[StartAnswered, dict[str, object]]:
    """Return the answer to a start as `user`, and its audit record."""
    manager, mapper = run.ready()
    answer = start_as(manager, mapper, user)[1]
    return answer, next(one for one in run.audit_records() if one["event"] == "start")


def test_an_account_that_a_silent_directory_may_know(away: list[str]) -> None:
    run = MonitorRun()
    run.before = away
    with run:
        answer, record = said_of(run, "meptest-ghost")
        assert (answer.outcome, answer.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        assert record["stage"] == "LOOKUP_USER" and "meptestaway does not answer" in str(record["detail"])


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": Policy(denied_groups=["meptest-banned"])},
        {"policy": Policy(denied_groups=["daemon"])},
        {"policy": Policy(allowed_groups=["meptest-staff"])},
        {"group_limits": [GroupLimits("meptest-students", Limits(processes=50))]},
    ],
)
def test_groups_that_a_silent_directory_may_know(
    alice: LocalAccount, away: list[str], settings: dict[str, object]
) -> None:
    """It is not said who is in them: the account's own list of groups is cut short by as much."""
    run = MonitorRun(**settings)  # type: ignore[arg-type]  # as they come
    run.before = away
    with run:
        answer, record = said_of(run, alice.name)
        assert (answer.outcome, answer.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        assert "meptestaway does not answer" in str(record["detail"])


def test_what_does_not_depend_on_the_silent_directory_goes_on(alice: LocalAccount, away: list[str]) -> None:
    run = MonitorRun(policy=Policy(allowed_groups=[alice.name]))
    run.before = away
    with run:
        assert said_of(run, alice.name)[0].outcome == "started"


_TAKES_DESCRIPTORS = """#!/bin/sh
[ -e {flag} ] || exit 0
free=0
while [ -e /proc/$PPID/fd/$free ]; do free=$((free + 1)); done
exec prlimit --pid=$PPID --nofile=$free:
"""
"""Leaves its keeper a few descriptors: enough for the look-ups that follow, too few for a fork."""


def test_a_host_without_room_for_a_process(alice: LocalAccount) -> None:
    """The keeper has too few free descriptors: its fork of the user endpoint fails by EMFILE."""
    run = MonitorRun()
    script, flag = run.root / "takes-descriptors", run.root / "flag"
    script.write_text(_TAKES_DESCRIPTORS.format(flag=flag))
    script.chmod(0o755)
    run.resolved = replace(run.resolved, pre_start_hook=Hook(str(script), 30.0))
    with run:
        manager, mapper = run.ready()
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        flag.touch()
        answer = start_as(manager, mapper, alice.name, ref=2)[1]
        assert (answer.outcome, answer.code) == ("unavailable", "SITE_BUSY")
        assert "no room for another process" in answer.public
        flag.unlink()
        assert start_as(manager, mapper, alice.name, ref=3)[1].outcome == "started"


def test_requests_wait_while_few_descriptors_are_free(alice: LocalAccount) -> None:
    """Nobody is blamed for it: the manager lives, and its request goes on later."""
    with MonitorRun() as run:
        manager, mapper = run.ready()
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        used = len(list(Path(f"/proc/{run.pid}/fd").iterdir()))
        said: list[str] = []
        for left in (0, 4):
            subprocess.run(["prlimit", f"--pid={run.pid}", f"--nofile={used + left}:"], check=True)
            ask(manager, 2 + left)
            said.append("too few free descriptors")
            until("it is said", lambda: run.log_text().count(said[0]) == len(said))
            subprocess.run(["prlimit", f"--pid={run.pid}", "--nofile=500:"], check=True)
            map_next(mapper, alice.name)
            answer = manager.take(StartAnswered)[0]
            assert (answer.ref, answer.outcome) == (2 + left, "started")
        assert not manager.is_gone() and "violation" not in run.log_text()


def test_a_monitor_without_descriptors_lives(alice: LocalAccount) -> None:
    """Whatever it begins then is begun again: neither a reload nor a keeper's check nor a helper's launch ends it."""
    run = MonitorRun(resolver_argv=["/bin/false"])
    run.resolved = replace(run.resolved, manager=replace(run.resolved.manager, recheck_interval_s=1.0))
    with run:
        manager, mapper = run.ready()
        uep_id, answer = start_as(manager, mapper, alice.name)
        assert answer.outcome == "started"
        keeper = run.record(uep_id)["keeper_pid"]
        for pid in (run.pid, keeper):
            subprocess.run(["prlimit", f"--pid={pid}", "--nofile=6:"], check=True)  # poll(2) takes no more than these
        os.kill(run.pid, signal.SIGHUP)
        until("the reload was tried", lambda: "was not reloaded" in run.log_text())
        until("a check was tried", lambda: "cannot fork a checker" in run.log_text())
        mapper.kill()
        until("a launch was tried", lambda: "cannot start the mapper" in run.log_text())
        for pid in (run.pid, keeper):
            subprocess.run(["prlimit", f"--pid={pid}", "--nofile=500:"], check=True)
        run.puppet("mapper").send(MapperReady(epoch=bytes(16)))
        until("it is shown", lambda: run.status()["user_endpoints"][0]["state"] == "running")
        until("the account was checked", lambda: run.listed()[0].account_checked_ms)


def test_too_few_descriptors_for_what_is_allowed_are_said_at_the_start() -> None:
    run = MonitorRun(caps=Caps(max_user_endpoints=1000))
    run.before = ["prlimit", "--nofile=1000:1000"]
    with run:
        assert run.process is not None and run.process.wait(30) == 1
        assert "caps.max_user_endpoints" in run.log_text() and "LimitNOFILE" in run.log_text()
