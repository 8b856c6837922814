"""The effect of the host's usual PAM modules on a user endpoint: limits, environment, home, shells, access, groups."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from mep.boundary.messages import StartAnswered
from mep.boundary.resolved_config import Policy
from tests.support.accounts import LocalAccount, account, group
from tests.support.monitor import MonitorRun, Puppet, start_as
from tests.support.pam import Site, pam_monitor

GROUP_CONF = pathlib.Path("/etc/security/group.conf")


def environment_of(pid: int) -> dict[str, str]:
    entries = pathlib.Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    return dict(one.partition("=")[::2] for one in entries)


def started(run: MonitorRun, manager: Puppet, mapper: Puppet, user: str) -> int:
    uep_id, answer = start_as(manager, mapper, user)
    assert answer.outcome == "started", answer
    return int(run.record(uep_id)["uep_pid"])


def check_refused(run: MonitorRun, answer: StartAnswered, stage: str, *texts: str) -> None:
    assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
    assert "site's policy does not admit you" in answer.public and answer.correlation_id
    record = next(one for one in run.audit_records() if one["event"] == "start")
    assert record["stage"] == stage
    for text in texts:
        assert text in record["detail"]
        assert text not in answer.public


def test_limits(alice: LocalAccount, site: Site) -> None:
    conf = site.write("limits.conf", f"{alice.name} - nofile 321\n{alice.name} soft core 4\n")
    with pam_monitor(site, f"session required pam_limits.so conf={conf}") as (run, manager, mapper):
        limits = pathlib.Path(f"/proc/{started(run, manager, mapper, alice.name)}/limits").read_text()
        found = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
        assert found["Max open files"] == ["321", "321"]


def test_environment(alice: LocalAccount, site: Site) -> None:
    wanted = {"MEPTEST_PLACE": "here", "PATH": "/opt/site/bin:/usr/bin:/bin", "LANG": "C", "MEPTEST_ODD": "a b=c"}
    never = {"LD_PRELOAD": "/x.so", "LD_LIBRARY_PATH": "/x", "PYTHONPATH": "/x", "BASH_ENV": "/x", "HOME": "/x"}
    text = "".join(f'{name} DEFAULT="{value}"\n' for name, value in {**wanted, **never, "USER": "root"}.items())
    conf = site.write("pam_env.conf", text)
    with pam_monitor(site, f"session required pam_env.so conffile={conf} readenv=0") as (run, manager, mapper):
        found = environment_of(started(run, manager, mapper, alice.name))
        assert {name: found[name] for name in wanted} == wanted
        assert (found["HOME"], found["USER"]) == (alice.home, alice.name)
        assert not {"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "BASH_ENV"} & set(found)
        assert "LD_PRELOAD" in run.log_text()


def test_home_is_made(site: Site) -> None:
    with account(home=False) as who, pam_monitor(site, "session required pam_mkhomedir.so umask=0077") as (run, *both):
        try:
            pid = started(run, *both, who.name)
            assert os.stat(who.home).st_uid == who.uid
            assert os.readlink(f"/proc/{pid}/cwd") == who.home
        finally:
            shutil.rmtree(who.home, ignore_errors=True)


def test_shells(site: Site) -> None:
    with account(shell="/usr/sbin/nologin") as who, pam_monitor(site, "account required pam_shells.so") as running:
        run, manager, mapper = running
        check_refused(run, start_as(manager, mapper, who.name)[1], "PAM_ACCOUNT", "pam_acct_mgmt")


def check_waits(run: MonitorRun, answer: StartAnswered, reason: str) -> None:
    assert (answer.outcome, answer.code) == ("unavailable", "NOT_ADMITTED_NOW")
    assert answer.public == f"This site does not admit you at the moment: {reason}. Your tasks wait."
    record = next(one for one in run.audit_records() if one["event"] == "start")
    assert (record["stage"], record["code"]) == ("PAM_ACCOUNT", "NOT_ADMITTED_NOW")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Down for maintenance until noon.\n", "Down for maintenance until noon"),
        ("Two lines:\n\x1b[31mred\u202e and\tmore.\n", "Two lines: \\x1b[31mred\\u202e and more"),
        ("long " * 2000, ("long " * 2000)[:512].strip()),
    ],
)
def test_nologin(alice: LocalAccount, site: Site, text: str, reason: str) -> None:
    """The start waits. The module's text is for the person, on one line, clipped and without controls."""
    notice = site.write("nologin", text)
    with pam_monitor(site, f"account required pam_nologin.so file={notice}") as (run, manager, mapper):
        check_waits(run, start_as(manager, mapper, alice.name)[1], reason)
        notice.unlink()
        assert start_as(manager, mapper, alice.name, ref=2)[1].outcome == "started"


