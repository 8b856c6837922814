"""Confinement of manager and mapper after they have imported and opened everything that they start with.

Landlock comes first, then seccomp, which forbids any change to it. Features that this host lacks are logged
once and left out. Limits, network namespace and control group are set by the monitor (mep/monitor/helper_limits.py).

Standard library only. Called by mep/manager/main.py and mep/mapper/main.py while they have one thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from mep.boundary import landlock, seccomp
from mep.boundary.log import Log

_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/etc", "/dev/null", "/dev/urandom",
    "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/nscd",
)  # fmt: skip
"""Libraries, and glibc's files for name look-ups. Directories, because /etc/resolv.conf may be replaced at runtime."""
_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Needs:
    """The access that a helper needs."""

    profile: str
    """The name of its list in syscalls.json."""
    readable: tuple[str, ...] = ()
    """Paths that it reads besides libraries and the files of name look-ups."""
    connect: tuple[int, ...] | None = ()
    """The TCP ports that it connects to; None for any."""
    programs: bool = False
    """Whether it runs the site's programs, which inherit the confinement."""


def confine(needs: Needs, log: Log) -> None:
    """Permanently give up all access but `needs`."""
    said = {}
    if not needs.programs:
        said["landlock"] = _restrict_files(needs)
    said["seccomp"] = _filter_calls(needs)
    missing = {name: reason for name, reason in said.items() if not reason.startswith("version ") and reason != "on"}
    if missing:
        log.warning("this host cannot confine the process fully", **missing)
    log.info("confined", profile=needs.profile, **said)


def _restrict_files(needs: Needs) -> str:
    paths = {*_SYSTEM, sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), *needs.readable}
    ports = needs.connect if not needs.connect else (*needs.connect, _DNS_PORT)
    try:
        return f"version {landlock.restrict(sorted(paths), ports)}"
    except landlock.LandlockUnavailable as error:
        return str(error)


def _filter_calls(needs: Needs) -> str:
    try:
        seccomp.install(seccomp.filter_for(needs.profile, programs=needs.programs))
    except seccomp.SeccompUnavailable as error:
        return str(error)
    return "on"


def directories_of(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the directories that contain `paths` and the targets of their links."""
    found = {os.path.dirname(other) for path in paths for other in (os.path.abspath(path), os.path.realpath(path))}
    return tuple(sorted(found - {"/"}))
