"""Why a task waits: a stable code, a sentence, and since when. Every waiting state has one.

Where a start has failed and is tried again, the code is that of the error (mep_wire.errors). The codes here are for
the other waits. Standard library only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mep_wire.str_enum import StrEnum


class WaitCode(StrEnum):
    """Waits that are no errors."""

    ENDPOINT_OFFLINE = "ENDPOINT_OFFLINE"
    START_LIMIT = "START_LIMIT"
    START_ASKED = "START_ASKED"
    START_QUEUED = "START_QUEUED"
    START_JOINING = "START_JOINING"
    PROCESS_AWAY = "PROCESS_AWAY"
    PROCESS_ENDING = "PROCESS_ENDING"
    TASKS_AHEAD = "TASKS_AHEAD"
    WORKERS_BUSY = "WORKERS_BUSY"
    JOB_PENDING = "JOB_PENDING"
    BLOCKS_FAILING = "BLOCKS_FAILING"
    ENGINE_TROUBLE = "ENGINE_TROUBLE"
    ARGUMENTS_PENDING = "ARGUMENTS_PENDING"
    WAITS_FOR_TASK = "WAITS_FOR_TASK"


SENTENCES: Final[dict[WaitCode, str]] = {
    WaitCode.ENDPOINT_OFFLINE: "The endpoint is offline: its site has had no link to the relay since {since}.",
    WaitCode.START_LIMIT: "The relay starts few processes at a time at each endpoint, and yours is waiting its turn.",
    WaitCode.START_ASKED: "The site has been asked to start your process.",
    WaitCode.START_QUEUED: "The site starts few user endpoints at once; yours is number {position} in the queue.",
    WaitCode.START_JOINING: "Your process at the site has started, and has not connected to the relay yet.",
    WaitCode.PROCESS_AWAY: "Your process at the site has had no link to the relay since {since}. The relay waits "
    "for it.",
    WaitCode.PROCESS_ENDING: "Your process at the site is ending. A new one will start for your tasks.",
    WaitCode.TASKS_AHEAD: "Your process at the site has as many tasks as it can take. The others wait their turn.",
    WaitCode.WORKERS_BUSY: "Your process at the site has the task, which starts once a worker is free.",
    WaitCode.JOB_PENDING: "The site's scheduler has not started your job yet: {words}",
    WaitCode.BLOCKS_FAILING: "The site cannot start workers at the moment, and keeps trying: {words}",
    WaitCode.ENGINE_TROUBLE: "The site's engine cannot start tasks at the moment: {words}",
    WaitCode.ARGUMENTS_PENDING: "The task is sent once all futures among its arguments have ended.",
    WaitCode.WAITS_FOR_TASK: "The task waits for task {task_id}, as it needs its result.",
}
"""What the person reads, with fields in braces."""
USUAL: Final = frozenset(
    {
        WaitCode.START_ASKED,
        WaitCode.START_JOINING,
        WaitCode.TASKS_AHEAD,
        WaitCode.WORKERS_BUSY,
        WaitCode.PROCESS_ENDING,
        WaitCode.ARGUMENTS_PENDING,
        WaitCode.WAITS_FOR_TASK,
    }
)
"""Waits of every day, about which no script warns."""


class Wait(NamedTuple):
    """One wait. `since` is in seconds since the epoch, 0 if it is not known."""

    code: str
    text: str
    since: float = 0.0


def wait(code: WaitCode, since: float = 0.0, /, **fields: object) -> Wait:
    """Return the wait of this code."""
    return Wait(code, SENTENCES[code].format(**fields), since)
