"""The control group of manager or mapper: limits on memory and processes for the whole helper.

The child enters the group itself, as root, before it drops privileges, so the monitor never waits for systemd. If no
group with limits is available, the child runs without one, which is logged. Called by helper_process.py.
"""

from __future__ import annotations

import os
import time

from mep.boundary.cgroup_support import problem
from mep.boundary.log import Log
from mep.boundary.resolved_config import Limits
from mep.root.keeper.cgroup import CgroupFailed, enter_helper_group, remove_helper_group

_LIMIT_S = 5.0
"""Time limit for systemd."""


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
