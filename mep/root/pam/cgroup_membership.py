"""Which control groups this process is in, and how it returns to them.

A PAM module may move its caller (pam_systemd: into the session's scope). Trusts the kernel's files. Called by the
keeper (context.py). Works with cgroup v2, v1 and both at once. Raises OSError.
"""

from __future__ import annotations

import os


def memberships() -> dict[str, str]:
    """Return the group of this process in each hierarchy: controllers (empty for v2) to path."""
    found = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found[controllers] = path
    return found


def move_back(before: dict[str, str]) -> None:
    """Enter those groups of `before` that this process is no longer in."""
    now = memberships()
    for controllers, path in before.items():
        if now.get(controllers, path) != path and (directory := _directory(controllers, path)):
            with open(os.path.join(directory, "cgroup.procs"), "w") as file:
                file.write(str(os.getpid()))


def _directory(controllers: str, path: str) -> str:
    """Return the mount point of the hierarchy's group `path`; empty if it isn't mounted."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            root, point = left.split(" ")[3:5]
            if _is_mount_of(controllers, kind, options.strip().split(",")) and path.startswith(root.rstrip("/")):
                return point + path[len(root.rstrip("/")) :]
    return ""


def _is_mount_of(controllers: str, kind: str, options: list[str]) -> bool:
    if not controllers:
        return kind == "cgroup2"
    return kind == "cgroup" and set(controllers.split(",")) <= set(options)
