"""File descriptors: the limit is raised to what the configuration needs, and some are always left free.

libzmq ends the process where it cannot open one, and a result that cannot be put on the disk does not survive a crash.
A user endpoint therefore refuses to start with a hard limit that is too low. While fewer than RESERVE are free, as when
tasks of the thread engine keep files open, it requests no further task. Called by startup and the user endpoint.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from typing import Final

from mep.boundary import fd_reserve
from mep.boundary.fd_reserve import RESERVE
from mep_wire.errors import EndpointMisconfigured
from user_endpoint import settings

CHECK_S: Final = 0.25
"""Seconds between two looks at how many are open."""
_FOR_ITSELF: Final = 64
"""Link, log, spool and functions, measured: 25; the rest is for moments such as a new connection."""
_FOR_PARSL: Final = 64
"""Parsl's sockets and the scheduler's commands, measured: 25."""
_EACH_WORKER: Final = 3
"""A worker's socket, process and journal."""
_EACH_POOL: Final = 2
"""A worker pool's connection to the interchange, and one more while it comes back."""
_FOR_INTERCHANGE: Final = 64


def needed(engine: settings.EngineSettings) -> int:
    """Return how many descriptors a user endpoint with this engine may have open at once, and its reserve."""
    match engine:
        case settings.ProcessPoolSettings():
            return _FOR_ITSELF + RESERVE + _EACH_WORKER * (engine.max_workers or len(os.sched_getaffinity(0)))
        case settings.GlobusComputeSettings():
            return _FOR_ITSELF + RESERVE + _FOR_PARSL
        case _:
            return _FOR_ITSELF + RESERVE


def provide(need: int) -> None:
    """Raise the soft limit to `need` where it is lower. Raises EndpointMisconfigured where the hard limit is.

    No further, since the limit passes to the schedulers' commands, and Slurm takes it to the nodes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _check(need, hard, "the engine of this template")
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def check_interchange(pools: int) -> None:
    """Raise EndpointMisconfigured where the interchange, which raises its own limit, could not serve so many pools."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    _check(_FOR_INTERCHANGE + _EACH_POOL * pools, hard, f"an interchange for {pools} nodes (max_blocks)")


def _check(need: int, hard: int, what: str) -> None:
    if hard != resource.RLIM_INFINITY and hard < need:
        advice = "raise it for these accounts (limits.conf, or LimitNOFILE= of the unit), or ask for fewer workers"
        raise EndpointMisconfigured(detail=f"{what} may need {need} open files, and the hard limit is {hard}: {advice}")


class Headroom:
    """Whether the reserve is untouched."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, is_touched: Callable[[], bool] = fd_reserve.is_touched
    ) -> None:
        self._clock, self._is_touched = clock, is_touched
        self._checked_at = float("-inf")
        self.low = False
        """Whether fewer than RESERVE descriptors were free at the last look."""

    def look(self) -> bool:
        """Look again if it is time to; return whether `low` has changed."""
        now, before = self._clock(), self.low
        if now < self._checked_at + CHECK_S:
            return False
        self._checked_at, self.low = now, self._is_touched()
        return self.low != before

    def next_look(self) -> float | None:
        """Return when to look again although nothing happens: while work is paused, soon."""
        return self._checked_at + CHECK_S if self.low else None
