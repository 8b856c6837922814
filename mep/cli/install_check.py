"""Checks a start's requirements besides the endpoint's files: the installation, and account and group names.

Other accounts must be able to execute the installation. This is checked before an endpoint starts, as root. A virtual
environment or an interpreter inside a private home directory works for root alone; people would only see that their
process could not be started.
"""

from __future__ import annotations

import stat
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mep.boundary.nss_database import group_by_name, number_of, passwd_by_name
from mep.cli.exit_codes import CliFailed
from mep.config.options import EndpointOptions
from mep.config.resolver import user_endpoint_main


def _links(path: Path) -> list[Path]:
    """Return `path` and every path that its symbolic links lead through."""
    found = [path]
    while found[-1].is_symlink() and len(found) < 40:
        found.append(found[-1].parent / found[-1].readlink())
    return found


def first_closed(path: Path) -> Path | None:
    """Return `path` or the first directory above it that other accounts can't use; None if they can use all."""
    for step in [*_links(path), path.resolve()]:
        for one in [*reversed(step.parents), step]:
            mode = one.stat().st_mode
            wanted = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
            if not mode & wanted:
                return one
    return None


def check_installation() -> None:
    """Raise CliFailed naming the first file or directory of the installation that other accounts can't use."""
    needed = [Path(sys.executable), Path(sysconfig.get_path("stdlib")) / "os.py", Path(sysconfig.get_path("purelib"))]
    needed += [Path(user_endpoint_main()).parent, Path(__file__)]
    for path in needed:
        closed = first_closed(path)
        if closed is not None:
            raise CliFailed(
                f"{closed} cannot be used by other accounts, and user endpoints run {path} as theirs. "
                f"Either run: chmod o+rX {closed}, or install into /opt/mep with a Python that every account can "
                "execute (the system's /usr/bin/python3)."
            )


def unknown_names(options: EndpointOptions) -> list[str]:
    """Return a warning for each account and group of the configuration that this host doesn't know.

    It is no error, because the directory that knows it may be down. But a misspelt denied group denies no account.
    """
    policy = options.policy
    return [
        *_unknown("policy.denied_users", policy.denied_users, "account", passwd_by_name),
        *_unknown("policy.denied_groups", policy.denied_groups, "group", group_by_name),
        *_unknown("policy.allowed_groups", policy.allowed_groups, "group", group_by_name),
        *_unknown("policy.allowed_privileged_groups", policy.allowed_privileged_groups, "group", group_by_name),
        *_unknown("limits.by_group", options.limits.by_group, "group", group_by_name),
    ]


def _unknown(key: str, names: Iterable[str], kind: str, look_up: Callable[[str], Any]) -> list[str]:
    warnings = []
    for name in names:
        try:
            known = number_of(name) is not None or look_up(name) is not None
        except OSError as error:
            warnings.append(f"{key}: {error.strerror}")
            continue
        if not known:
            warnings.append(f"{key}: this host knows no {kind} {name!r}, so it applies to nobody")
    return warnings
