"""`mapped_identity.local`: the keeper's facts about the account, and the names of its groups from the renderer."""

from __future__ import annotations

import grp
import json
import pwd
from typing import Any

from mep.root.account.lookup import facts_of, lookup
from mep.root.kernel.spawn import SpawnAccount
from user_endpoint.group_names import MAX_NAMED, with_group_names
from user_endpoint.template_check import _IDENTITY


def local_identity(account: SpawnAccount) -> dict[str, Any]:
    """Return what a template sees of `account`."""
    return with_group_names(json.loads(json.dumps(facts_of(account))))


def test_an_account_of_this_host() -> None:
    entry = pwd.getpwnam("daemon")
    found = local_identity(lookup("daemon"))
    assert found == {
        "uname": "daemon", "uid": entry.pw_uid, "gid": entry.pw_gid, "groups": [entry.pw_gid],
        "group_names": [grp.getgrgid(entry.pw_gid).gr_name], "gecos": entry.pw_gecos, "dir": entry.pw_dir,
        "shell": entry.pw_shell,
    }  # fmt: skip


def test_the_check_supposes_the_same_keys_in_the_same_order_and_types() -> None:
    found, supposed = local_identity(lookup("daemon")), _IDENTITY["local"]
    assert [(key, type(value)) for key, value in found.items()] == [(k, type(v)) for k, v in supposed.items()]


def test_the_primary_group_comes_first_and_groups_without_a_name_keep_their_number() -> None:
    found = local_identity(SpawnAccount("x", 4711, 60000, (7, 60000, 5), "/", "/bin/sh"))
    assert found["groups"] == [60000, 5, 7]
    assert found["group_names"] == ["60000", grp.getgrgid(5).gr_name, grp.getgrgid(7).gr_name]
    many = local_identity(SpawnAccount("x", 4711, 1, tuple(range(70000, 70000 + MAX_NAMED)), "/", "/bin/sh"))
    assert len(many["group_names"]) == len(many["groups"]) == MAX_NAMED + 1


def test_groups_beyond_the_bound_are_not_looked_up() -> None:
    names = with_group_names({"groups": [*range(70000, 70000 + MAX_NAMED), 0]})["group_names"]
    assert names[-1] == "0" != grp.getgrgid(0).gr_name


def test_numbers_that_are_no_gid_are_their_own_names() -> None:
    assert with_group_names({"groups": [2**32, -7]})["group_names"] == [str(2**32), "-7"]


def test_names_of_an_older_keeper_stay() -> None:
    local = {"groups": [0], "group_names": ["wheel"]}
    assert with_group_names(local) == local
    assert with_group_names({"uname": "x"}) == {"uname": "x"}


def test_the_facts_are_text_whatever_the_account_holds() -> None:
    found = facts_of(SpawnAccount("x", 4711, 1, (), "/h\udcff", "/bin/sh", "G\u00fcnther\udc80, \x1b"))
    assert (found["dir"], found["gecos"]) == ("/h\ufffd", "G\u00fcnther\ufffd, \x1b")
