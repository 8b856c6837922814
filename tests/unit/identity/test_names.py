"""Valid names of local users."""

from __future__ import annotations

import os
import pwd

import pytest

from identity import account, usernames
from identity.errors import AccountMissing, NameRefused


@pytest.mark.parametrize("name", ["a", "alice", "Alice.Smith", "a-b", "_x", "x_1", "9lives", "a" * 32, ".x"])
def test_usable_names(name: str) -> None:
    assert usernames.check(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "--help", "a b", " a", "a ", "a\n", "\na", "a\0", "a/b", "/", "../a", ".", "..", "a:b", "a@b", "a$",
     "a" * 33, "0", "1000", "é", "\u0430lice", "a\u202e", "\ud800", "a;b", "a'b", "$(x)"],
)  # fmt: skip
def test_unusable_names(name: str) -> None:
    with pytest.raises(NameRefused):
        usernames.check(name)


def test_an_account_is_found_with_its_groups() -> None:
    me = pwd.getpwuid(os.getuid())
    found = account.resolve(me.pw_name)
    assert (found.name, found.uid, found.gid, found.home) == (me.pw_name, me.pw_uid, me.pw_gid, me.pw_dir)
    assert found.groups[0][0] == me.pw_gid
    assert {gid for gid, _ in found.groups} == set(os.getgrouplist(me.pw_name, me.pw_gid)) | {me.pw_gid}


def test_no_such_account() -> None:
    with pytest.raises(AccountMissing):
        account.resolve("meptest-nobody-has-this")
    with pytest.raises(NameRefused):
        account.resolve("a/b")
