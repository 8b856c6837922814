"""The control group of manager or mapper: limits of memory and processes that hold for all of it together.

The child enters it itself, as root, before it drops: the monitor never waits for systemd. Where no group with limits
can be had, the child goes on without, which is logged. Called by helper_process.py.
"""

from __future__ import annotations

import os
import time

from mep.boundary.cgroup_support import problem
from mep.boundary.log import Log
from mep.boundary.resolved_config import Limits
from mep.root.keeper.cgroup import CgroupFailed, place_helper, remove_helper_group

_LIMIT_S = 5.0
"""How long systemd may take."""


def why_no_groups(limits: Limits) -> str:
    """Return why this host or mode has no control group for helpers, or an empty string."""
    return problem([limits])


def enter_group(endpoint: str, kind: str, limits: Limits) -> None:
    """In the child, before it drops root: enter a group with `limits`."""
    deadline = time.monotonic() + _LIMIT_S
    try:
        place_helper(os.getpid(), endpoint, kind, limits, lambda: max(0.0, deadline - time.monotonic()))
    except (OSError, CgroupFailed) as error:
        Log("monitor").warning(f"the {kind} has no control group of its own", reason=str(error))


def leave_group(endpoint: str, kind: str) -> None:
    """Remove the group of a process that has ended, where it was made by hand."""
    remove_helper_group(endpoint, kind)
