"""Limits of manager and mapper, on the process (setrlimit(2)) and on its control group.

A compromised or faulty helper must not use up the host. The limits are far above the helpers' needs: the manager has
about 5 threads, the mapper at most 40. The child enters its control group itself, as root, before it drops
privileges, so the monitor never waits for systemd. If no group with limits is available, the child runs without one,
which is logged. Called by helper_process.py.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass

from mep.boundary.cgroup_support import problem
from mep.boundary.log import Log
from mep.boundary.messages import MAX_DOCUMENT_BYTES
from mep.boundary.resolved_config import Limits, Resolved
from mep.root.keeper.cgroup import CgroupFailed, enter_helper_group, remove_helper_group
from mep.root.monitor.child import ChildKind

_MIB = 2**20
_NO_LIMIT = 0
_LIMIT_S = 5.0
"""Time limit for systemd."""


@dataclass(frozen=True, slots=True)
class HelperLimits:
    """The limits of one helper; 0 means no limit."""

    processes: int
    """RLIMIT_NPROC: processes and threads of its account. Endpoints that share one share this too."""
    open_files: int
    file_size: int
    """RLIMIT_FSIZE, in bytes. It applies to memfds too, so it must admit the largest document."""
    address_space: int
    memory_max: int
    """Of its control group, in bytes."""
    tasks_max: int
    """Of its control group: processes and threads."""

    def rlimits(self) -> list[tuple[int, int]]:
        """Return the process limits as setrlimit(2) takes them."""
        found = [
            (resource.RLIMIT_NPROC, self.processes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_FSIZE, self.file_size),
            (resource.RLIMIT_AS, self.address_space),
        ]
        return [(number, value) for number, value in found if value]

    def group_limits(self) -> Limits:
        """Return the limits of its control group."""
        return Limits(memory_max=self.memory_max, tasks_max=self.tasks_max)


def helper_limits(kind: ChildKind, resolved: Resolved) -> HelperLimits:
    """Return the limits of an endpoint's manager or mapper.

    If the mapper runs the site's programs, its only process limit is on open files, because those programs inherit the
    limits. In single-user mode RLIMIT_NPROC would count all of the owner's processes, so it isn't set.
    """
    processes = 256 if resolved.multi_user else _NO_LIMIT
    if kind is ChildKind.MANAGER:
        file_size = _NO_LIMIT if resolved.task_log_path else MAX_DOCUMENT_BYTES
        return HelperLimits(processes, 1024, file_size, 2048 * _MIB, 512 * _MIB, 64)
    if resolved.mapper.programs:
        return HelperLimits(_NO_LIMIT, 4096, _NO_LIMIT, _NO_LIMIT, 4096 * _MIB, 4096)
    return HelperLimits(2 * processes, 1024, MAX_DOCUMENT_BYTES, 8192 * _MIB, 2048 * _MIB, 256)


def why_no_groups(limits: Limits) -> str:
    """Return why helpers have no control group on this host or in this mode; empty if they have."""
    return problem([limits])


def enter_group(endpoint: str, kind: str, limits: Limits) -> None:
    """In the child, before it drops root: enter a group with `limits`."""
    deadline = time.monotonic() + _LIMIT_S
    try:
        enter_helper_group(os.getpid(), endpoint, kind, limits, lambda: max(0.0, deadline - time.monotonic()))
    except (OSError, CgroupFailed) as error:
        Log("monitor").warning(f"the {kind} has no control group of its own", reason=str(error))


def leave_group(endpoint: str, kind: str) -> None:
    """Remove the group of a process that has ended, if we created it directly."""
    remove_helper_group(endpoint, kind)
