"""Which tasks this user endpoint holds, and how many more it asks for: the arithmetic of credit.

No socket, no clock, no engine: the user endpoint does what these sums say. The relay may send as many tasks
as it was granted; a new connection starts from nothing granted.
"""

from __future__ import annotations

from typing import Final

from mep_wire.messages import TaskItem

MAX_HELD_BYTES: Final = 128 * 1024 * 1024
"""Above this many payload bytes of held tasks no further task is requested, even if the engine has room."""


class CreditLedger:
    """Tasks that the relay may still send on this connection."""

    def __init__(self) -> None:
        self.outstanding = 0

    def reset(self) -> None:
        """A new connection: nothing is granted."""
        self.outstanding = 0

    def used(self, tasks: int) -> None:
        """The relay sent this many. Sending more than was granted earns it no further credit."""
        self.outstanding = max(0, self.outstanding - tasks)

    def grant(self, capacity: int, held: int) -> int:
        """Return how many to grant now, and count them as granted; 0 while a grant is not worth a message.

        While some credit is out, small grants wait until they are a quarter of the capacity.
        """
        missing = capacity - held - self.outstanding
        if missing <= 0 or (self.outstanding and missing < capacity // 4):
            return 0
        self.outstanding += missing
        return missing


class Ledger:
    """Tasks that came and have not ended."""

    def __init__(self) -> None:
        self.held: dict[int, TaskItem] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.held)

    def take(self, task: TaskItem) -> bool:
        """Hold a task. Returns False where it is held already: the relay may repeat itself."""
        if task.row in self.held:
            return False
        self.held[task.row] = task
        self.bytes += _size(task)
        return True

    def release(self, row: int) -> bool:
        """Stop holding it. Returns False if it was not held."""
        task = self.held.pop(row, None)
        if task is None:
            return False
        self.bytes -= _size(task)
        return True


def _size(task: TaskItem) -> int:
    return len(task.payload) + sum(map(len, task.inputs))
