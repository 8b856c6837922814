"""How many descriptors the monitor may need: checked at startup, before any process is started, and at each reload.

A monitor without free descriptors couldn't fork or receive messages. Something else may use them up all the same, or
lower the limit: then it takes no new work until the reserve is free again. Called by main.py, reload.py, monitor.py
and start_requests.py.
"""

from __future__ import annotations

import resource

from mep.boundary import fd_reserve
from mep.boundary.errors import ConfigRefused
from mep.boundary.log import Log
from mep.boundary.messages import MAX_STARTS_OUTSTANDING
from mep.boundary.resolved_config import Resolved

_FOR_ITSELF = 128 + fd_reserve.RESERVE
AGAIN_S = 0.5
"""Pause before work that waits for free descriptors is tried again."""
_EACH = 2
"""A user endpoint's channel, and the pidfd of an adopted keeper or what a start or end opens for a moment."""


def needed(resolved: Resolved) -> int:
    """Return how many descriptors the monitor may have open at once with this configuration."""
    return _EACH * resolved.caps.max_user_endpoints + MAX_STARTS_OUTSTANDING + _FOR_ITSELF


def raise_limit() -> tuple[int, int]:
    """Raise this process's limit as far as allowed. Return the old limits, for the processes it forks."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def check(resolved: Resolved) -> None:
    """Raise ConfigRefused if the configuration allows more user endpoints than there are descriptors for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < needed(resolved):
        most = resolved.caps.max_user_endpoints
        reason = (
            f"{most} user endpoints may need {needed(resolved)} open files, and the hard limit is {hard}: "
            "raise it (LimitNOFILE= of the unit, or ulimit -Hn), or lower max_user_endpoints"
        )
        raise ConfigRefused(resolved.name, "caps.max_user_endpoints", reason)


class Reserve:
    """Tells whether the reserve is free, and logs when that changes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._free = True

    def is_free(self) -> bool:
        """Return whether there are descriptors for new work."""
        free = not fd_reserve.is_touched()
        if free != self._free:
            self._free = free
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if free:
                self._log.info("descriptors are free again: going on", limit=limit)
            else:
                self._log.error("too few free descriptors: requests and starts wait", limit=limit)
        return free
