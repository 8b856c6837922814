"""The names of the account's groups, which a template sees in `mapped_identity.local`.

The keeper's sealed document has the numbers, from root's own look-up. The names are NSS's answer to this process,
which runs as the person. Called by render_process.py and render_command.py, in children that have a deadline: each
name may ask a directory.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Mapping
from typing import Any

MAX_NAMED = 512
"""So many groups are looked up by name. Further ones get their number for a name."""
_MAX_NAME = 4096


def with_group_names(local: Mapping[str, Any]) -> dict[str, Any]:
    """Return `local` with `group_names` after `groups`, in the same order; unchanged without groups.

    A keeper of an older version gives the names itself.
    """
    found = dict[str, Any]()
    for key, value in local.items():
        found[key] = value
        if key == "groups" and "group_names" not in local:
            found["group_names"] = [*map(_name_of, value[:MAX_NAMED]), *map(str, value[MAX_NAMED:])]
    return found


def _name_of(gid: int) -> str:
    """Return the name of the group, without bytes that are no UTF-8; its number if there is none, or none is told."""
    try:
        name = grp.getgrgid(gid).gr_name
    except (KeyError, OSError, OverflowError):
        return str(gid)
    return os.fsencode(name).decode("utf-8", "replace")[:_MAX_NAME]
