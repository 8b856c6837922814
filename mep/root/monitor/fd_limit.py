"""How many descriptors the monitor may need: checked at startup, before any process is started, and at each reload.

A monitor without free descriptors couldn't fork or receive messages. Called by main.py and reload.py.
"""

from __future__ import annotations

import resource

from mep.boundary.errors import ConfigRefused
from mep.boundary.messages import MAX_STARTS_OUTSTANDING
from mep.boundary.resolved_config import Resolved

_FOR_ITSELF = 128
_EACH = 2
"""A user endpoint's channel, and the descriptors that its start or end opens for a moment."""


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
