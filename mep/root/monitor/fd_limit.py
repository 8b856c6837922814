"""How many descriptors the monitor may come to need: checked before anything is started, and at each reload.

One that has none left could fork nobody, and hear nobody. Called by main.py and reload.py.
"""

from __future__ import annotations

import resource

from mep.boundary.errors import ConfigRefused
from mep.boundary.messages import MAX_STARTS_OUTSTANDING
from mep.boundary.resolved_config import Resolved

_FOR_ITSELF = 128
_EACH = 2
"""A user endpoint's channel, and what is open for a moment at its start or end."""


def needed(resolved: Resolved) -> int:
    """Return how many descriptors the monitor may have open at once with this configuration."""
    return _EACH * resolved.caps.max_user_endpoints + MAX_STARTS_OUTSTANDING + _FOR_ITSELF


def raise_limit() -> tuple[int, int]:
    """Give this process as many as it may have; return the limits that it had, for what it forks."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def check(resolved: Resolved) -> None:
    """Raise ConfigRefused where people may have more user endpoints than there are descriptors for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < needed(resolved):
        most = resolved.caps.max_user_endpoints
        reason = (
            f"{most} user endpoints may need {needed(resolved)} open files, and the hard limit is {hard}: "
            "raise it (LimitNOFILE= of the unit, or ulimit -Hn), or lower max_user_endpoints"
        )
        raise ConfigRefused(resolved.name, "caps.max_user_endpoints", reason)
