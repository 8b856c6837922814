"""Run as root inside the guest by test_logind.py: user endpoints that are sessions of logind's and have limits.

Every check prints one line; the first that fails ends the run with a traceback.
"""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from mep.boundary.messages import EndpointEnded
from mep.boundary.resolved_config import Caps, Limits
from tests.support import waiting
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, gone, running_monitor, start_as
from tests.support.pam import Site, pam_monitor

MIB = 2**20
ROOT = "/sys/fs/cgroup"
LIMITS = Limits(memory_max=200 * MIB, memory_high=150 * MIB, tasks_max=30, cpu_max=0.5, io_weight=50)
VALUES = {
    "memory.max": str(200 * MIB), "memory.high": str(150 * MIB), "pids.max": "30", "cpu.max": "50000 100000",
    "io.weight": "default 50",
}  # fmt: skip
CAPS = Caps(start_timeout_s=120.0, stop_grace_s=5.0)

until = functools.partial(waiting.until, seconds=90.0)
"""A guest's processor is emulated where the host has no KVM."""


def passed(what: str) -> None:
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def cgroup_of(pid: int) -> str:
    return ROOT + pathlib.Path(f"/proc/{pid}/cgroup").read_text().split("::")[1].strip()


def values_of(path: str) -> dict[str, str]:
    return {name: pathlib.Path(path, name).read_text().strip() for name in VALUES}


