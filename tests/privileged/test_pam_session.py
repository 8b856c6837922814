"""The life of a PAM session, with the host's real PAM: order, who runs it, how it ends, the keeper's own state."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

import pytest

from mep.boundary.messages import StartAnswered
from mep.boundary.resolved_config import Caps
from tests.support.accounts import LocalAccount, account, unshared_uid
from tests.support.monitor import MonitorRun, ask, map_next, processes_of, running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.waiting import until

LIFE = ["account", "open_session", "close_session"]


def recording(site: Site) -> list[str]:
    return [f"{kind} required pam_exec.so quiet {site.recorder()}" for kind in ("account", "session")]


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_order_and_who(alice: LocalAccount, site: Site) -> None:
    with pam_monitor(site, *recording(site)) as (_run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name, life_s=0.3, ended="IDLE")
        assert answer.outcome == "started"
        assert site.recorded() == LIFE[:2]
        until("the session is closed", lambda: site.recorded() == LIFE)
        lines = site.record.read_text().splitlines()
        assert lines == [f"{kind} {alice.name} {site.service} 0" for kind in LIFE]


def kill_user_endpoint(run: MonitorRun, record: dict[str, int]) -> None:
    os.kill(record["uep_pid"], signal.SIGKILL)


def terminate_keeper(run: MonitorRun, record: dict[str, int]) -> None:
    os.kill(record["keeper_pid"], signal.SIGTERM)


def kill_monitor(run: MonitorRun, record: dict[str, int]) -> None:
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    assert os.path.exists(f"/proc/{record['uep_pid']}"), "it lives on without the monitor"
    terminate_keeper(run, record)


def stop_monitor(run: MonitorRun, record: dict[str, int]) -> None:
    assert run.stop() == 0


@pytest.mark.parametrize("end", [kill_user_endpoint, terminate_keeper, kill_monitor, stop_monitor])
def test_closed_however_it_ends(
    alice: LocalAccount, site: Site, end: Callable[[MonitorRun, dict[str, int]], None]
) -> None:
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        end(run, run.record(uep_id))
        until("the session is closed", lambda: site.recorded() == LIFE)
        until("nothing is left", lambda: not processes_of(alice.uid))


def test_a_start_that_fails_closes_it(alice: LocalAccount, site: Site) -> None:
    with pam_monitor(site, *recording(site)) as (_run, manager, mapper):
        assert start_as(manager, mapper, alice.name, mode="exit")[1].code == "START_FAILED"
        until("the session is closed", lambda: site.recorded() == LIFE)


def test_close_that_fails_is_logged(alice: LocalAccount, site: Site) -> None:
    body = "echo $PAM_TYPE >> " + str(site.record) + '\n[ "$PAM_TYPE" != close_session ]'
    script = site.script("closing", body)
    with pam_monitor(site, f"session required pam_exec.so quiet {script}") as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, life_s=0, ended="IDLE")
        until("the keeper is gone", lambda: not run.record(uep_id))
        assert "PAM could not close a session" in run.log_text()


REFUSALS = [
    ("account required pam_deny.so", "PAM_ACCOUNT", "pam_acct_mgmt: "),
    ("auth required pam_deny.so", "PAM_CRED", "pam_setcred: "),
    ("session required pam_deny.so", "PAM_SESSION", "pam_open_session: "),
]


@pytest.mark.parametrize(("line", "stage", "detail"), REFUSALS)
def test_refusals(alice: LocalAccount, site: Site, line: str, stage: str, detail: str) -> None:
    with pam_monitor(site, line) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
        assert "site's policy does not admit you" in answer.public and answer.correlation_id == "corr-1"
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert (record["stage"], record["correlation_id"]) == (stage, "corr-1")
        assert record["detail"].startswith(detail) and "PAM code" in record["detail"]
        assert not processes_of(alice.uid)


def test_a_directory_that_does_not_answer_pam_ends_no_task(alice: LocalAccount, site: Site) -> None:
    with pam_monitor(site, "account requisite pam_debug.so acct=authinfo_unavail") as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert (answer.outcome, answer.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        assert next(one for one in run.audit_records() if one["event"] == "start")["stage"] == "PAM_ACCOUNT"


def test_module_that_does_not_exist(alice: LocalAccount, site: Site) -> None:
    with pam_monitor(site, "account required pam_meptest_none.so") as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        assert answer.code == "START_FAILED" and "PAM_ACCOUNT" in answer.public
        assert "Module is unknown" in next(one for one in run.audit_records() if one["event"] == "start")["detail"]


def test_password_that_must_be_changed(alice: LocalAccount, site: Site) -> None:
    """The start waits, and the person reads pam_unix's own words: they can change it by a login."""
    with pam_monitor(site, "account required pam_unix.so") as (run, manager, mapper):
        os.system(f"chage -d 0 {alice.name}")
        try:
            _, answer = start_as(manager, mapper, alice.name)
        finally:
            os.system(f"chage -d -1 {alice.name}")
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert (answer.outcome, record["code"]) == ("unavailable", "NOT_ADMITTED_NOW")
        assert "You are required to change your password" in answer.public


