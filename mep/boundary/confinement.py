"""What manager and mapper give up once they have imported and opened everything they start with.

Landlock first, then seccomp, whose filter forbids to change anything of it. What this host cannot do is logged once and
left out; limits, network namespace and control group are the monitor's part (mep/root/monitor/helper_limits.py).

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
"""Libraries, and what glibc reads to look up names. Directories: /etc/resolv.conf is replaced while we run."""
_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Needs:
    """What a helper has to be able to do."""

    profile: str
    """Which list of syscalls.json it gets."""
    readable: tuple[str, ...] = ()
    """What it reads besides libraries and the files of name look-ups."""
    connect: tuple[int, ...] | None = ()
    """The TCP ports that it connects to; None for any."""
    programs: bool = False
    """Whether it runs programs of the site's, which inherit what it has given up."""


def confine(needs: Needs, log: Log) -> None:
    """Give up everything but `needs`, for good."""
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
    """Return the directories in which `paths` lie, by their own names and by where links lead."""
    found = {os.path.dirname(other) for path in paths for other in (os.path.abspath(path), os.path.realpath(path))}
    return tuple(sorted(found - {"/"}))