@pytest.mark.parametrize("word", ["new_authtok_reqd", "try_again", "authtok_lock_busy", "cred_unavail", "auth_err"])
def test_other_answers_that_pass(alice: LocalAccount, site: Site, word: str) -> None:
    with pam_monitor(site, f"account required pam_debug.so acct={word}") as (run, manager, mapper):
        check_waits(run, start_as(manager, mapper, alice.name)[1], f"acct={word}")


@pytest.mark.parametrize("word", ["perm_denied", "user_unknown", "acct_expired", "authtok_expired"])
def test_answers_that_do_not_pass(alice: LocalAccount, site: Site, word: str) -> None:
    with pam_monitor(site, f"account required pam_debug.so acct={word}") as (_, manager, mapper):
        answer = start_as(manager, mapper, alice.name)[1]
        assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
        assert answer.public == f"The site refuses to start your process: acct={word}"


def test_access(alice: LocalAccount, site: Site) -> None:
    conf = site.write("access.conf", f"-:{alice.name}:ALL\n")
    with account() as bob, pam_monitor(site, f"account required pam_access.so accessfile={conf}") as (run, *both):
        check_refused(run, start_as(*both, alice.name)[1], "PAM_ACCOUNT", "pam_acct_mgmt: Permission denied")
        assert start_as(*both, bob.name, ref=2)[1].outcome == "started"


@contextlib.contextmanager
def group_conf(line: str) -> Iterator[None]:
    """pam_group has no argument for its file: one line is added to the host's, and the file is put back."""
    before = GROUP_CONF.read_bytes() if GROUP_CONF.exists() else None
    GROUP_CONF.write_bytes((before or b"") + line.encode() + b"\n")
    try:
        yield
    finally:
        if before is None:
            GROUP_CONF.unlink()
        else:
            GROUP_CONF.write_bytes(before)


def test_groups(alice: LocalAccount, site: Site) -> None:
    with (
        group([]) as (name, gid),
        group_conf(f"{site.service};*;{alice.name};Al0000-2400;{name}"),
        pam_monitor(site, "auth optional pam_group.so") as (run, manager, mapper),
    ):
        pid = started(run, manager, mapper, alice.name)
        assert {*map(int, groups_of(pid))} == {alice.gid, gid}
        assert groups_of(parent_of(pid)) == groups_of(run.pid)


def test_a_module_that_adds_a_privileged_group(alice: LocalAccount, site: Site) -> None:
    """The policy on privileged groups holds for what modules add, too."""
    with group_conf(f"{site.service};*;{alice.name};Al0000-2400;root"):
        with pam_monitor(site, "auth optional pam_group.so") as (run, manager, mapper):
            answer = start_as(manager, mapper, alice.name)[1]
            check_refused(run, answer, "PAM_SESSION", "after PAM's modules", "group 0, which is privileged")
        policy = Policy(allowed_privileged_groups=["root"])
        with pam_monitor(site, "auth optional pam_group.so", policy=policy) as (run, manager, mapper):
            pid = started(run, manager, mapper, alice.name)
            assert {*map(int, groups_of(pid))} == {alice.gid, 0}


def parent_of(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def groups_of(pid: int) -> list[str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("Groups:")).split()[1:]


def test_the_shipped_service(alice: LocalAccount, site: Site) -> None:
    """etc/pam.d/mep as it is, with this distribution's own stacks."""
    shipped = pathlib.Path(__file__).parents[2] / "etc" / "pam.d" / "mep"
    if not pathlib.Path("/etc/pam.d/common-account").exists():
        pytest.skip("written for Debian and its relatives")
    lines = shipped.read_text().splitlines()
    assert not any("pam_systemd" in line and not line.startswith("#") for line in lines)
    with pam_monitor(site, *lines) as (run, manager, mapper):
        started(run, manager, mapper, alice.name)
    os.system(f"chage -E 1 {alice.name}")
    try:
        with pam_monitor(site, *lines) as (run, manager, mapper):
            assert start_as(manager, mapper, alice.name)[1].code == "ACCOUNT_REFUSED"
    finally:
        os.system(f"chage -E -1 {alice.name}")
