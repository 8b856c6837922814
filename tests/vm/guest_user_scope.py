"""Run as root inside the guest by test_user_scope.py: a person's own endpoint under the person's own service manager.

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
from typing import Any

from mep.boundary.messages import EndpointEnded
from mep.boundary.resolved_config import Caps
from tests.support import waiting
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, gone, start_as

ROOT = "/sys/fs/cgroup"
CAPS = Caps(start_timeout_s=120.0, stop_grace_s=1.0)
SECONDS = "3611"
"""Distinguishes the process that went into the namespace from others."""

until = functools.partial(waiting.until, seconds=90.0)
"""A guest's processor is emulated where the host has no KVM."""


def passed(what: str) -> None:
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def cgroup_of(pid: int) -> str:
    return ROOT + pathlib.Path(f"/proc/{pid}/cgroup").read_text().split("::")[1].strip()


def joined() -> list[int]:
    """Return the processes that went into the namespace."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if words[:2] == [b"sleep", SECONDS.encode()]:
                found.append(int(entry.name))
    return found


def namespace(who: LocalAccount) -> int:
    """Return the init of a PID namespace that the account holds outside of its endpoint."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "3600"]
    holder = subprocess.Popen(words, user=who.uid, group=who.gid, extra_groups=[])
    children = pathlib.Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    return int(until("a namespace", lambda: children.read_text().split())[0])


def started(run: MonitorRun, who: LocalAccount, target: int) -> tuple[Any, str, dict[str, Any]]:
    manager, mapper = run.ready()
    manager.wait_at_most(120)
    uep_id, answer = start_as(manager, mapper, who.name, mode="join", target=target, seconds=SECONDS)
    assert answer.outcome == "started", (answer, run.audit.read_text())
    until("a process in the namespace", joined)
    return manager, uep_id, run.record(uep_id)


def check_without_group(who: LocalAccount, target: int) -> None:
    """The documentation's statement about a host where no cgroup can be had."""
    with MonitorRun(owner=who, caps=CAPS) as run:
        _, _, record = started(run, who, target)
        assert record["cgroup"] == "", record
        assert run.stop(seconds=60) == 0
        until("the keeper is gone", lambda: gone(record["keeper_pid"], record["keeper_start"]))
        (left,) = joined()
        os.kill(left, signal.SIGKILL)
        until("nothing is left", lambda: not joined())
    passed("without a service manager of the person's, a process in another PID namespace survives the stop")


def check_scope(who: LocalAccount, target: int, *, kill_keeper: bool) -> None:
    with MonitorRun(owner=who, caps=CAPS) as run:
        manager, uep_id, record = started(run, who, target)
        group = cgroup_of(record["uep_pid"])
        above = f"{ROOT}/user.slice/user-{who.uid}.slice/user@{who.uid}.service/mep.slice/mep-test.slice/"
        assert group.startswith(above) and group.endswith(".scope"), group
        assert record["cgroup"] == group == cgroup_of(joined()[0]), record
        assert cgroup_of(record["keeper_pid"]) == cgroup_of(run.pid) != group
        passed(f"the user endpoint and the process in the namespace are in {group}")
        if kill_keeper:
            os.kill(record["keeper_pid"], signal.SIGKILL)
            assert manager.take(EndpointEnded)[0].uep_id == uep_id
        else:
            assert run.stop(seconds=60) == 0
        until("nothing is left in the namespace", lambda: not joined())
        until("the scope is gone", lambda: not os.path.exists(group))
    passed(f"{'a killed keeper' if kill_keeper else 'mep stop'} ends the process in the namespace")


def main() -> None:
    with account() as who:
        target = namespace(who)
        check_without_group(who, target)
        subprocess.run(["loginctl", "enable-linger", who.name], check=True)
        until("a bus of the person's", lambda: os.path.exists(f"/run/user/{who.uid}/bus"))
        check_scope(who, target, kill_keeper=False)
        check_scope(who, target, kill_keeper=True)
        subprocess.run(["loginctl", "disable-linger", who.name], check=True)
        os.kill(target, signal.SIGKILL)


try:
    main()
finally:
    sys.stdout.flush()
    subprocess.run("journalctl -b --no-pager -o cat -n 200 > /guest/out/journal", shell=True, check=False)
