"""A task's options beyond its arguments: how long, how often, until when, and in which order it runs.

The relay checks these too; here a mistake is reported where it was made. Called by Executor and Batch.
"""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import NamedTuple

from mep_sdk.argument_checks import shown
from mep_wire import limits

Deadline = float | datetime | None
"""Seconds since the epoch, or a time with its time zone; None for none."""


_EXAMPLES = {
    "walltime_s": "walltime_s=60",
    "max_attempts": "max_attempts=3",
    "deadline": "deadline=datetime.now(timezone.utc) + timedelta(hours=2)",
    "deadline_s": "deadline_s=7200",
    "priority": "priority=10",
}


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
        accepted = f"1 to {limits.MAX_ATTEMPTS} (1: never run again)"
        raise ValueError(_refusal("max_attempts", accepted, max_attempts))
    if not limits.MIN_PRIORITY <= _whole(priority, "priority") <= limits.MAX_PRIORITY:
        accepted = f"{limits.MIN_PRIORITY} to {limits.MAX_PRIORITY}, higher first"
        raise ValueError(_refusal("priority", accepted, priority))
    if walltime_s is not None and not _number(walltime_s, "walltime_s") >= 0:
        raise ValueError(_refusal("walltime_s", "in seconds, 0 or more (0: no limit)", walltime_s))
    if deadline_s is not None and not _number(deadline_s, "deadline_s") > 0:
        raise ValueError(_refusal("deadline_s", "in seconds from the submission, more than 0", deadline_s))
    ends = _seconds(deadline)
    if ends is not None and ends <= time.time():
        raise ValueError(f"the deadline {deadline} is past; for seconds from the submission there is deadline_s")
    return TaskOptions(walltime_s, max_attempts, ends, deadline_s, priority)


def _refusal(name: str, accepted: str, value: object) -> str:
    return f"{name} is {accepted}, such as {_EXAMPLES[name]}, not {shown(value)}"


def _whole(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_refusal(name, "a whole number", value))
    return value


def _number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(_refusal(name, "a number of seconds", value))
    if not math.isfinite(value):
        raise ValueError(_refusal(name, "a finite number of seconds", value))
    return value


def _seconds(deadline: Deadline) -> float | None:
    if deadline is None:
        return None
    if not isinstance(deadline, datetime):
        if isinstance(deadline, str):
            raise TypeError(_refusal("deadline", "a datetime, or in seconds since the epoch", deadline))
        return float(_number(deadline, "deadline"))
    if deadline.tzinfo is None:
        raise ValueError(_refusal("deadline", "a datetime with a time zone", deadline))
    return deadline.timestamp()
