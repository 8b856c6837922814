"""This host's support for limits by control group, as checked by resolver and monitor before any start.

Only files are read. The keeper puts a user endpoint into its group (mep/root/kernel/cgroup.py). Source: the kernel's
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mep.boundary.resolved_config import Limits

ROOT = "/sys/fs/cgroup"
BUSCTL = "/usr/bin/busctl"
_SYSTEMD = "/run/systemd/system"
_BUS = "/run/dbus/system_bus_socket"
_CONTROLLER = {
    "memory_max": "memory",
    "memory_high": "memory",
    "cpu_max": "cpu",
    "tasks_max": "pids",
    "io_weight": "io",
}


def controllers(limits: Limits) -> set[str]:
    """Return the controllers that `limits` need; empty if no limit is set by control group."""
    keys = [(prefix + key, name) for key, name in _CONTROLLER.items() for prefix in ("", "person_")]
    return {name for key, name in keys if getattr(limits, key)}


def tree() -> str:
    """Return the mount point of cgroup v2, alone or beside v1; empty if it isn't mounted."""
    return next((path for path in (ROOT, f"{ROOT}/unified") if os.path.exists(f"{path}/cgroup.procs")), "")


def under_systemd() -> bool:
    """Tell whether systemd is this host's init. If so, it owns the tree of control groups."""
    return os.path.isdir(_SYSTEMD)


def runtime_dir_of(uid: int) -> str:
    """Return logind's runtime directory for a login of `uid` (pam_systemd(8))."""
    return f"/run/user/{uid}"


def can_group() -> bool:
    """Tell whether a user endpoint can have its own group, with or without limits, to be killed as a whole.

    Without root, that takes the person's own service manager, user@UID.service.
    """
    if not tree():
        return False
    if os.geteuid() != 0:
        return under_systemd() and os.access(BUSCTL, os.X_OK) and os.path.exists(f"{runtime_dir_of(os.geteuid())}/bus")
    return not (_no_systemd() if under_systemd() else _no_tree(tree()))


def problem(every: Iterable[Limits]) -> str:
    """Return why this host can't enforce one of `every`, or an empty string."""
    wanted: set[str] = set()
    for limits in every:
        wanted |= controllers(limits)
    if not wanted:
        return ""
    if os.geteuid() != 0:
        return "limits by control group need root: only open_files, file_size and processes work without"
    try:
        with open(f"{ROOT}/cgroup.controllers") as file:
            present = set(file.read().split())
    except OSError:
        return (
            "this host has no cgroup v2 at /sys/fs/cgroup, which the limits need; boot it with "
            "systemd.unified_cgroup_hierarchy=1, or remove the limits"
        )
    if missing := wanted - present:
        return f"this host's cgroup v2 lacks the controllers {', '.join(sorted(missing))}"
    return _no_systemd() if under_systemd() else _no_tree(ROOT)


def _no_systemd() -> str:
    if not os.access(BUSCTL, os.X_OK):
        return f"{BUSCTL} is missing, which requests them from systemd"
    return "" if os.path.exists(_BUS) else "systemd cannot be asked for them: there is no system bus (install dbus)"


def _no_tree(path: str) -> str:
    if not os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"there is no systemd, and {path} cannot be written to"
    return ""
