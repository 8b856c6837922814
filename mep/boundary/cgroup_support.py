"""What this host can do about limits by control group: asked by the resolver and by the monitor before anything starts.

Only files are read. How a user endpoint is put into its group is the keeper's (mep/root/keeper/cgroup.py). Source:
the kernel's Documentation/admin-guide/cgroup-v2.rst.
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
    """Return the controllers that `limits` need; none where no limit is one of control groups."""
    keys = [(prefix + key, name) for key, name in _CONTROLLER.items() for prefix in ("", "person_")]
    return {name for key, name in keys if getattr(limits, key)}


def tree() -> str:
    """Return where cgroup v2 is mounted, alone or beside v1; empty where it is not."""
    return next((path for path in (ROOT, f"{ROOT}/unified") if os.path.exists(f"{path}/cgroup.procs")), "")


def under_systemd() -> bool:
    """Tell whether systemd is this host's init: then the tree of control groups is systemd's."""
    return os.path.isdir(_SYSTEMD)


def runtime_dir_of(uid: int) -> str:
    """Return where logind puts what belongs to a login of `uid` (pam_systemd(8))."""
    return f"/run/user/{uid}"


def can_group() -> bool:
    """Tell whether a user endpoint can have a group of its own, limits or none: what is in one is ended at once.

    Without root, that takes the person's own service manager, user@UID.service.
    """
    if not tree():
        return False
    if os.geteuid() != 0:
        return under_systemd() and os.access(BUSCTL, os.X_OK) and os.path.exists(f"{runtime_dir_of(os.geteuid())}/bus")
    return not (_no_systemd() if under_systemd() else _no_tree(tree()))


def problem(every: Iterable[Limits]) -> str:
    """Return why this host cannot hold somebody to one of `every`, or an empty string."""
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
            "this host has no cgroup v2 at /sys/fs/cgroup, by which they are set; boot it with "
            "systemd.unified_cgroup_hierarchy=1, or remove the limits"
        )
    if missing := wanted - present:
        return f"this host's cgroup v2 lacks the controllers {', '.join(sorted(missing))}"
    return _no_systemd() if under_systemd() else _no_tree(ROOT)


def _no_systemd() -> str:
    if not os.access(BUSCTL, os.X_OK):
        return f"{BUSCTL} is missing, by which systemd is asked for them"
    return "" if os.path.exists(_BUS) else "systemd cannot be asked for them: there is no system bus (install dbus)"


def _no_tree(path: str) -> str:
    if not os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"there is no systemd, and {path} cannot be written to"
    return ""
