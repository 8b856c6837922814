"""ThreadPoolEngine: tasks in threads of the user endpoint's own process.

For tasks that mostly wait, or must share memory. A running task cannot be killed: a cancelled one, or one over
its walltime, ends for the person at once while its thread goes on until the function returns. Another thread
replaces it, and no task waits behind it. Once MAX_ABANDONED such threads are running, waiting tasks fail.
Whatever a function does to its process, it does to the user endpoint.
Called by the user endpoint's loop.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mep_wire.errors import EngineFailed, MepError, TaskCancelled, WalltimeExceeded
from mep_wire.limits import MAX_PAYLOAD_BYTES
from mep_wire.messages import ResultItem
from user_endpoint.engines.base import OWN_PYTHON, EngineTask, Event, TaskReturned, TaskStarted
from user_endpoint.engines.process_pool.task_order import enqueue
from user_endpoint.engines.start_journals import StartJournals
from user_endpoint.workers import start_journal, task_main
from user_endpoint.workers.start_environment import use_own_commands, use_own_paths
from user_endpoint.workers.start_journal import StartJournal

MAX_ABANDONED: Final = 64
"""Threads of ended tasks that may go on before no other is started in their place."""


class ThreadPoolEngine:
    """See the module. Threads start as tasks need them, and are daemons: the process does not wait for them."""

    trouble = trouble_code = blocks = ""
    fed = False

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        notes: StartJournals | None = None,
        max_result_bytes: int = MAX_PAYLOAD_BYTES,
        data_directory: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker_python = OWN_PYTHON
        self._max_workers = max_workers or len(os.sched_getaffinity(0))
        self.capacity = 4 * self._max_workers
        self._max_result_bytes, self._clock = max_result_bytes, clock
        self._data_directory = data_directory
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._changed = threading.Condition()
        self._queue: deque[EngineTask] = deque()
        self._running: dict[int, tuple[EngineTask, float]] = {}  # row -> task, when it began
        self._events: list[Event] = []
        self._threads = self._waiting = self._abandoned = 0
        self._ending = False
        self._notes, self._begun_directory = notes, ""
        self._begun: StartJournal | None = None

    def start(self) -> None:
        """Import the runner now, so that the first task does not wait for it. Read which tasks were begun before."""
        import mep_sdk.task_runner  # noqa: F401

        use_own_paths()
        use_own_commands()
        task_main.install()
        if isinstance(sys.stdout, io.TextIOWrapper):  # what tasks print is in the log at once
            sys.stdout.reconfigure(line_buffering=True)
        if self._notes is not None and (directory := self._notes.begin()):
            self._begun_directory = directory
            with contextlib.suppress(OSError, start_journal.JournalClosed):  # a full disk: tasks run nevertheless
                start_journal.create(f"{directory}/threads", start_journal.PLAIN)
                self._begun = start_journal.StartJournal(f"{directory}/threads", start_journal.PLAIN)

    def fileno(self) -> int:
        """A pipe that threads write a byte to."""
        return self._read

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Queue these tasks, and start threads for them where there may be more."""
        with self._changed:
            if self._notes is not None:
                tasks = self._notes.without_begun(tasks, self._end)
            if self._ending:
                self._events += [TaskReturned(task.row) for task in tasks]
                return
            enqueue(self._queue, tasks)
            self._start_threads()
            self._changed.notify(len(tasks))
        self._wake()

    def _start_threads(self) -> None:
        """Start threads for waiting tasks. The caller holds the lock, as for the next two."""
        if self._abandoned >= MAX_ABANDONED and not self._threads:
            text = f"{self._abandoned} ended tasks still hold their threads, which cannot be killed"
            while self._queue:
                self._end(self._queue.popleft(), EngineFailed(reason=text))
            return
        room = self._max_workers - self._threads if self._abandoned < MAX_ABANDONED else 0
        for _ in range(min(len(self._queue) - self._waiting, room)):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _abandon(self, row: int, error: MepError) -> None:
        """End a running task for the person; its thread goes on and serves no other task."""
        self._end(self._running.pop(row)[0], error)
        self._threads -= 1
        self._abandoned += 1

    def cancel(self, rows: Sequence[int]) -> None:
        """End queued tasks; end running ones for the person, though their threads go on."""
        wanted = set(rows)
        with self._changed:
            for task in [task for task in self._queue if task.row in wanted]:
                self._end(task, TaskCancelled())
            self._queue = deque(task for task in self._queue if task.row not in wanted)
            for row in wanted & self._running.keys():
                self._abandon(row, TaskCancelled())
            self._start_threads()
        self._wake()

    def collect(self) -> list[Event]:
        """Return the reports of threads; end tasks that are over their walltime."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 65536)
        now = self._clock()
        with self._changed:
            over = [t for t, began in self._running.values() if t.walltime_s and now - began > t.walltime_s]
            for task in over:
                self._abandon(task.row, WalltimeExceeded(walltime_s=task.walltime_s))
            if over:
                self._start_threads()
            events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Return the queued tasks; each thread ends after its running task."""
        with self._changed:
            self._ending = True
            self._events += [TaskReturned(task.row) for task in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        self._wake()

    def stop(self, grace_s: float) -> None:
        """Let threads end that can within `grace_s` seconds. Those that cannot end with the process."""
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: not self._threads, timeout=grace_s)
            if self._notes is not None and self._begun_directory:
                self._notes.forget(self._begun_directory)
            if not self._threads and not self._abandoned:
                os.close(self._read)
                os.close(self._write)

    # --- in the threads -------------------------------------------------------------------------------

    def _work(self) -> None:
        from mep_sdk.task_runner import FunctionCache, run_task

        cache: FunctionCache = {}
        own_pid = os.getpid()
        while (task := self._next()) is not None:
            began = time.time()
            outcome = run_task(
                task.function,
                task.payload,
                max_result_bytes=self._max_result_bytes,
                cache=cache,
                data_directory=self._data_directory,
            )
            if os.getpid() != own_pid:  # the task forked, and its child came back here: it is no thread of the engine's
                os._exit(0)
            item = ResultItem(task.row, task.task_id, outcome.code, outcome.text, outcome.payload, began, time.time())
            with self._changed:
                if self._running.pop(task.row, None) is None:  # it has been ended for the person already
                    self._abandoned -= 1
                    return
                self._events.append(item)
            self._wake()

    def _next(self) -> EngineTask | None:
        with self._changed:
            self._waiting += 1
            while not self._queue and not self._ending:
                self._changed.wait()
            self._waiting -= 1
            if not self._queue:
                self._threads -= 1
                self._changed.notify_all()
                return None
            task = self._queue.popleft()
            self._running[task.row] = (task, self._clock())
            if self._begun is not None:
                self._begun.note(task.row, task.task_id, task.attempt)
            self._events.append(TaskStarted(task.row))
        self._wake()
        return task

    def _end(self, task: EngineTask, error: MepError) -> None:
        self._events.append(ResultItem(task.row, task.task_id, error.code, error.text, b"", 0.0, time.time()))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full, which wakes as well, or closed after `stop`
            os.write(self._write, b"\0")
