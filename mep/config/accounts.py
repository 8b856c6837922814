"""The system accounts that an endpoint's processes run as."""

from __future__ import annotations

import pwd

from mep.errors import ConfigRefused


def system_account(name: str) -> pwd.struct_passwd:
    """Return the system account `name`. Raises ConfigRefused, saying how to make it."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        command = f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigRefused("system accounts", name, f"does not exist; run: {command}") from None
