"""Decides whether a task that had begun and was lost is requested again or fails.

The relay counts the attempts, so that the count outlives this process. This module decides whether one more is left,
and remembers lost attempts until the relay has them. No socket, no clock. Called by the user endpoint.
"""

from __future__ import annotations

from typing import Final

from mep_wire.attempts import allowed_attempts, on_attempt
from mep_wire.errors import UserEndpointLost, WorkerLost
from mep_wire.messages import LossesDurable, Lost, ResultItem, TaskItem

LOSSES: Final = frozenset({WorkerLost.code, UserEndpointLost.code})
"""Codes with which an engine ends a task that had begun and was lost, and that may be run again."""


class Attempts:
    """`default` is how often a task without its own limit is begun, `most` the highest limit it may set, 0 for any."""

    def __init__(self, default: int = 1, most: int = 0) -> None:
        self.default, self.most = default, most
        self._lost: dict[int, int] = {}  # row -> the attempt, of which the relay has not said that it knows
        self._untold: list[int] = []

    def __len__(self) -> int:
        return len(self._lost)

    def lose(self, task: TaskItem) -> bool:
        """An attempt is lost. Returns whether the task may be begun again, and then sees to it."""
        if task.attempt >= self._allowed(task):
            return False
        self._lost[task.row] = task.attempt
        self._untold.append(task.row)
        return True

    def is_lost(self, row: int) -> bool:
        """Tell whether the relay is being told of a loss of this row."""
        return row in self._lost

    def known(self, message: LossesDurable) -> list[int]:
        """The relay knows of these losses. Returns the rows that are the relay's again."""
        pairs = zip(message.rows, message.attempts, strict=False)
        return [row for row, attempt in pairs if self._lost.get(row) == attempt and self._lost.pop(row)]

    def comes_again(self, task: TaskItem) -> bool:
        """Tell whether this is the next attempt of a lost task. The relay then knows that the last one was lost."""
        return task.attempt > self._lost.get(task.row, task.attempt) and self._lost.pop(task.row) > 0

    def message(self, *, everything: bool = False) -> Lost | None:
        """Return the lost attempts that were not reported on this connection, or (again) all of them."""
        untold, self._untold = self._untold, []
        rows = list(self._lost) if everything else [row for row in untold if row in self._lost]
        return Lost(rows=rows, attempts=[self._lost[row] for row in rows]) if rows else None

    def failed(self, task: TaskItem, item: ResultItem) -> ResultItem:
        """Return the result of a task that was lost for the last time, which says on which attempt."""
        text = on_attempt(item.text, task.attempt, self._allowed(task))
        times, where = (item.started_at, item.ended_at), (item.block_id, item.job_id)
        return ResultItem(item.row, item.task_id, item.code, text, b"", *times, *where)

    def _allowed(self, task: TaskItem) -> int:
        return allowed_attempts(task.max_attempts, self.default, self.most)