def sessions() -> str:
    done = subprocess.run(["loginctl", "list-sessions", "--no-legend"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextlib.contextmanager
def started(site: Site, who: LocalAccount, **options: Any) -> Iterator[tuple[MonitorRun, Puppet, str, dict[str, Any]]]:
    """A user endpoint with a session of logind's."""
    line = "session required pam_systemd.so"
    with pam_monitor(site, line, caps=CAPS, limits=LIMITS, **options) as (run, manager, mapper):
        manager.wait_at_most(120)
        began = time.monotonic()
        uep_id, answer = start_as(manager, mapper, who.name)
        assert answer.outcome == "started", (answer, run.audit.read_text())
        passed(f"started in {time.monotonic() - began:.1f} s")
        yield run, manager, uep_id, run.record(uep_id)


def check_places(run: MonitorRun, who: LocalAccount, record: dict[str, Any]) -> str:
    """Return the path of the session's scope."""
    scope = cgroup_of(record["uep_pid"])
    name = os.path.basename(scope)
    assert scope.startswith(f"{ROOT}/user.slice/user-{who.uid}.slice/session-") and name.endswith(".scope"), scope
    assert record["cgroup"] == scope, record
    passed(f"the user endpoint is in {scope}")
    ours = cgroup_of(run.pid)
    assert cgroup_of(record["keeper_pid"]) == cgroup_of(record["pam_pid"]) == ours != scope
    assert pathlib.Path(scope, "cgroup.procs").read_text().split() == [str(record["uep_pid"])]
    passed(f"keeper and PAM process are in the monitor's own group {ours}, and nobody else is in the scope")
    assert values_of(scope) == VALUES, values_of(scope)
    shown = subprocess.run(
        ["systemctl", "show", "-P", "MemoryMax", "-P", "TasksMax", name], check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == [str(200 * MIB), "30"], shown
    passed("the scope has the limits, for kernel and systemd")
    environment = pathlib.Path(f"/proc/{record['uep_pid']}/environ").read_text().split("\0")
    session = name.removeprefix("session-").removesuffix(".scope")
    assert f"XDG_SESSION_ID={session}" in environment, environment
    assert f"XDG_RUNTIME_DIR=/run/user/{who.uid}" in environment, environment
    assert session in sessions()
    passed("it knows its session")
    return scope


def check_gone(run: MonitorRun, record: dict[str, Any], scope: str) -> None:
    for what in ("keeper", "pam", "uep"):
        until(f"{what} is gone", lambda what=what: gone(record[f"{what}_pid"], record[f"{what}_start"]))
    until("the scope is gone", lambda: not os.path.exists(scope))
    until("the session is gone", lambda: not sessions())
    assert not list((run.run / "keepers").iterdir())


def check_administrators_session(who: LocalAccount) -> None:
    """A monitor started from a login shell is in that session's cgroup, which user endpoints must not limit or kill."""
    shell = subprocess.Popen(["systemd-run", "--quiet", "--scope", "--unit=session-99", "sleep", "600"])
    scope = until("a session", lambda: path if (path := cgroup_of(shell.pid)).endswith("/session-99.scope") else "")
    for limits in (Limits(), LIMITS):
        with running_monitor(caps=CAPS, limits=limits) as (run, manager, mapper):
            manager.wait_at_most(120)
            pathlib.Path(scope, "cgroup.procs").write_text(str(run.pid))
            uep_id, answer = start_as(manager, mapper, who.name)
            assert answer.outcome == "started", (answer, run.audit.read_text())
            record = run.record(uep_id)
            assert cgroup_of(record["keeper_pid"]) == cgroup_of(run.pid) == scope
            assert "/mep.slice/" in cgroup_of(record["uep_pid"]), cgroup_of(record["uep_pid"])
            os.kill(record["uep_pid"], signal.SIGKILL)
            assert manager.take(EndpointEnded)[0].uep_id == uep_id
            until("the keeper is gone", lambda record=record: gone(record["keeper_pid"], record["keeper_start"]))
            assert shell.poll() is None and pathlib.Path(scope, "memory.max").read_text() == "max\n"
            passed("a monitor in an administrator's session leaves the session alone")
    shell.kill()
    shell.wait()


def main() -> None:
    for name in ("mep", "mep-idmap"):
        subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", name], check=True)
    site = Site()
    with account() as who:
        check_administrators_session(who)
        with started(site, who) as (run, _manager, _uep_id, record):
            scope = check_places(run, who, record)
            os.kill(record["uep_pid"], signal.SIGKILL)
            check_gone(run, record, scope)
            passed("a killed user endpoint: session and scope are gone")
        with started(site, who) as (run, manager, uep_id, record):
            scope = cgroup_of(record["uep_pid"])
            os.kill(record["keeper_pid"], signal.SIGKILL)
            assert manager.take(EndpointEnded)[0].uep_id == uep_id
            check_gone(run, record, scope)
            passed("a killed keeper: session and scope are gone")
        with started(site, who) as (run, _manager, _uep_id, record):
            scope = cgroup_of(record["uep_pid"])
            assert run.stop(seconds=60) == 0
            check_gone(run, record, scope)
            passed("mep stop: session and scope are gone")
        of_everything = Limits(memory_max=200 * MIB, person_memory_max=400 * MIB)
        line = "session required pam_systemd.so"
        with pam_monitor(site, line, caps=CAPS, limits=of_everything) as (run, manager, mapper):
            manager.wait_at_most(120)
            answer = start_as(manager, mapper, who.name)[1]
            assert answer.code == "START_FAILED" and "CGROUP" in answer.public, answer
            assert "take pam_systemd out of the PAM service" in run.audit.read_text()
            until("the session is gone", lambda: not sessions())
            passed("limits of a person are refused with the reason")
        with running_monitor(caps=CAPS, limits=LIMITS) as (run, manager, mapper):
            manager.wait_at_most(120)
            uep_id, answer = start_as(manager, mapper, who.name)
            assert answer.outcome == "started", answer
            scope = cgroup_of(run.record(uep_id)["uep_pid"])
            assert "/mep.slice/" in scope and values_of(scope) == VALUES, (scope, values_of(scope))
            passed("without PAM the same limits are on a scope of our own")
    site.close()


try:
    main()
finally:
    sys.stdout.flush()
    subprocess.run("journalctl -b --no-pager -o cat -n 200 > /guest/out/journal", shell=True, check=False)
