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
from typing import NamedTuple

from mep.boundary.log import Log
from mep.boundary.messages import MAX_DOCUMENT_BYTES
from mep.boundary.resolved_config import Limits, Resolved
from mep.root.kernel.cgroup import CgroupFailed, enter_helper_group
from mep.root.monitor.child import ChildKind

_MIB = 2**20
_NO_LIMIT = 0
_LIMIT_S = 5.0
"""Time limit for systemd."""


class HelperLimits(NamedTuple):
    """The limits of one helper: on its process, each as number and value, and on its control group."""

    rlimits: list[tuple[int, int]]
    group: Limits


def helper_limits(kind: ChildKind, resolved: Resolved) -> HelperLimits:
    """Return the limits of an endpoint's manager or mapper.

    If the mapper runs the site's programs, its only process limit is on open files, because those programs inherit the
    limits. In single-user mode RLIMIT_NPROC would count all of the owner's processes, so it isn't set. RLIMIT_FSIZE
    applies to memfds too, so it admits the largest document.
    """
    processes = 256 if resolved.multi_user else _NO_LIMIT
    if kind is ChildKind.MANAGER:
        file_size = _NO_LIMIT if resolved.task_log_path else MAX_DOCUMENT_BYTES
        return _limits(processes, 1024, file_size, 2048 * _MIB, Limits(memory_max=512 * _MIB, tasks_max=64))
    if resolved.mapper.programs:
        return _limits(_NO_LIMIT, 4096, _NO_LIMIT, _NO_LIMIT, Limits(memory_max=4096 * _MIB, tasks_max=4096))
    group = Limits(memory_max=2048 * _MIB, tasks_max=256)
    return _limits(2 * processes, 1024, MAX_DOCUMENT_BYTES, 8192 * _MIB, group)


def _limits(processes: int, open_files: int, file_size: int, address_space: int, group: Limits) -> HelperLimits:
    found = [
        (resource.RLIMIT_NPROC, processes), (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_FSIZE, file_size), (resource.RLIMIT_AS, address_space),
    ]  # fmt: skip
    return HelperLimits([(number, value) for number, value in found if value != _NO_LIMIT], group)


def enter_group(endpoint: str, kind: str, limits: Limits) -> None:
    """In the child, before it drops root: enter a group with `limits`."""
    deadline = time.monotonic() + _LIMIT_S
    try:
        enter_helper_group(os.getpid(), endpoint, kind, limits, lambda: max(0.0, deadline - time.monotonic()))
    except (OSError, CgroupFailed) as error:
        Log("monitor").warning(f"the {kind} has no control group of its own", reason=str(error))
