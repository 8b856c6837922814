"""One worker as the process engine sees it: its socket, and the tasks that were sent to it in order.

The engine keeps both ends of the task socket. A datagram that it reads back from the worker's end is a task
that the worker has not begun and never will; the kernel arbitrates, so there is no third case.
"""

from __future__ import annotations

import _socket
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from user_endpoint.engines.base import EngineTask, TaskOutput
from user_endpoint.workers import datagrams

if TYPE_CHECKING:
    from user_endpoint.workers.output_ring import RingReader
    from user_endpoint.workers.start_journal import JournalView

ANSWER = (int, str, str, bytes, float, float)
"""The fields of an answer: row, code, text, payload, time of its start and time of its end."""


class WorkerHandle:
    """A worker that was asked for; it may not have been forked yet, which makes no difference to its socket."""

    def __init__(self, number: int, now: float, slot: int = 0, view: JournalView | None = None) -> None:
        self.number, self.slot = number, slot
        self._view = view
        self._told = 0  # so many of the first of `sent` are known to have begun, and were told
        self.sock, self.worker_end = datagrams.pair()
        self.sock.setblocking(False)
        self.sent: deque[EngineTask] = deque()
        """Tasks sent and not answered: the first one runs, the others wait in the socket."""
        self.began = now
        """When the first of `sent` began, or when there was last nothing to do, by the engine's clock."""
        self.functions: set[str] = set()
        self.ending: str | None = None
        """The error code with which its task ends once it is dead, where we are killing it."""
        self.killed_at = 0.0
        """When that was ordered."""
        self.served = 0
        self.ring: RingReader | None = None
        """What its tasks print, once it has run one that is to be seen live."""

    def send(self, task: EngineTask, now: float) -> bool:
        """Send one task. Returns whether it went: there may be no room, or no descriptor left for a large one."""
        code = None if task.function_id in self.functions else task.function
        try:
            datagram = (task.row, task.task_id, task.function_id, code, task.payload, task.variables, task.attempt)
            datagrams.send(self.sock, datagram)
        except OSError:
            return False
        self.functions.add(task.function_id)
        if not self.sent:
            self.began = now
        self.sent.append(task)
        return True

    def newly_begun(self) -> list[int]:
        """Return the rows of tasks that have begun since the last call, from the worker's start journal.

        Where it makes none, the first task that it was sent is taken to have begun.
        """
        if not self.sent:
            return []
        begun = 1 if self._view is None else self._begun_by(self._view.last())
        rows = [self.sent[at].row for at in range(self._told, begun)]
        self._told = max(self._told, begun)
        return rows

    def _begun_by(self, last: int) -> int:
        for at, task in enumerate(self.sent):
            if task.row == last:
                return at + 1
        return 0

    def answered(self) -> EngineTask:
        """Take the first of `sent`, which has been answered."""
        self._told = max(0, self._told - 1)
        return self.sent.popleft()

    def take_back(self) -> list[EngineTask]:
        """Return, in order, the tasks that the worker has not begun; it will not see them."""
        rows: list[int] = []
        while True:
            try:
                # not O_NONBLOCK: that flag is the description's, which the worker shares and blocks on
                (row, _, function_id, code, *_), _ = datagrams.receive(self.worker_end, _socket.MSG_DONTWAIT)
            except (BlockingIOError, datagrams.PeerGone):
                break
            rows.append(row)
            if code is not None:
                self.functions.discard(function_id)
        if not rows:
            return []
        back = set(rows)
        taken = [task for task in self.sent if task.row in back]
        self.sent = deque(task for task in self.sent if task.row not in back)
        return taken

    def answers(self, limit: int) -> tuple[list[Any], bool]:
        """Return at most `limit` answers of the worker, and whether its socket still makes sense.

        A task can write to any descriptor of its process, so the shape of an answer is checked.
        """
        found: list[Any] = []
        try:
            while len(found) < limit:
                answer, descriptor = datagrams.receive(self.sock)
                if descriptor >= 0:
                    self._take_ring(answer, descriptor)
                    if answer == (datagrams.OUTPUT_RING,):
                        continue
                if type(answer) is not tuple or tuple(map(type, answer)) != ANSWER:
                    return found, False
                found.append(answer)
        except BlockingIOError:
            pass
        except datagrams.PeerGone:
            return found, False
        return found, True

    def _take_ring(self, answer: Any, descriptor: int) -> None:
        if answer != (datagrams.OUTPUT_RING,) or self.ring is not None:
            os.close(descriptor)
            return
        from user_endpoint.workers.output_ring import open_ring  # only tasks that are seen live need it

        self.ring = open_ring(descriptor)

    def output(self, most: int) -> list[TaskOutput]:
        """Return what the running task has printed since the last call, of each stream `most` bytes at most."""
        if self.ring is None or not self.sent:
            return []
        task = self.sent[0]
        return [TaskOutput(task.row, stream, at, data) for stream, at, data in self.ring.read(task.row, most)]

    def close(self) -> None:
        """Close both ends; a living worker reads end-of-file and exits."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        self.sock.close()
        self.worker_end.close()
