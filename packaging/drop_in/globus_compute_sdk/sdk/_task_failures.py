"""Exceptions of tasks that scripts catch as TaskExecutionFailed, as Globus Compute's SDK raises them.

MEP raises the function's own exception. Here it is of a class made from its own and TaskExecutionFailed, so that a
script that expects either one catches it.
"""

from __future__ import annotations

import functools
import time
import types
from typing import Any, cast

from mep_sdk.errors import RemoteTraceback, TaskExecutionFailed
from mep_sdk.exception_values import make, parts
from mep_sdk.foreign_code import attempt


def task_failure(error: Exception, completion_t: str | None = None) -> Exception:
    """Return an exception that is also a TaskExecutionFailed; the same one if no such class can be made.

    `completion_t`: when the task ended, in seconds since the epoch, as text; without it the time of this call.
    """
    ended = completion_t or str(time.time())
    if isinstance(error, TaskExecutionFailed):
        error.completion_t = error.completion_t or ended
        return error
    made, _ = attempt(_made, error, ended)  # its class is the person's
    return made or error


def _made(error: Exception, ended: str) -> Exception:
    args, attributes = parts(error)
    made: Any = make(_both(cast("Any", type(error))), args, attributes)
    cause = error.__cause__
    trace = cause.text if isinstance(cause, RemoteTraceback) else str(error)
    made.__dict__.update(remote_data=trace, completion_t=ended, task_details=None, _own=error)
    made.__cause__, made.__traceback__ = cause, error.__traceback__
    failure: Exception = made
    return failure


@functools.lru_cache(256)
def _both(kind: Any) -> type:
    """Return the class of this name that is made from `kind` and TaskExecutionFailed."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__reduce__": _reduce}
    return types.new_class(kind.__name__, (kind, TaskExecutionFailed), exec_body=lambda space: space.update(names))


def _reduce(error: Any) -> tuple[Any, ...]:
    """Return how to pickle it: as what it was made from."""
    own = error.__dict__["_own"]
    return _again, (type(own), *parts(own), {"remote_data": error.remote_data, "completion_t": error.completion_t})


def _again(kind: Any, args: tuple[Any, ...], attributes: dict[str, Any], told: dict[str, str]) -> Any:
    made: Any = task_failure(cast("Exception", make(kind, args, attributes)))
    made.__dict__.update(told)
    return made
