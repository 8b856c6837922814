"""Task events for a site that keeps task records: relay to manager, for one endpoint.

The relay makes an event in the transaction that changes the task's state, and keeps it until the manager says that it
is written. Ids and codes are as the relay stores them; block, job, code and the time of RUNNING may be a user
endpoint's word, and `source` says so. Travels in mep_wire.messages.TaskEvents.
"""

from __future__ import annotations

import msgspec

from mep_wire.str_enum import StrEnum
from mep_wire.struct_info import build_struct_info

MAX_PAGE_EVENTS = 1000
"""Most events in one message."""
MAX_LOCATION = 128
"""Longest block or job id, in characters, that is kept of a user endpoint's word."""


class Happened(StrEnum):
    """The events of a task: those of Globus Compute's audit log, and one for tasks that did not succeed."""

    RECEIVED = "RECEIVED"
    """The relay has it on its disk."""
    EXEC_START = "EXEC_START"
    """It goes to its user endpoint: once more where that gave it back or was lost."""
    RUNNING = "RUNNING"
    """A worker has begun it."""
    EXEC_END = "EXEC_END"
    """It has returned a result, which is on the relay's disk."""
    FAILED = "FAILED"
    """It has ended without: an exception of its function, cancelled, expired, lost. `code` says which."""


class EventSource(StrEnum):
    """The process that an event's data comes from."""

    RELAY = "relay"
    USER_ENDPOINT = "user_endpoint"
    """A process of the person's own, which may lie about its own tasks."""


class TaskEvent(msgspec.Struct, frozen=True, array_like=True):
    """One event. `seq` grows by one an event and endpoint; `at`: seconds since the epoch by the source's clock."""

    seq: int
    event: str
    source: str
    at: float
    task_id: str
    function_id: str
    uep_id: str
    identity_id: str
    username: str
    code: str
    block_id: str
    job_id: str
    incarnation: bytes = b""
    """Of the process that joined last when this happened; empty if none had, or if it is unknown."""


build_struct_info(__name__)
