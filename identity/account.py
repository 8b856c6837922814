"""Resolves a local user name through NSS, so that accounts of SSSD and LDAP count like those of /etc/passwd.

Used by `mep map`. (When a user endpoint starts, the keeper does its own look-up and is the one that decides.) NSS may
block on a network: callers that must not wait do not call this.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from identity import usernames
from identity.errors import AccountMissing
from mep.boundary import nss_database


@dataclass(frozen=True, slots=True)
class LocalAccount:
    """A local account with all its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[tuple[int, str], ...]
    """Group ids with their names (the number itself where a group has no name), primary group first."""
    home: str
    shell: str


def resolve(name: str) -> LocalAccount:
    """Return the account `name`. Raises NameRefused, AccountMissing.

    A directory that ignores case may answer with another spelling, and the account then has that one.
    """
    usernames.check(name)
    try:
        record = nss_database.passwd_by_name(name)
    except OSError as error:
        raise AccountMissing(error.strerror) from None
    if record is None:
        raise AccountMissing(f"this host has no account {name!r}")
    others = sorted(set(os.getgrouplist(record.name, record.gid)) - {record.gid})
    groups = tuple((gid, _group_name(gid)) for gid in [record.gid, *others])
    return LocalAccount(record.name, record.uid, record.gid, groups, record.home, record.shell)


def _group_name(gid: int) -> str:
    try:
        entry = nss_database.group_by_gid(gid)
    except OSError:
        entry = None
    return str(gid) if entry is None else entry.name
