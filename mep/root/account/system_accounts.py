"""The endpoint's own system accounts, read from /etc/passwd: the monitor never calls NSS, which may block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from mep.boundary.errors import ConfigRefused
from mep.root.kernel.spawn import SpawnAccount

ACCOUNTS_FILE = "/etc/passwd"


def system_account(name: str) -> SpawnAccount:
    """Return the account `name`, without supplementary groups. Raises ConfigRefused if it is unusable."""
    with open(ACCOUNTS_FILE, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(":")
            if fields[0] == name and len(fields) == 7:
                return _checked(SpawnAccount(name, int(fields[2]), int(fields[3]), (), fields[5], fields[6]))
    raise ConfigRefused(ACCOUNTS_FILE, name, "there is no such account: `make install` or the package creates it")


def uids_of(names: Sequence[str]) -> tuple[int, ...]:
    """Return the uids of those of `names` that exist on this host."""
    found = []
    for name in names:
        with contextlib.suppress(ConfigRefused):
            found.append(system_account(name).uid)
    return tuple(found)


def gids_of(names: Sequence[str]) -> dict[str, int]:
    """Return the primary groups of those of `names` that exist on this host, by name."""
    found = {}
    for name in names:
        with contextlib.suppress(ConfigRefused):
            found[name] = system_account(name).gid
    return found


def _checked(account: SpawnAccount) -> SpawnAccount:
    if account.uid == 0 or account.gid == 0:
        raise ConfigRefused(ACCOUNTS_FILE, account.name, "is root: the endpoint's own processes must not be")
    return account


def invoking_account(name: str) -> SpawnAccount:
    """Return the account that this process runs as (single-user mode)."""
    home = os.environ.get("HOME", "/")
    return SpawnAccount(name, os.getuid(), os.getgid(), tuple(os.getgroups()), home, "/bin/sh")
