"""The monitor's part in re-checks, against a manager and a mapper that the test plays; and what NSS says, with a real
module of NSS."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
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
from mep.boundary.resolved import Caps, ManagerSection, Policy
from mep.monitor import nss
from tests.support.accounts import LocalAccount, account
from tests.support.monitor import MonitorRun, Puppet, ask, gone, new_uep_id, start_as, until

CAPS = Caps(start_timeout_s=20.0, stop_grace_s=1.0)


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
    """Return what the status file says of the only user endpoint."""
    found = run.status().get("user_endpoints", [])
    return str(found[0]["state"]) if found else ""


def test_somebody_who_still_maps_is_left_alone(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        before = until("ready", lambda: state(run) == "running" and run.status()["user_endpoints"][0]["checked_at"])
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
        assert revoked == EndpointRevoked(uep_id, code, "Not any more.", "c-2")
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
        first = until("ready", lambda: state(run) == "running" and run.status()["user_endpoints"][0]["checked_at"])
        assert first
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        assert manager.take(EndpointRevoked)[0].code == "ACCOUNT_REFUSED"
        assert manager.take(EndpointEnded)[0].uep_id == uep_id
        assert "expired" in next(one for one in run.audit_records() if one["event"] == "revoke")["detail"]


def test_an_account_that_was_made_anew_with_another_uid_is_another_account(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        subprocess.run(["userdel", "--force", alice.name], check=True, capture_output=True)
        subprocess.run(["useradd", "--uid", str(alice.uid + 5000), alice.name], check=True, capture_output=True)
        assert manager.take(EndpointRevoked)[0].code == "ACCOUNT_REFUSED"
        assert "has uid" in next(one for one in run.audit_records() if one["event"] == "revoke")["detail"]


def test_an_adopted_user_endpoint_is_watched_too(alice: LocalAccount) -> None:
    with monitor(0.5) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        run.stop(9)
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        run.start()
        manager, mapper = run.ready()
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (uep_id, "ACCOUNT_REFUSED")
        assert "not permitted" in ended.public


def test_a_single_user_endpoint_is_checked_by_its_owner(alice: LocalAccount) -> None:
    with monitor(0.3, owner=alice) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        first = until("ready", lambda: state(run) == "running" and run.status()["user_endpoints"][0]["checked_at"])
        manager.wait_at_most(1)
        with pytest.raises(BlockingIOError):
            manager.take(EndpointRevoked)
        manager.wait_at_most(15)
        answer(manager, mapper, StillMapped, uep_id, alice.name, "c-2")
        until("checked again", lambda: run.status()["user_endpoints"][0]["checked_at"] > first + 0.5)
        assert "cannot be checked" not in run.log_text()


def test_off_is_off(alice: LocalAccount) -> None:
    with monitor(0, policy=Policy()) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        subprocess.run(["usermod", "--expiredate", "1", alice.name], check=True, capture_output=True)
        manager.wait_at_most(1)
        with pytest.raises(BlockingIOError):
            manager.take(EndpointRevoked)
        until("running", lambda: state(run) == "running")


def test_a_manager_that_never_asks_is_noticed(alice: LocalAccount) -> None:
    with monitor(0.3) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        manager.send(LinkStatus(state="up", detail=""))
        until("warned", lambda: "nobody has said for long" in run.log_text())
        until("running", lambda: state(run) == "running")


def test_a_manager_without_a_link_is_not_blamed(alice: LocalAccount) -> None:
    with monitor(0.2) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        manager.send(LinkStatus(state="down", detail=""))
        manager.wait_at_most(2)
        with pytest.raises(BlockingIOError):
            manager.take(EndpointRevoked)
        assert "nobody has said for long" not in run.log_text()


def test_a_new_manager_is_told_to_have_everything_rechecked(alice: LocalAccount) -> None:
    with monitor(300) as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        manager.kill()
        again = run.puppet("manager")
        again.send(ManagerReady(version="again"))
        again.take(RecheckNow)


# --- NSS ------------------------------------------------------------------------------------------------

_MODULE = """
#include <errno.h>
#include <nss.h>
#include <pwd.h>
enum nss_status _nss_%(name)s_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
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
        "from mep.monitor import nss\n"
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
        ([["usermod", "--expiredate", "1"]], "expired"),
        ([["usermod", "--expiredate", "2999-01-01"]], ""),
        ([["usermod", "--expiredate", "1"], ["usermod", "--expiredate", ""]], ""),
    ],
)
def test_what_shadow_says(alice: LocalAccount, commands: list[list[str]], reason: str) -> None:
    for command in commands:
        subprocess.run([*command, alice.name], check=True, capture_output=True)
    found = nss.closed(alice.name)
    assert reason in found and bool(reason) == bool(found)


def test_an_account_without_shadow_entry_is_open() -> None:
    assert nss.closed("no-such-account-here") == ""
