"""Resolves a local user name through NSS, so that accounts of SSSD and LDAP count like those of /etc/passwd.

Used by `mep map`. (When a user endpoint starts, the keeper does its own look-up and is the one that decides.) NSS may
block on a network: callers that must not wait do not call this.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from identity import usernames
from identity.errors import AccountMissing


@dataclass(frozen=True, slots=True)
class Account:
    """A local account with all its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[tuple[int, str], ...]
    """Group ids with their names (the number itself where a group has no name), primary group first."""
    home: str
    shell: str


def resolve(name: str) -> Account:
    """Return the account `name`. Raises NameRefused, AccountMissing.

    A directory that ignores case may answer with another spelling, and the account then has that one.
    """
    usernames.check(name)
    try:
        record = pwd.getpwnam(name)
    except KeyError:
        raise AccountMissing(f"this host has no account {name!r}") from None
    others = sorted(set(os.getgrouplist(record.pw_name, record.pw_gid)) - {record.pw_gid})
    gids = [record.pw_gid, *others]
    groups = tuple((gid, _group_name(gid)) for gid in gids)
    return Account(record.pw_name, record.pw_uid, record.pw_gid, groups, record.pw_dir, record.pw_shell)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
