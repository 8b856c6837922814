"""The monitor's part in re-checks, against a manager and a mapper that the test plays; and what NSS says, with a real
module of NSS."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mep.boundary.messages import (
    EndpointEnded,
    EndpointRevoked,
    LinkStatus,
    ManagerReady,
    MapRequest,
    NoLongerMapped,
    RecheckNow,
    StartAnswered,
    StillMapped,
)
from mep.boundary.resolved_config import Caps, ManagerSection, Pam, Policy
from mep.root.account import nss, shadow
from tests.support.accounts import LocalAccount, account, unique_name
from tests.support.monitor import MonitorRun, Puppet, ask, gone, new_uep_id, start_as
from tests.support.waiting import until

CAPS = Caps(start_timeout_s=20.0, stop_grace_s=1.0)

BEING_WRITTEN = shutil.ignore_patterns("*.lock", "*.[0-9]*", "*-", "*+")
"""Files that useradd makes and removes in /etc while another test makes an account."""


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


@contextlib.contextmanager
def monitor(interval_s: float, **options: Any) -> Iterator[tuple[MonitorRun, Puppet, Puppet]]:
    """A monitor that re-checks accounts at this interval."""
    run = MonitorRun(**options)
    manager = replace(run.resolved.manager, recheck_interval_s=interval_s)
    assert isinstance(manager, ManagerSection)
    run.resolved = replace(run.resolved, manager=manager)
    with run:
        yield run, *run.ready()


def answer(manager: Puppet, mapper: Puppet, message: type[StillMapped | NoLongerMapped], *fields: str) -> StartAnswered:
    """Play a re-check of which the mapper says `message`; return the manager's answer."""
    ask(manager, 900)
    request, descriptors = mapper.take(MapRequest)
    for descriptor in descriptors:
        os.close(descriptor)
    mapper.send(message(request.ref, *fields))
    return manager.take(StartAnswered)[0]


def state(run: MonitorRun) -> str:
    """Return the status file's entry for the only user endpoint."""
    found = run.status().get("user_endpoints", [])
    return str(found[0]["state"]) if found else ""


def checked_at(run: MonitorRun) -> float:
    """Return when mapping and account of the only user endpoint had both been checked; 0 if one hasn't."""
    (found,) = run.listed()
    return min(found.mapping_checked_ms, found.account_checked_ms) / 1000


def test_somebody_who_still_maps_is_left_alone(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        before = until("ready", lambda: state(run) == "running" and checked_at(run))
        told = answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        assert (told.ref, told.outcome, told.uep_id) == (900, "already_running", uep_id)
        assert not [one for one in run.audit_records() if one["event"] == "revoke"]
        record = run.record(uep_id)
        assert not gone(record["uep_pid"], record["uep_start"])
        assert before


@pytest.mark.parametrize("code", ["IDENTITY_NOT_MAPPED", "IDENTITY_AMBIGUOUS"])
def test_somebody_who_maps_to_nobody_loses_it(alice: LocalAccount, code: str) -> None:
    with monitor(300) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        answer(manager, mapper, NoLongerMapped, uep_id, code, "Not any more.", "the inner reason", "c-2")
        revoked = manager.take(EndpointRevoked)[0]
        assert revoked == EndpointRevoked(uep_id, code, "Not any more.", "c-2", revoked.incarnation)
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code, ended.public) == (uep_id, code, "Not any more.")
        record = next(one for one in run.audit_records() if one["event"] == "revoke")
        assert (record["code"], record["detail"], record["local_user"]) == (code, "the inner reason", alice.name)


