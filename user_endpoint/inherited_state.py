"""What this user endpoint's process was started with, before it set other values for itself: its tasks get that.

Called by main, and by the engines for their workers. Standard library only.
"""

from __future__ import annotations

import os
import resource

_umask: int | None = None
_open_files = -2


def set_own_umask(mask: int) -> None:
    """Set the umask of this process, and keep what it was started with. Call before anything else."""
    global _umask, _open_files
    _umask = os.umask(mask)
    _open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def umask() -> int:
    """Return the umask for tasks: the one that this process was started with."""
    if _umask is not None:
        return _umask
    now = os.umask(0o077)
    os.umask(now)
    return now


def open_files() -> int:
    """Return the soft limit of open files for tasks, which this process may have raised for itself."""
    return _open_files if _umask is not None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def as_shell() -> str:
    """Return shell commands that set both."""
    files = "unlimited" if open_files() == resource.RLIM_INFINITY else str(open_files())
    return f"umask {umask():04o}\nulimit -S -n {files} 2>/dev/null || :"