@pytest.mark.parametrize("kind", ["account", "session"])
def test_module_that_hangs(alice: LocalAccount, site: Site, kind: str) -> None:
    """In C code, with a child of the module's own: the monitor ends both, and other starts don't wait."""
    script = site.script("hang", f'[ "$PAM_USER" = {alice.name} ] || exit 0\necho $$ >> {site.record}\nexec sleep 600')
    caps = Caps(start_timeout_s=4.0, stop_grace_s=1.0)
    with account() as bob, pam_monitor(site, f"{kind} required pam_exec.so {script}", caps=caps) as (run, *both):
        manager, mapper = both
        ask(manager, 1)
        map_next(mapper, alice.name)
        until("the module hangs", site.record.exists)
        assert start_as(manager, mapper, bob.name, ref=2)[1].outcome == "started", "before the other's time is over"
        answer, _ = manager.take(StartAnswered)
        assert (answer.ref, answer.code) == (1, "START_TIMEOUT")
        detail = [one for one in run.audit_records() if one.get("code") == "START_TIMEOUT"][-1]["detail"]
        assert f"PAM_{kind.upper()}" in detail
        module = int(site.record.read_text())
        until("the module's child is gone", lambda: not os.path.exists(f"/proc/{module}"))


def limits_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/limits").read_text()


@pytest.fixture
def limited() -> Iterator[LocalAccount]:
    with account(uid=unshared_uid()) as made:
        yield made


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_keeper_stays_itself(limited: LocalAccount, site: Site, kind: str) -> None:
    """Under limits that would end it, another umask and priority: also as a root that cannot raise hard limits."""
    conf = site.write("limits.conf", f"* {kind} fsize 1\n* {kind} nproc 1\n* hard nofile 321\n* - priority 7\n")
    lines = [f"session required pam_limits.so conf={conf}", "session required pam_umask.so umask=0027"]
    with pam_monitor(site, *lines, *recording(site)) as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, limited.name)
        assert answer.outcome == "started"
        record = run.record(uep_id)
        keeper, user = record["keeper_pid"], record["uep_pid"]
        assert limits_of(keeper) == limits_of(run.pid)
        ours, monitor, theirs = status_of(keeper), status_of(run.pid), status_of(user)
        for key in ("Uid", "Gid", "Groups", "Umask", "SigBlk", "NoNewPrivs"):
            assert ours[key] == monitor[key], key
        assert (theirs["Umask"], os.getpriority(os.PRIO_PROCESS, user)) == ("0027", 7)
        assert os.getpriority(os.PRIO_PROCESS, keeper) == os.getpriority(os.PRIO_PROCESS, run.pid)
        found = {line[:26].strip(): line[26:].split()[:2] for line in limits_of(user).splitlines()}
        assert [found[f"Max {what}"][0] for what in ("file size", "processes", "open files")] == ["1024", "1", "321"]
        os.kill(user, signal.SIGTERM)
        until("it ended as always", lambda: not run.record(uep_id))
        assert site.recorded() == LIFE


CGROUP = pathlib.Path("/sys/fs/cgroup/freezer")


@pytest.mark.skipif(not CGROUP.is_dir(), reason="needs a cgroup v1 hierarchy that root may write to")
def test_keeper_leaves_the_control_group_of_the_session(alice: LocalAccount, site: Site) -> None:
    group = CGROUP / site.service
    group.mkdir()
    try:
        script = site.script("move", f'[ "$PAM_TYPE" = close_session ] || echo $PPID > {group}/cgroup.procs')
        with pam_monitor(site, f"session required pam_exec.so {script}") as (run, manager, mapper):
            uep_id, _ = start_as(manager, mapper, alice.name)
            record = run.record(uep_id)
            inside = (group / "cgroup.procs").read_text().split()
            assert inside == [str(record["uep_pid"])]
    finally:
        with contextlib.suppress(OSError):
            until("the group is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


KEYRING = """import ctypes, sys
call = ctypes.CDLL(None).syscall
print(call(ctypes.c_long(250), ctypes.c_long(0), ctypes.c_long(-3), ctypes.c_long(0)), file=open(sys.argv[1], "a"))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the number of keyctl on x86_64 alone")
@pytest.mark.parametrize("made_by_pam", [True, False])
def test_keyring(alice: LocalAccount, site: Site, made_by_pam: bool) -> None:
    site.write("keyring.py", KEYRING)
    script = site.script("keyring", f"/usr/bin/python3 -I {site.root}/keyring.py {site.root}/of-pam")
    lines = ["session required pam_keyinit.so force revoke"] if made_by_pam else []
    with MonitorRun(pam=site.define(*lines, f"session required pam_exec.so {script}")) as run:
        (run.root / "uep_standin.py").write_text(
            f"import sys\nsys.argv[1:] = ['{alice.home}/of-user']\nsys.stdout = open('/dev/null', 'w')\n{KEYRING}"
        )
        manager, mapper = run.ready()
        start_as(manager, mapper, alice.name)
        of_pam = (site.root / "of-pam").read_text().split()[0]
        of_user = pathlib.Path(alice.home, "of-user")
        assert (of_user.read_text().split()[0] == of_pam) == made_by_pam
        of_user.unlink()


def test_without_pam_nothing_is_asked(alice: LocalAccount, site: Site) -> None:
    site.define(*recording(site))
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        keeper = run.record(uep_id)["keeper_pid"]
        assert not site.recorded()
        assert "libpam" not in pathlib.Path(f"/proc/{keeper}/maps").read_text()
        assert "libpam" not in pathlib.Path(f"/proc/{run.pid}/maps").read_text()
