"""A task's options beyond its arguments: how long, how often, until when, and in which order it runs.

The relay checks these too; here a mistake is reported where it was made. Called by Executor and Batch.
"""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import NamedTuple

from mep_wire import limits

Deadline = float | datetime | None
"""Seconds since the epoch, or a time with its time zone; None for none."""


class TaskOptions(NamedTuple):
    """As mep_wire.api.SubmitBody has them; tasks with the same options share a request."""

    walltime_s: float | None = None
    max_attempts: int | None = None
    deadline: float | None = None
    deadline_s: float | None = None
    priority: int = 0


def checked_options(
    walltime_s: float | None, max_attempts: int | None, deadline: Deadline, deadline_s: float | None, priority: int
) -> TaskOptions:
    """Return the options as they are sent. Raises ValueError or TypeError, naming the option and its fault."""
    if max_attempts is not None and not 1 <= _whole(max_attempts, "max_attempts") <= limits.MAX_ATTEMPTS:
        raise ValueError(f"max_attempts is 1 to {limits.MAX_ATTEMPTS} (1: never run again), not {max_attempts}")
    if not limits.MIN_PRIORITY <= _whole(priority, "priority") <= limits.MAX_PRIORITY:
        raise ValueError(f"priority is {limits.MIN_PRIORITY} to {limits.MAX_PRIORITY}, higher first, not {priority}")
    if walltime_s is not None and not _number(walltime_s, "walltime_s") >= 0:
        raise ValueError(f"walltime_s is in seconds, 0 or more (0: no limit), not {walltime_s}")
    if deadline_s is not None and not _number(deadline_s, "deadline_s") > 0:
        raise ValueError(f"deadline_s is in seconds from the submission, more than 0, not {deadline_s}")
    ends = _seconds(deadline)
    if ends is not None and ends <= time.time():
        raise ValueError(f"the deadline {deadline} is past; for seconds from the submission there is deadline_s")
    return TaskOptions(walltime_s, max_attempts, ends, deadline_s, priority)


def _whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    return value


def _number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is a finite number of seconds, not {value}")
    return value


def _seconds(deadline: Deadline) -> float | None:
    if deadline is None:
        return None
    if not isinstance(deadline, datetime):
        if isinstance(deadline, str):
            raise TypeError(f"deadline is a datetime, or in seconds since the epoch, not {deadline!r}")
        return float(_number(deadline, "deadline"))
    if deadline.tzinfo is None:
        raise ValueError(f"the deadline {deadline} has no time zone: use datetime.now(UTC) + timedelta(...)")
    return deadline.timestamp()
