"""The check of every local user name before anything uses it.

The rule is that of the portable user name of POSIX.1-2017, 3.437 (letters, digits, `.`, `_`, `-`, not starting
with `-`). Names that are unsafe in practice are refused too. `.` and `..` are directories; chown, systemd and others
read a name of digits alone as a uid. A trailing newline does not pass.
"""

from __future__ import annotations

import re

from identity.errors import NameRefused

MAX_NAME_CHARS = 32
"""As useradd(8) and utmp have it, and as the boundary's messages carry it."""
_PORTABLE = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")


def problem(name: str) -> str | None:
    """Return why `name` cannot be a local user's name, or None where it can."""
    if not name:
        return "the name is empty"
    if len(name) > MAX_NAME_CHARS:
        return f"the name has {len(name)} characters, more than {MAX_NAME_CHARS}"
    if _PORTABLE.fullmatch(name) is None:
        return f"{name!r} is not a portable POSIX user name (letters, digits, '.', '_', '-', no leading '-')"
    if name in {".", ".."}:
        return f"{name!r} is a directory, not a user"
    if name.isdigit():
        return f"{name!r} would be read as a uid"
    return None


def check(name: str) -> str:
    """Return `name`. Raises NameRefused where it cannot be a local user's name."""
    if (reason := problem(name)) is not None:
        raise NameRefused(reason)
    return name
