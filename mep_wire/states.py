"""States of tasks and user endpoints, as transition tables. Nothing else sets a state.

The diagrams in docs/ are generated from these tables.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class TaskState(enum.IntEnum):
    """Where a task is. The values are stored by the relay and never renumbered."""

    QUEUED = 0
    """On the relay's disk, no user endpoint has it: not yet, or not any more."""
    DISPATCHED = 1
    """Sent to a user endpoint, not known to have started."""
    RUNNING = 2
    """A worker has started it. If its worker or user endpoint is lost, it is queued again while attempts are left."""
    SUCCESS = 10
    """Its result is on the relay's disk."""
    FAILED = 11
    """It raised an exception, could not be run, or was lost for the last time: `code` says which."""
    CANCELLED = 12
    """Its person has cancelled it."""
    EXPIRED = 13
    """It missed its deadline, or for the task lifetime no user endpoint took it, or its user endpoint was silent."""

    @property
    def is_terminal(self) -> bool:
        """Whether the task has reached its end."""
        return self >= TaskState.SUCCESS


class UepState(enum.IntEnum):
    """Where a user endpoint is, as the relay knows it."""

    ABSENT = 0
    """No process; none asked for."""
    STARTING = 1
    """A start request is on its way, or its process has not joined yet."""
    ONLINE = 2
    """Its link is up."""
    DISCONNECTED = 3
    """It was online, its link is silent, and it has not been reported as ended."""
    DRAINING = 4
    """It was told to stop, or said it will: it gets no further tasks, but its results are still accepted."""


class IllegalTransition(ValueError):
    """A state change that the table does not have: an error in our own code."""


_T, _U = TaskState, UepState
_ENDS = frozenset({_T.SUCCESS, _T.FAILED, _T.CANCELLED, _T.EXPIRED})

TASK_TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    _T.QUEUED: frozenset({_T.DISPATCHED}) | _ENDS,  # a result may overtake the record of its dispatch
    _T.DISPATCHED: frozenset({_T.QUEUED, _T.RUNNING}) | _ENDS,
    _T.RUNNING: frozenset({_T.QUEUED}) | _ENDS,
    **{end: frozenset() for end in _ENDS},
}

UEP_TRANSITIONS: Mapping[UepState, frozenset[UepState]] = {
    _U.ABSENT: frozenset({_U.STARTING, _U.ONLINE}),
    _U.STARTING: frozenset({_U.ONLINE, _U.ABSENT}),
    _U.ONLINE: frozenset({_U.DISCONNECTED, _U.DRAINING, _U.ABSENT}),
    _U.DISCONNECTED: frozenset({_U.ONLINE, _U.STARTING, _U.ABSENT}),
    _U.DRAINING: frozenset({_U.ABSENT}),
}

API_STATUS: Mapping[TaskState, str] = {
    _T.QUEUED: "waiting-for-ep",
    _T.DISPATCHED: "waiting-for-nodes",
    _T.RUNNING: "running",
    _T.SUCCESS: "success",
    _T.FAILED: "failed",
    _T.CANCELLED: "cancelled",
    _T.EXPIRED: "expired",
}
"""The status words of the public HTTP API for each state."""


def next_task_state(now: TaskState, then: TaskState) -> TaskState:
    """Return `then` if a task may go there from `now`, else raise IllegalTransition."""
    if then not in TASK_TRANSITIONS[now]:
        raise IllegalTransition(f"task: {now.name} -> {then.name}")
    return then


def next_uep_state(now: UepState, then: UepState) -> UepState:
    """Return `then` if a user endpoint may go there from `now`, else raise IllegalTransition."""
    if then not in UEP_TRANSITIONS[now]:
        raise IllegalTransition(f"user endpoint: {now.name} -> {then.name}")
    return then