def test_somebody_who_maps_to_another_account_loses_it(alice: LocalAccount) -> None:
    with monitor(300) as (_, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        answer(manager, mapper, StillMapped, uep_id, "somebody-else", "c-2")
        revoked = manager.take(EndpointRevoked)[0]
        assert (revoked.uep_id, revoked.code) == (uep_id, "IDENTITY_REMAPPED")
        assert "somebody-else" not in revoked.public
        assert manager.take(EndpointEnded)[0].code == "IDENTITY_REMAPPED"


@pytest.mark.parametrize("code", ["MAPPER_UNAVAILABLE", "START_REQUEST_STALE", "START_REQUEST_REFUSED"])
def test_what_says_nothing_of_the_person_ends_nothing(alice: LocalAccount, code: str) -> None:
    with monitor(300) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        answer(manager, mapper, NoLongerMapped, uep_id, code, "", "directory away", "c-2")
        until("logged", lambda: "a mapping cannot be checked now" in run.log_text())
        until("running", lambda: state(run) == "running")


def test_a_recheck_of_what_does_not_run_starts_and_ends_nothing(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        answer(manager, mapper, StillMapped, new_uep_id(), alice.name, "c-2")
        answer(manager, mapper, NoLongerMapped, new_uep_id(), "IDENTITY_NOT_MAPPED", "", "", "c-2")
        assert run.status()["user_endpoints"] == []
        assert not mapper.is_gone()


@pytest.mark.parametrize(
    "message",
    [StillMapped(77, new_uep_id(), "x", "c"), NoLongerMapped(1, new_uep_id(), "NO_SUCH_CODE", "", "", "c")],
)
def test_an_answer_to_nothing_and_an_unknown_code_are_the_mappers_end(message: StillMapped | NoLongerMapped) -> None:
    with monitor(300) as (_, _manager, mapper):
        mapper.send(message)
        until("killed", mapper.is_gone)


def test_accounts_are_watched_without_manager_and_mapper(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        first = until("ready", lambda: state(run) == "running" and checked_at(run))
        assert first
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        assert manager.take(EndpointRevoked)[0].code == "ACCOUNT_REFUSED"
        assert manager.take(EndpointEnded)[0].uep_id == uep_id
        assert "expired" in next(one for one in run.audit_records() if one["event"] == "revoke")["detail"]


def test_an_account_that_was_made_anew_with_another_uid_is_another_account(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        os.kill(run.pid, signal.SIGSTOP)  # else a checker may look while there is no account
        subprocess.run(["userdel", "--force", alice.name], check=True, capture_output=True)
        subprocess.run(["useradd", "--uid", str(alice.uid + 5000), alice.name], check=True, capture_output=True)
        os.kill(run.pid, signal.SIGCONT)
        assert manager.take(EndpointRevoked)[0].code == "ACCOUNT_REFUSED"
        assert "has uid" in next(one for one in run.audit_records() if one["event"] == "revoke")["detail"]


def test_an_adopted_user_endpoint_is_watched_too(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        run.stop(signal.SIGKILL)
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        run.start()
        manager, mapper = run.ready()
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "ACCOUNT_REFUSED")
        assert "does not admit you" in ended.public


def test_a_single_user_endpoint_is_checked_by_its_owner(alice: LocalAccount) -> None:
    with monitor(0.3, owner=alice) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        first = until("ready", lambda: state(run) == "running" and checked_at(run))
        manager.wait_at_most(1)
        with pytest.raises(BlockingIOError):
            manager.take(EndpointRevoked)
        manager.wait_at_most(15)
        answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        until("checked again", lambda: checked_at(run) > first + 0.5)
        assert "cannot be checked" not in run.log_text()


def test_off_is_off(alice: LocalAccount) -> None:
    with monitor(0, policy=Policy()) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        manager.wait_at_most(1)
        with pytest.raises(BlockingIOError):
            manager.take(EndpointRevoked)
        until("running", lambda: state(run) == "running")


@pytest.mark.parametrize("link", ["up", "down", ""])
def test_a_manager_that_never_asks_is_noticed_whatever_it_says_of_its_link(alice: LocalAccount, link: str) -> None:
    with monitor(0.3) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        if link:
            manager.send(LinkStatus(state=link, detail=""))
        until("warned", lambda: "identity mapping not re-verified" in run.log_text(), 60)
        record = until(
            "recorded", lambda: next((one for one in run.audit_records() if one["event"] == "overdue"), None)
        )
        assert (record["uep_id"], record["local_user"]) == (uep_id, alice.name)
        until("shown", lambda: run.status()["user_endpoints"][0].get("overdue"))
        assert state(run) == "running"
        until("cleared", lambda: cleared_by_an_answer(run, manager, mapper, uep_id, alice.name))


def cleared_by_an_answer(run: MonitorRun, manager: Puppet, mapper: Puppet, uep_id: str, user: str) -> bool:
    """Confirm the mapping, and tell whether the status file says so before the next warning is due.

    On a busy host that may come first: the caller then confirms it again.
    """
    warned = run.log_text().count("identity mapping not re-verified")
    answer(manager, mapper, StillMapped, uep_id, user, "c-2")
    while run.log_text().count("identity mapping not re-verified") == warned:
        if "overdue" not in run.status()["user_endpoints"][0]:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("code", ["MAPPER_UNAVAILABLE", "START_REQUEST_STALE"])
def test_answers_that_say_nothing_keep_nothing_young(alice: LocalAccount, code: str) -> None:
    with monitor(0.3, recheck_max_age_s=3.0) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        manager.wait_at_most(30)
        revoked = None
        while revoked is None:
            time.sleep(0.1)
            ask(manager, 900)
            request, descriptors = mapper.take(MapRequest)
            os.close(descriptors[0])
            mapper.send(NoLongerMapped(request.ref, uep_id, code, "", "away", "c-2"))
            while revoked is None:
                received = manager.channel.receive()
                assert received is not None
                revoked = received[0] if isinstance(received[0], EndpointRevoked) else None
                if isinstance(received[0], StartAnswered):
                    break
        assert (revoked.uep_id, revoked.code) == (uep_id, "MAPPING_UNCONFIRMED")
        record = next(one for one in run.audit_records() if one["event"] == "revoke")
        assert code in record["detail"]
        assert f"said={code}" in run.log_text()
        assert run.log_text().count("a mapping cannot be checked now") == 1


def test_asking_for_one_person_helps_no_other(alice: LocalAccount) -> None:
    with account() as bob, monitor(0.3, recheck_max_age_s=10.0) as (run, manager, mapper):
        kept, _ = start_as(manager, mapper, alice.name)
        other, _ = start_as(manager, mapper, bob.name, ref=2)
        while not [one for one in run.audit_records() if one["event"] == "end"]:
            answer(manager, mapper, StillMapped, kept, alice.name, "c-2")
            time.sleep(0.1)
        ended = [one for one in run.audit_records() if one["event"] == "end"]
        assert [(one["uep_id"], one["code"]) for one in ended] == [(other, "MAPPING_UNCONFIRMED")]
        until("shown", lambda: [one["uep_id"] for one in run.status()["user_endpoints"]] == [kept], 60)
        assert state(run) == "running"


def test_without_a_manager_too_an_age_is_too_great(alice: LocalAccount) -> None:
    with monitor(0.3, recheck_max_age_s=2.0) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        os.kill(manager.pid, signal.SIGSTOP)
        ended = until("ended", lambda: [one for one in run.audit_records() if one["event"] == "end"], 60)
        assert (ended[0]["uep_id"], ended[0]["code"]) == (uep_id, "MAPPING_UNCONFIRMED")
        record = next(one for one in run.audit_records() if one["event"] == "revoke")
        assert "recheck_max_age_s is 2" in record["detail"]


def test_no_greatest_age_is_none(alice: LocalAccount) -> None:
    with monitor(0.2, recheck_max_age_s=0.0) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        until("warned twice", lambda: run.log_text().count("identity mapping not re-verified") == 2, 60)
        assert state(run) == "running"


def mapped_at(run: MonitorRun) -> float:
    """Return when the mapping of the only user endpoint was confirmed; 0 if the monitor doesn't serve yet."""
    found = run.listed() if run.status() else []
    return found[0].mapping_checked_ms / 1000 if found else 0.0


def test_a_new_monitor_knows_how_old_a_mapping_is(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        first = until("shown", lambda: mapped_at(run))
        time.sleep(1.5)
        run.stop(signal.SIGKILL)
        (run.run / "status.json").unlink()
        run.start()
        assert abs(until("shown", lambda: mapped_at(run)) - first) < 0.7
        manager, mapper = run.ready()
        answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        second = until("shown", lambda: (at := mapped_at(run)) > first + 1 and at)
        run.stop(signal.SIGKILL)
        (run.run / "status.json").unlink()
        run.start()
        assert abs(until("shown", lambda: mapped_at(run)) - second) < 0.7


def test_a_new_monitor_has_people_asked_about_before_it_ends_anything(alice: LocalAccount) -> None:
    with monitor(3.0, recheck_max_age_s=1.0) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        run.stop(signal.SIGKILL)
        time.sleep(1.5)
        run.start()
        manager, mapper = run.ready()
        answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        assert not [one for one in run.audit_records() if one["event"] == "revoke"]
        manager.wait_at_most(60)
        assert manager.take(EndpointRevoked)[0].code == "MAPPING_UNCONFIRMED"


def test_a_new_manager_is_told_to_have_everything_rechecked(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        manager.kill()
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        again.take(RecheckNow)


# --- PAM ------------------------------------------------------------------------------------------------


@pytest.fixture
def pam_service(tmp_path: Path) -> Iterator[Path]:
    """A PAM service with a test module in its account stage: the module returns the number in a file."""
    source, library, code = tmp_path / "pam.c", tmp_path / "pam_meptest.so", tmp_path / "code"
    source.write_text(
        "#include <stdio.h>\n"
        "int pam_sm_acct_mgmt(void *h, int flags, int n, const char **words) {\n"
        '    int code = 3; FILE *file = fopen(words[0], "r");\n'
        '    if (file) { if (fscanf(file, "%d", &code) != 1) code = 3; fclose(file); }\n'
        "    return code;\n}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, capture_output=True)
    code.write_text("0")
    service = Path("/etc/pam.d", unique_name())
    service.write_text(
        f"account required {library} {code}\nauth required pam_permit.so\nsession required pam_permit.so\n"
    )
    try:
        yield service
    finally:
        service.unlink()


def warned_of(run: MonitorRun, code: int) -> bool:
    """Whether the log says that PAM answered `code`."""
    lines = [line for line in run.log_text().splitlines() if "an account cannot be checked now" in line]
    return any(f"PAM code {code})" in line for line in lines)


def test_pam_is_asked_of_what_runs_where_that_is_wanted(alice: LocalAccount, pam_service: Path, tmp_path: Path) -> None:
    pam = Pam(enable=True, service_name=pam_service.name, recheck=True)
    with monitor(0.3, pam=pam) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        for code in (7, 12, 9, 4):  # pam_nologin, a password to be changed, a service that is away, an error
            (tmp_path / "code").write_text(str(code))
            until("warned", functools.partial(warned_of, run, code), 60)
        until("shown", lambda: run.status()["user_endpoints"][0].get("account_overdue"), 60)
        assert state(run) == "running"
        (tmp_path / "code").write_text("0")
        until("shown", lambda: "account_overdue" not in run.status()["user_endpoints"][0], 60)
        (tmp_path / "code").write_text("6")
        assert manager.take(EndpointRevoked)[0].code == "ACCOUNT_REFUSED"
        assert "pam_acct_mgmt" in next(one for one in run.audit_records() if one["event"] == "revoke")["detail"]


def test_pam_is_not_asked_of_what_runs_otherwise(alice: LocalAccount, pam_service: Path, tmp_path: Path) -> None:
    with monitor(0.3, pam=Pam(enable=True, service_name=pam_service.name)) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        (tmp_path / "code").write_text("6")
        first = until("checked", lambda: run.listed()[0].account_checked_ms)
        until("again", lambda: run.listed()[0].account_checked_ms > first)
        assert state(run) == "running"


# --- NSS ------------------------------------------------------------------------------------------------

_MODULE = """
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <shadow.h>
enum nss_status _nss_%(name)s_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
    *e = ENOENT;
    return %(status)s;
}
enum nss_status _nss_%(name)s_getspnam_r(const char *name, struct spwd *p, char *b, size_t n, int *e) {
    *e = ENOENT;
    return %(status)s;
}
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A directory with NSS modules that say not found, and that they are unavailable."""
    for name, status in (("meptestno", "NSS_STATUS_NOTFOUND"), ("meptestaway", "NSS_STATUS_UNAVAIL")):
        source = tmp_path / f"{name}.c"
        source.write_text(_MODULE % {"name": name, "status": status})
        library = tmp_path / f"libnss_{name}.so.2"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, capture_output=True)
    return tmp_path


def test_a_service_that_is_away_is_told_from_one_that_does_not_know(modules: Path) -> None:
    code = (
        "from mep.root.account import nss\n"
        "print(nss.silent('passwd', 'ghost', ['meptestno', 'meptestaway', 'meptestnotinstalled', 'systemd']))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(modules)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['meptestaway']"


def test_the_services_of_a_database(tmp_path: Path) -> None:
    file = tmp_path / "nsswitch.conf"
    file.write_text("# passwd: nis\npasswd:   files [NOTFOUND=continue] sss systemd # ldap\ngroup: compat\n")
    assert nss.services("passwd", str(file)) == ["sss", "systemd"]
    assert nss.services("group", str(file)) == []
    assert nss.services("hosts", str(file)) == []
    assert nss.services("passwd", str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ([], ""),
        ([["usermod", "--password", "*"]], ""),
        ([["usermod", "--password", "!!"]], ""),
        ([["usermod", "--password", "$6$salt$hash"]], ""),
        ([["usermod", "--password", "$6$salt$hash"], ["usermod", "--lock"]], "locked"),
        ([["usermod", "--password", "*"], ["passwd", "--lock"]], "locked"),
        ([["usermod", "--password", "*"], ["usermod", "--lock"]], "locked"),
        ([["usermod", "--password", "$6$salt$hash"], ["passwd", "--lock"]], "locked"),
        ([["usermod", "--password", "$6$salt$hash"], ["usermod", "--lock"], ["usermod", "--unlock"]], ""),
        # Neither leaves a trace where there was no password: an account from useradd looks the same.
        ([["usermod", "--password", "!"], ["usermod", "--lock"]], ""),
        ([["usermod", "--password", "!"], ["passwd", "--lock"]], ""),
        ([["usermod", "--password", "!"], ["usermod", "--lock", "--expiredate", "1"]], "expired (1970-01-02)"),
        ([["chage", "--expiredate", "0"]], "expired"),
        ([["chage", "--expiredate", "2020-01-01"]], "expired (2020-01-01)"),
        ([["chage", "--expiredate", "-1"]], ""),
        # A password that is due for a change, or must be changed at the next login, closes nothing.
        ([["chage", "--maxdays", "90", "--lastday", "2020-01-01"]], ""),
        ([["chage", "--maxdays", "90", "--inactive", "30", "--lastday", "0"]], ""),
        ([["chage", "--maxdays", "90", "--inactive", "30", "--lastday", "2020-01-01"]], "inactive"),
        ([["chage", "--maxdays", "0", "--inactive", "0", "--lastday", "2020-01-01"]], "not changed by 2020-01-01"),
        ([["chage", "--maxdays", "90", "--inactive", "99999", "--lastday", "2020-01-01"]], ""),
        ([["chage", "--maxdays", "-1", "--inactive", "0", "--lastday", "2020-01-01"]], ""),
        ([["usermod", "--expiredate", "1"]], "expired"),
        ([["usermod", "--expiredate", "2999-01-01"]], ""),
        ([["usermod", "--expiredate", "1"], ["usermod", "--expiredate", ""]], ""),
    ],
)
def test_what_shadow_says(alice: LocalAccount, commands: list[list[str]], reason: str) -> None:
    for command in commands:
        subprocess.run([*command, alice.name], check=True, capture_output=True)
    found = shadow.closed(alice.name)
    assert reason in found and bool(reason) == bool(found)


def test_an_account_without_shadow_entry_is_open() -> None:
    assert shadow.closed("no-such-account-here") == ""


def test_the_day_that_closes_an_account_is_pam_unixs() -> None:
    assert shadow.objection(shadow.Shadow("x", expire=100), 99) == ""
    assert "expired" in shadow.objection(shadow.Shadow("x", expire=100), 100)
    entry = shadow.Shadow("x", changed=100, most=10, inactive=5)
    assert shadow.objection(entry, 114) == ""
    assert "inactive" in shadow.objection(entry, 115)
    assert "day 99999999999999" in shadow.objection(shadow.Shadow("x", expire=99999999999999), 99999999999999)


def elsewhere(tmp_path: Path, mounts: dict[Path, str], code: str) -> str:
    """Run Python code where these files lie over those of the host; return its output."""
    binds = "".join(f"mount --bind '{ours}' {theirs} && " for ours, theirs in mounts.items())
    command = ["unshare", "--mount", "sh", "-c", f'{binds} exec "$0" -c "$1"', sys.executable, code]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


_CHECK = (
    "from mep.boundary.resolved_config import Policy\n"
    "from mep.root.account.lookup import AccountRules\n"
    "from mep.root.account.account_check import Subject, check\n"
    "print(check(Subject({name!r}, {uid}, 'files'), AccountRules(Policy(), (), (), None)))"
)


@pytest.mark.parametrize(
    ("shadow_line", "said"), [("files meptestno", "StillAdmitted()"), ("files meptestaway", "NotChecked")]
)
def test_a_shadow_service_that_is_away_says_nothing(
    alice: LocalAccount, modules: Path, shadow_line: str, said: str
) -> None:
    entry = Path("/etc/shadow").read_text().splitlines()
    (modules / "shadow").write_text("\n".join(line for line in entry if not line.startswith(alice.name + ":")) + "\n")
    (modules / "nsswitch.conf").write_text(f"passwd: files\ngroup: files\nshadow: {shadow_line}\n")
    mounts = {modules / "shadow": "/etc/shadow", modules / "nsswitch.conf": "/etc/nsswitch.conf"}
    assert said in elsewhere(modules, mounts, _CHECK.format(name=alice.name, uid=alice.uid))


def test_shadow_entries_that_cannot_be_read_are_not_open_accounts(alice: LocalAccount, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=BEING_WRITTEN)
    code = _CHECK.format(name=alice.name, uid=alice.uid)
    (etc / "shadow").unlink()
    assert elsewhere(tmp_path, {etc: "/etc"}, code) == "StillAdmitted()"
    (etc / "shadow").mkdir()
    said = elsewhere(tmp_path, {etc: "/etc"}, code)
    assert said.startswith("NotChecked")
    assert "Is a directory" in said


def test_a_start_whose_shadow_entry_cannot_be_read_is_refused(alice: LocalAccount, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=BEING_WRITTEN)
    (etc / "shadow").unlink()
    (etc / "shadow").mkdir()
    run = MonitorRun()
    run.before = ["unshare", "--mount", "sh", "-c", f"mount --bind '{etc}' /etc && exec \"$@\"", "sh"]
    with run:
        manager, mapper = run.ready()
        _, told = start_as(manager, mapper, alice.name)
        assert (told.outcome, told.code) == ("unavailable", "MAPPER_UNAVAILABLE")
        assert "shadow" in next(one for one in run.audit_records() if one["event"] == "start")["detail"]
