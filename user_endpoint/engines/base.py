"""The contract of an engine, which runs a person's tasks inside their user endpoint.

One engine is one file beside this one. The user endpoint's loop is a single thread over poll(2); an engine
never blocks it and never calls it: it makes its descriptor readable and is then asked to `collect`. While
tasks are held, `collect` is also called at least every TICK_S, so that an engine may keep deadlines there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from mep_wire.messages import ResultItem

OWN_PYTHON: Final = ".".join(map(str, sys.version_info[:3]))
"""This process's own Python, as in 3.11.2."""
OUTPUT_EVERY_S: Final = 0.25
OUTPUT_BYTES: Final = 128 * 1024
"""How often an engine reports what tasks print, and how much of it at most on one host. The rest is left out."""
TICK_S: Final = 0.25
"""Longest time between two calls of `collect` while the engine holds a task."""


class EngineTask(msgspec.Struct, frozen=True):
    """One task with its function's code. Bytes are as the SDK serialized them."""

    row: int
    task_id: str
    function_id: str
    function: bytes
    payload: bytes
    resource_spec: bytes
    walltime_s: float
    variables: dict[str, str] | None = None
    """Environment variables that this task finds beyond its worker's."""
    attempt: int = 1
    """How many attempts at this task there are with this one, as the relay counts those that were begun and lost."""
    priority: int = 0
    """Among the tasks that wait, higher ones first."""


class TaskStarted(msgspec.Struct, frozen=True):
    """A worker has started the task of this row. Block and its job, where there are such and they are asked for."""

    row: int
    block_id: str = ""
    job_id: str = ""


class TaskOutput(msgspec.Struct, frozen=True, array_like=True):
    """What the running task of this row has printed: `stream` 0 is its stdout, 1 its stderr. `position`: how many
    bytes came before it in that stream, of which some may have been left out."""

    row: int
    stream: int
    position: int
    data: bytes


class TaskReturned(msgspec.Struct, frozen=True):
    """The engine no longer has the task. It had not started and nothing is known against it: queue it again."""

    row: int


class EngineOver(msgspec.Struct, frozen=True):
    """The engine will run nothing any more; the user endpoint ends, so that the next start makes another."""

    code: str
    text: str


Event = TaskStarted | TaskOutput | TaskReturned | ResultItem | EngineOver
"""The reports of an engine. Every row given to `submit` ends in exactly one TaskReturned or ResultItem.
TaskOutput comes a few times a second, for tasks of which it is wanted.

An engine never restarts a task that had begun. It reports WORKER_LOST or USER_ENDPOINT_LOST and names the process that
died; the user endpoint decides by the task's attempts. A task that had not begun may go to another worker.
"""


class Engine(Protocol):
    """The methods of every engine. All of them are called from the user endpoint's one thread."""

    @property
    def worker_python(self) -> str:
        """The Python that runs tasks, e.g. 3.12.1; empty before a worker has told. An attribute will do."""

    @property
    def trouble(self) -> str:
        """What keeps tasks from beginning just now, for the person; empty if nothing does. An attribute will do."""

    @property
    def trouble_code(self) -> str:
        """The code of `trouble`: a mep_wire.waits.WaitCode. An attribute will do."""

    @property
    def blocks(self) -> str:
        """The blocks with their jobs, for the administrator; empty if there are none. An attribute will do."""

    @property
    def capacity(self) -> int:
        """How many tasks the engine wants to hold at once: running ones and enough waiting to keep workers busy.

        May change at any time, as the engine learns how long tasks take; an attribute will do.
        """

    @property
    def fed(self) -> bool:
        """Whether no worker would be without work if `collect` were called a millisecond late. An attribute will do."""

    def start(self) -> None:
        """Begin: start or be ready to start workers. Raises mep_wire.errors.EngineFailed."""

    def fileno(self) -> int:
        """A descriptor that polls readable whenever `collect` has something."""

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Take these tasks. Never blocks; a task it cannot run ends in a ResultItem with a code."""

    def cancel(self, rows: Sequence[int]) -> None:
        """End these tasks, queued or running; each still ends with an event. Unknown rows are ignored."""

    def collect(self) -> list[Event]:
        """Return the events since the last call, results in the order in which they ended."""

    def drain(self) -> None:
        """Start nothing more: every task that has not started comes back as a TaskReturned, running ones go on."""

    def stop(self, grace_s: float) -> None:
        """End every worker and block within about `grace_s` seconds. Called once, last."""
