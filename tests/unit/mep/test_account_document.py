"""`mapped_identity.local`: all that NSS says of the account, as `mep check` supposes it."""

from __future__ import annotations

import grp
import json
import os
import pwd

from mep.boundary.memfd import read_sealed
from mep.root.account.lookup import lookup
from mep.root.keeper.account_document import MAX_NAMED, account_memfd, local_identity
from mep.root.kernel.spawn import SpawnAccount
from user_endpoint.template_check import _IDENTITY


def test_an_account_of_this_host() -> None:
    entry = pwd.getpwnam("daemon")
    found = local_identity(lookup("daemon"))
    assert found == {
        "uname": "daemon", "uid": entry.pw_uid, "gid": entry.pw_gid, "groups": [entry.pw_gid],
        "group_names": [grp.getgrgid(entry.pw_gid).gr_name], "gecos": entry.pw_gecos, "dir": entry.pw_dir,
        "shell": entry.pw_shell,
    }  # fmt: skip


def test_the_check_supposes_the_same_keys_and_types() -> None:
    found, supposed = local_identity(lookup("daemon")), _IDENTITY["local"]
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in supposed.items()}


def test_the_primary_group_comes_first_and_groups_without_a_name_keep_their_number() -> None:
    names = local_identity(SpawnAccount("x", 4711, 60000, (7, 60000, 5), "/", "/bin/sh"))
    assert names["groups"] == [60000, 5, 7]
    assert names["group_names"] == ["60000", grp.getgrgid(5).gr_name, grp.getgrgid(7).gr_name]
    many = local_identity(SpawnAccount("x", 4711, 1, tuple(range(70000, 70000 + MAX_NAMED)), "/", "/bin/sh"))
    assert len(many["group_names"]) == len(many["groups"]) == MAX_NAMED + 1  # type: ignore[arg-type]


def test_the_document_is_sealed_and_is_text_whatever_the_account_holds() -> None:
    descriptor = account_memfd(SpawnAccount("x", 4711, 1, (), "/h\udcff", "/bin/sh", "G\u00fcnther\udc80, \x1b"))
    try:
        found = json.loads(read_sealed(descriptor, 10_000))
    finally:
        os.close(descriptor)
    assert (found["dir"], found["gecos"]) == ("/h\ufffd", "G\u00fcnther\ufffd, \x1b")
