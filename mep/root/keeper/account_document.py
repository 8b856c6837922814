"""The account of a user endpoint as its template sees it (`mapped_identity.local`), in a sealed memfd.

The keeper writes it from its own NSS answer, because mapper and relay know the account's name alone. It is passed by
descriptor, as start request and bundle are. Nothing in it is secret from the account. Called by keeper.py.
"""

from __future__ import annotations

import json
import os

from mep.boundary import nss_database
from mep.boundary.memfd import sealed_memfd
from mep.root.kernel.spawn import SpawnAccount

MAX_NAMED = 512
"""Groups whose names are looked up. Further ones get their number for a name: each name may ask a directory."""
_MAX_TEXT = 4096


def account_memfd(account: SpawnAccount) -> int:
    """Return a sealed memfd with the document of `account`. Raises OSError."""
    return sealed_memfd("mep-account", json.dumps(local_identity(account)).encode())


def local_identity(account: SpawnAccount) -> dict[str, object]:
    """Return `mapped_identity.local`. `groups` and `group_names` begin with the primary group."""
    gids = list(dict.fromkeys((account.gid, *sorted(account.groups))))
    return {
        "uname": _text(account.name),
        "uid": account.uid,
        "gid": account.gid,
        "groups": gids,
        "group_names": [*map(_group_name, gids[:MAX_NAMED]), *map(str, gids[MAX_NAMED:])],
        "gecos": _text(account.gecos),
        "dir": _text(account.home),
        "shell": _text(account.shell),
    }


def _group_name(gid: int) -> str:
    try:
        entry = nss_database.group_by_gid(gid)
    except OSError:
        entry = None
    return str(gid) if entry is None else _text(entry.name)


def _text(value: str) -> str:
    """Return `value` without bytes that are no UTF-8, and clipped."""
    return os.fsencode(value).decode("utf-8", "replace")[:_MAX_TEXT]
