"""Decides whether a task fits the time left in a block, and how many new blocks the tasks that don't fit need.

A block's script notes when it began (see provider), so that queueing and worker_init count against the block and
not against the task. Each node reports the time left when it registers; after that only durations are compared,
since the clocks of two hosts may differ. Standard library only: the node's pool uses it too.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping

STARTED_VARIABLE = "MEP_BLOCK_STARTED"
"""Set by a block's script to the second in which it began."""
MARGIN_S = 2.0
"""Time that a block must have left beyond a task's walltime: for the way to the node and the worker's start."""
_FORM = re.compile(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?")


def seconds_of(text: str) -> float | None:
    """Return the seconds in [D-]HH:MM[:SS], None for another form or for nothing (schedulers: no limit)."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds) or None


def seconds_left(environment: Mapping[str, str], started: float, walltime_s: float, now: float) -> float | None:
    """Return the seconds left of the block in which this runs; None if unknown.

    `started` is when its script began (0: not noted, taken for now), `walltime_s` the time it was submitted for (0:
    no limit). Slurm's own end time counts if it is earlier. `now`: seconds since the epoch.
    """
    ends = [(started or now) + walltime_s] if walltime_s else []
    said = environment.get("SLURM_JOB_END_TIME", "")
    if said.isdecimal() and int(said):
        ends.append(float(said))
    return min(ends) - now if ends else None


def fits(left_s: float | None, walltime_s: float) -> bool:
    """Tell whether a task of this walltime (0: none) may begin where so much is left."""
    return not walltime_s or left_s is None or left_s >= walltime_s + MARGIN_S


class Ends:
    """When each block that has registered ends, by a monotonic clock."""

    def __init__(self) -> None:
        self._ends: dict[str, float | None] = {}

    def registered(self, block_id: str, left_s: float | None, now: float | None = None) -> bool:
        """Record a node's report. Returns whether it was the first one of its block."""
        now = time.monotonic() if now is None else now
        first = block_id not in self._ends
        end, known = None if left_s is None else now + left_s, self._ends.get(block_id)
        self._ends[block_id] = min((each for each in (end, known) if each is not None), default=None)
        return first

    def left(self, block_id: str, now: float) -> float | None:
        """Return the seconds left of a block; None if unknown."""
        end = self._ends.get(block_id)
        return None if end is None else end - now

    def forget(self, block_id: str) -> None:
        """The block is gone."""
        self._ends.pop(block_id, None)

    def stranded(self, blocks: Iterable[str], walltimes: Iterable[float], now: float) -> list[float]:
        """Return those of the walltimes that fit no block of these."""
        lefts = [self.left(block_id, now) for block_id in blocks]
        return [each for each in walltimes if not any(fits(left, each) for left in lefts)]


def blocks_for(stranded: list[float], slots: int) -> int:
    """Return how many new blocks the stranded tasks need; one while the capacity of a block is unknown."""
    return math.ceil(len(stranded) / slots) if slots else int(bool(stranded))
