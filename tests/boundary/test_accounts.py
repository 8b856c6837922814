"""The site's policy on accounts that no host should have, and on those that every host has."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd

import pytest

from mep.boundary.errors import Refusal, StartStage
from mep.boundary.resolved_config import Policy
from mep.root.account.lookup import AccountRules, StartRefused, check_policy, lookup
from mep.root.kernel.spawn import SpawnAccount

OPEN = Policy(min_uid=0, max_uid=2**32)
ALICE = SpawnAccount("alice", 2000, 2000, (2000,), "/home/alice", "/bin/bash")


def objection(account: SpawnAccount, policy: Policy = OPEN, only_uid: int | None = None) -> str:
    rules = AccountRules(policy, ("mep", "mep-idmap"), (999,), only_uid)
    try:
        check_policy(account, rules)
    except StartRefused as refusal:
        assert (refusal.stage, refusal.code) == (StartStage.POLICY, Refusal.ACCOUNT_REFUSED)
        assert account.name not in refusal.public
        return refusal.detail
    return ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": 0}, "root is never used"),
        ({"gid": 0}, "root is never used"),
        ({"name": "root"}, "root is never used"),
        ({"uid": 2**32 - 1}, "no change"),
        ({"gid": 2**32 - 1}, "no change"),
        ({"uid": 65534}, "not a real account's"),
        ({"name": "nobody"}, "not a real account's"),
        ({"name": "mep"}, "own accounts"),
        ({"uid": 999}, "own accounts"),
        ({"groups": (2000, 0)}, "group 0, which is privileged"),
        ({"groups": (2000, grp.getgrnam("disk").gr_gid)}, "group disk, which is privileged"),
        ({"groups": (2000, grp.getgrnam("mep").gr_gid)}, "the group of mep"),
        ({"gid": grp.getgrnam("shadow").gr_gid}, "group shadow, which is privileged"),
        ({"uid": 61184}, "for accounts of endpoints"),
        ({"uid": 65519}, "for accounts of endpoints"),
        ({"uid": 61183}, ""),
        ({"uid": 65520}, ""),
        ({}, ""),
    ],
)
def test_whatever_the_policy_says(change: dict[str, object], reason: str) -> None:
    found = objection(dataclasses.replace(ALICE, **change))
    assert reason in found and bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("policy", "group", "reason"),
    [
        (Policy(allowed_privileged_groups=["root"]), "root", ""),
        (Policy(allowed_privileged_groups=["disk"]), "disk", ""),
        (Policy(allowed_privileged_groups=["disk", "no-such-group-here"]), "root", "group 0, which is privileged"),
        (Policy(privileged_groups=["daemon"]), "daemon", "group daemon, which is privileged"),
        (Policy(privileged_groups=[]), "disk", ""),
        (Policy(privileged_groups=[]), "root", "group 0, which is privileged"),
        (Policy(privileged_groups=["daemon"], allowed_privileged_groups=["daemon"]), "daemon", ""),
    ],
)
def test_privileged_groups_are_refused_unless_named(policy: Policy, group: str, reason: str) -> None:
    found = objection(dataclasses.replace(ALICE, groups=(2000, grp.getgrnam(group).gr_gid)), policy)
    assert reason in found and bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(), ""),
        (Policy(min_uid=2001), "allowed are 2001"),
        (Policy(max_uid=1999), "to 1999"),
        (Policy(min_uid=2000, max_uid=2000), ""),
        (Policy(denied_users=["alice"]), "denied_users"),
        (Policy(denied_users=["alic", "alice2"]), ""),
        (Policy(denied_users=["2000"]), "alice is in denied_users, as 2000"),
        (Policy(denied_users=["02000"]), "alice is in denied_users"),
        (Policy(denied_users=["20000", "200", "4294969296"]), ""),
        (Policy(denied_groups=["2000"]), "the denied group 2000"),
        (Policy(denied_groups=["20000", "4294969296"]), ""),
        (Policy(allowed_groups=["2000"]), ""),
        (Policy(allowed_groups=["2001"]), "none of allowed_groups"),
        (Policy(privileged_groups=["2000"]), "in group 2000, which is privileged"),
        (Policy(privileged_groups=["2000"], allowed_privileged_groups=["2000"]), ""),
        (Policy(allowed_groups=["no-such-group-here"]), "none of allowed_groups"),
        (Policy(denied_groups=["no-such-group-here"]), ""),
        (Policy(require_valid_shell=True), ""),
    ],
)
def test_what_the_policy_says(policy: Policy, reason: str) -> None:
    found = objection(ALICE, policy)
    assert reason in found and bool(reason) == bool(found)


def test_shells_that_are_none() -> None:
    for shell in ("/usr/sbin/nologin", "/bin/false", "/opt/odd", ""):
        assert "shell" in objection(dataclasses.replace(ALICE, shell=shell), Policy(require_valid_shell=True))


@pytest.mark.parametrize(("only_uid", "refused"), [(2000, False), (2001, True), (0, True)])
def test_single_user_mode_knows_its_owner_only(only_uid: int, refused: bool) -> None:
    assert bool(objection(ALICE, only_uid=only_uid)) is refused


def test_root_is_no_owner() -> None:
    assert objection(dataclasses.replace(ALICE, uid=0), only_uid=0)


def test_lookup_takes_the_groups_from_nss() -> None:
    me = pwd.getpwuid(os.getuid())
    account = lookup(me.pw_name)
    assert (account.uid, account.gid, account.home) == (me.pw_uid, me.pw_gid, me.pw_dir)
    assert set(account.groups) == set(os.getgrouplist(me.pw_name, me.pw_gid))


def test_account_that_is_missing() -> None:
    with pytest.raises(StartRefused) as caught:
        lookup("meptest-is-not-there")
    assert caught.value.stage is StartStage.LOOKUP_USER
    assert "meptest" not in caught.value.public
