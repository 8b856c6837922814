"""ProcessPoolEngine: tasks in worker processes on this host, forked by a small fork server.

Every task is one datagram to one worker, answered by one datagram. The engine therefore always knows which task
each worker runs. Tasks are queued at a worker only while their function is measured as short. They are taken back
as soon as another worker is idle, or the task before them turns out to be long.
A worker's death ends the one task it ran; the tasks it had not begun go to another worker. Called by the user
endpoint's loop, from its one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Final

from mep_wire.errors import EngineFailed, MepError, TaskCancelled, WalltimeExceeded, WorkerLost
from mep_wire.limits import MAX_PAYLOAD_BYTES
from mep_wire.messages import ResultItem
from user_endpoint import inherited_state
from user_endpoint.engines.base import OUTPUT_BYTES, OUTPUT_EVERY_S, EngineTask, Event, TaskReturned, TaskStarted
from user_endpoint.engines.process_pool.fork_server_link import KILL_S, START_S, ForkServerLink, ServerLost
from user_endpoint.engines.process_pool.limit_watch import MemoryWatch, describe_status
from user_endpoint.engines.process_pool.task_durations import FED, TaskDurations
from user_endpoint.engines.process_pool.task_order import enqueue
from user_endpoint.engines.process_pool.worker_handle import WorkerHandle
from user_endpoint.workers.datagrams import BEGUN_VARIABLE, NEED_FUNCTION
from user_endpoint.workers.fork_server import ServerHandle

if TYPE_CHECKING:
    from user_endpoint.engines.start_journals import StartJournals
    from user_endpoint.workers.start_journal import JournalView

_MOST_WAITING: Final = 256
_TURN: Final = 64
_MAX_FAILED_STARTS: Final = 5
_RESTART_DELAY_S: Final = 0.5
_LATE_S: Final = 0.5
"""No task waits at a worker for another that has run for longer than this."""
_SPARE_S: Final = 10.0
"""A worker that never had a task is ended after this: another takes a millisecond or two to fork."""
_WARM_S: Final = 300.0
"""One that had is kept longer, for the modules that the person's functions have imported."""


class ProcessPoolEngine:
    """See the module. `server` starts fork servers: one that runs already, and later ones after a loss."""

    trouble = trouble_code = blocks = ""

    def __init__(
        self,
        *,
        server: Callable[[], ServerHandle],
        max_workers: int | None = None,
        worker_log: str = "",
        directory: str = "",
        run_directory: str = "",
        run_in_sandbox: bool = False,
        max_tasks_per_child: int = 0,
        notes: StartJournals | None = None,
        max_result_bytes: int = MAX_PAYLOAD_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_server, self._clock = server, clock
        self._max_workers = max_workers or len(os.sched_getaffinity(0))
        where = (directory, run_directory, worker_log)
        self._configuration = (*where, max_result_bytes, run_in_sandbox, max_tasks_per_child)
        self._notes, self._begun_directory = notes, ""
        self._server: ForkServerLink | None = None
        self._memory = MemoryWatch()
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rung = False
        self._epoll.register(self._bell, select.EPOLLIN)
        self._queue: deque[EngineTask] = deque()
        self._workers: dict[int, WorkerHandle] = {}  # by number
        self._by_descriptor: dict[int, WorkerHandle] = {}
        self._events: list[Event] = []
        self._pace = TaskDurations()
        self._last_number = 0
        self._free_slots = list(range(self._max_workers))[::-1]
        self._failed_starts, self._not_before = 0, 0.0
        self._output_due: float | None = None
        """When to look at what tasks print; None while none of them is to be seen live."""
        self._draining = False

    # --- the contract ---------------------------------------------------------------------------------

    @property
    def worker_python(self) -> str:
        """The Python in which the fork server runs."""
        return self._server.python if self._server is not None else ""

    @property
    def capacity(self) -> int:
        """Running tasks, and as many waiting ones as the workers finish in about 50 ms."""
        return self._max_workers + self._pace.look_ahead(self._max_workers, _MOST_WAITING)

    @property
    def fed(self) -> bool:
        """Whether each worker that has tasks has enough of them waiting."""
        return all(not worker.sent or len(worker.sent) > FED for worker in self._workers.values())

    def start(self) -> None:
        """Start the fork server and one worker; others follow when there are tasks for them."""
        if self._notes is not None:
            self._begun_directory = self._notes.begin()
        try:
            self._start_server()
        except OSError as error:
            raise EngineFailed(reason=f"no worker processes: {error.strerror}") from error
        self._wait_for_server()
        self._spawn()

    def _wait_for_server(self) -> None:
        """Wait for the first server alone: the start of the user endpoint waits for it. Raises EngineFailed."""
        assert self._server is not None
        while not self._server.ready:
            ready = select.select([self._server], [], [], START_S)[0]
            try:
                list(self._server.reports()) if ready else self._server.check(self._clock() + START_S)
            except ServerLost as lost:
                self._server_ended(0.5)
                raise EngineFailed(reason=f"no worker processes: {lost}") from lost

    def fileno(self) -> int:
        """The descriptor of an epoll set over workers and fork server."""
        return self._epoll.fileno()

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Queue these tasks and send workers as many as they can take."""
        if self._notes is not None:
            tasks = self._notes.without_begun(tasks, self._end)
        if self._draining:
            self._events += [TaskReturned(task.row) for task in tasks]
        else:
            enqueue(self._queue, tasks)
            self._dispatch()
        self._ring()

    def cancel(self, rows: Sequence[int]) -> None:
        """End queued tasks at once, and running ones by killing their worker."""
        wanted = set(rows)
        for worker in list(self._workers.values()):
            if any(task.row in wanted for task in worker.sent):
                self._take_back(worker)
        kept: deque[EngineTask] = deque()
        for task in self._queue:
            if task.row in wanted:
                self._end(task, TaskCancelled())
            else:
                kept.append(task)
        self._queue = kept
        for worker in list(self._workers.values()):
            if worker.sent and worker.sent[0].row in wanted:
                self._events += map(TaskStarted, worker.newly_begun())  # else it would seem that none had begun
                self._kill_running(worker, TaskCancelled.code)
        self._dispatch()
        self._ring()

    def collect(self) -> list[Event]:
        """Read the workers' and the fork server's messages; enforce walltimes; hand out waiting tasks."""
        for descriptor, _ in self._epoll.poll(0):
            worker = self._by_descriptor.get(descriptor)
            if worker is not None:
                self._read_worker(worker)
            elif self._server is not None and descriptor == self._server.fileno():
                self._read_server()
        self._watch_server()
        for worker in self._workers.values():
            self._events += map(TaskStarted, worker.newly_begun())
        if self._output_due is not None and self._clock() >= self._output_due:
            self._read_output()
        self._enforce_walltimes()
        self._dispatch()
        self._retire()
        events, self._events = self._events, []
        if self._rung:
            self._rung = False
            os.eventfd_read(self._bell)
        return events

    def _ring(self) -> None:
        """Make the descriptor readable for events that a call has made."""
        if self._events and not self._rung:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    def drain(self) -> None:
        """Give back everything that has not started."""
        self._draining = True
        for worker in self._workers.values():
            self._take_back(worker)
        self._events += [TaskReturned(task.row) for task in self._queue]
        self._queue.clear()
        self._ring()

    def stop(self, grace_s: float) -> None:
        """Kill every worker, then the fork server."""
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._server is not None:
            self._server_ended(grace_s)
        if self._notes is not None and self._begun_directory:
            self._notes.forget(self._begun_directory)
        self._epoll.close()
        os.close(self._bell)

    # --- handing out ----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        now = self._clock()
        for worker in self._workers.values():
            if len(worker.sent) > 1 and now - worker.began > _LATE_S:
                self._take_back(worker)
        self._hand_out(now)
        if not self._draining and self._take_from_busy(now):
            self._hand_out(now)

    def _hand_out(self, now: float) -> None:
        queue = self._queue
        while queue and (worker := self._idle_worker(now)) is not None:
            if not worker.send(queue[0], now):
                return
            queue.popleft()
        if queue:
            self._hand_out_behind(now)

    def _hand_out_behind(self, now: float) -> None:
        """Have short tasks wait behind short ones, each at the worker with the fewest."""
        queue = self._queue
        found = [
            (len(worker.sent), worker.number, worker)
            for worker in self._workers.values()
            if worker.ending is None and worker.sent and now - worker.began < _LATE_S and self._all_short(worker)
        ]
        heapify(found)
        while queue and found and not queue[0].walltime_s:
            waiting, number, worker = found[0]
            if waiting >= self._pace.depth(queue[0].function_id) or not worker.send(queue[0], now):
                return
            queue.popleft()
            heapreplace(found, (waiting + 1, number, worker))

    def _take_from_busy(self, now: float) -> bool:
        """Take back tasks queued behind a worker's running task, if another worker is idle; return whether any were."""
        if self._queue:
            return False
        victims = [worker for worker in self._workers.values() if len(worker.sent) > 1]
        if not victims or self._idle_worker(now) is None:
            return False
        self._take_back(max(victims, key=lambda worker: len(worker.sent)))
        return bool(self._queue)

    def _idle_worker(self, now: float) -> WorkerHandle | None:
        for worker in self._workers.values():
            if not worker.sent and worker.ending is None:
                return worker
        ready = self._server is not None and self._server.ready
        if ready and len(self._workers) < self._max_workers and now >= self._not_before:
            return self._spawn()
        return None

    def _all_short(self, worker: WorkerHandle) -> bool:
        return all(map(self._pace.is_short, {task.function_id for task in worker.sent}))

    def _take_back(self, worker: WorkerHandle) -> None:
        self._queue.extendleft(reversed(worker.take_back()))

    # --- messages of workers --------------------------------------------------------------------------

    def _read_worker(self, worker: WorkerHandle) -> None:
        answers, sound = worker.answers(_TURN)
        now = self._clock()
        if worker.ring is not None and self._output_due is None:
            self._output_due = now + OUTPUT_EVERY_S
        for row, code, text, payload, started, ended in answers:
            if not worker.sent or worker.sent[0].row != row:
                sound = False
                break
            task = worker.answered()
            worker.began = now
            if code == NEED_FUNCTION:
                worker.functions.discard(task.function_id)
                self._queue.appendleft(task)
                continue
            worker.served += 1
            self._failed_starts = 0
            self._pace.measured(task.function_id, ended - started)
            self._events.append(ResultItem(row, task.task_id, code, text, payload, started, ended))
        if not sound and worker.ending is None:
            self._kill(worker, WorkerLost.code)

    def _read_output(self) -> None:
        """Report what running tasks have printed, where that is wanted."""
        live = [worker for worker in self._workers.values() if worker.ring is not None]
        for worker in live:
            self._events += worker.output(OUTPUT_BYTES // (2 * len(live)))
        self._output_due = self._clock() + OUTPUT_EVERY_S if live else None

    def _read_server(self) -> None:
        assert self._server is not None
        try:
            for report in self._server.reports():
                match report:
                    case ("ended", int(number), int(status), str(reason)) if number in self._workers:
                        self._worker_ended(
                            self._workers[number], reason or self._memory.explain(describe_status(status))
                        )
        except ServerLost as lost:
            self._server_lost(str(lost))

    def _worker_ended(self, worker: WorkerHandle, reason: str, *, by_itself: bool = True) -> None:
        self._read_worker(worker)
        self._take_back(worker)
        self._events += worker.output(OUTPUT_BYTES // 2)  # no result brings it
        for task in worker.sent:  # begun and not answered: one task at most
            self._lost(task, worker.ending, reason)
        if by_itself and not worker.served and not worker.sent and worker.ending is None:
            self._start_failed(reason)
        worker.sent.clear()
        self._forget(worker)

    def _lost(self, task: EngineTask, ending: str | None, reason: str) -> None:
        if ending == WalltimeExceeded.code:
            self._end(task, WalltimeExceeded(walltime_s=task.walltime_s))
        elif ending == TaskCancelled.code:
            self._end(task, TaskCancelled())
        else:
            self._end(task, WorkerLost(reason=reason))

    def _start_failed(self, reason: str) -> None:
        """Worker or fork server ended before it had served anything: wait ever longer, and give up after a few."""
        self._not_before = self._clock() + _RESTART_DELAY_S * self._failed_starts
        self._failed_starts += 1
        if self._failed_starts < _MAX_FAILED_STARTS:
            return
        while self._queue:
            self._end(self._queue.popleft(), EngineFailed(reason=f"workers end before they run anything: {reason}"))
        self._failed_starts = 0

    def _end(self, task: EngineTask, error: MepError) -> None:
        self._events.append(ResultItem(task.row, task.task_id, error.code, error.text, b"", 0.0, time.time()))

    # --- ending workers -------------------------------------------------------------------------------

    def _enforce_walltimes(self) -> None:
        now = self._clock()
        for worker in list(self._workers.values()):
            if worker.ending is not None and now - worker.killed_at > KILL_S:
                self._give_up(worker)
            elif worker.sent and worker.ending is None:
                limit = worker.sent[0].walltime_s
                if limit and now - worker.began > limit:
                    self._take_back(worker)  # unread tasks have not begun: walltime doesn't concern them
                    self._kill_running(worker, WalltimeExceeded.code)

    def _kill_running(self, worker: WorkerHandle, code: str) -> None:
        """Kill a worker for its running task, unless the task has just ended. No task may be queued at the worker."""
        if not worker.sent:
            return
        row = worker.sent[0].row
        self._read_worker(worker)
        if worker.ending is None and len(worker.sent) == 1 and worker.sent[0].row == row:
            self._kill(worker, code)

    def _kill(self, worker: WorkerHandle, code: str) -> None:
        worker.ending, worker.killed_at = code, self._clock()
        if self._server is not None:
            self._server.order(("kill", worker.number, int(signal.SIGKILL)))
            self._server.ask(worker.killed_at)

    def _give_up(self, worker: WorkerHandle) -> None:
        """End the task of a worker that does not die: a process that waits for a dead file system cannot."""
        self._take_back(worker)
        for task in worker.sent:
            self._lost(task, worker.ending, "its process could not be ended")
        worker.sent.clear()
        self._forget(worker)

    def _retire(self) -> None:
        """End workers that have been idle for a while, to free their memory."""
        now = self._clock()
        for worker in list(self._workers.values()):
            if not worker.sent and now - worker.began > (_WARM_S if worker.served else _SPARE_S):
                self._forget(worker)

    def _forget(self, worker: WorkerHandle) -> None:
        del self._workers[worker.number]
        self._free_slots.append(worker.slot)
        del self._by_descriptor[worker.sock.fileno()]
        self._epoll.unregister(worker.sock.fileno())
        worker.close()

    # --- the fork server ------------------------------------------------------------------------------

    def _start_server(self) -> None:
        """Start a fork server, and wait for nothing. Raises OSError."""
        self._server = ForkServerLink(self._new_server(), self._clock())
        self._epoll.register(self._server.fileno(), select.EPOLLIN)
        ours = (dict(os.environ), inherited_state.umask(), inherited_state.open_files())
        surroundings = (None, None, None) if self._server.own_environment else ours
        self._server.order(("configure", surroundings, *self._configuration))

    def _watch_server(self) -> None:
        """Give up a fork server that does not answer; start one if there is none and a task waits."""
        now = self._clock()
        if self._server is not None:
            try:
                self._server.check(now)
            except ServerLost as lost:
                self._server_lost(str(lost))
        elif self._queue and now >= self._not_before:
            try:
                self._start_server()
            except OSError as error:
                self._start_failed(f"no fork server: {error.strerror}")

    def _server_lost(self, reason: str) -> None:
        """The fork server is gone, and every worker with it."""
        self._server_ended(0)
        for worker in list(self._workers.values()):
            self._worker_ended(worker, reason, by_itself=False)  # one loss, however many workers go with it
        self._start_failed(reason)
        self._watch_server()

    def _server_ended(self, grace_s: float) -> None:
        assert self._server is not None
        self._epoll.unregister(self._server.fileno())
        self._server.stop(grace_s)
        self._server = None

    def _spawn(self) -> WorkerHandle | None:
        server = self._server
        assert server is not None
        self._last_number += 1
        slot = self._free_slots[-1]
        variables, processors, view = self._place(slot)
        try:
            worker = WorkerHandle(self._last_number, self._clock(), slot, view)
        except OSError as error:
            self._start_failed(f"no socket: {error.strerror}")
            return None
        self._free_slots.pop()
        if variables or processors:
            server.order(("bind", worker.number, variables, processors))
        self._workers[worker.number] = worker
        self._by_descriptor[worker.sock.fileno()] = worker
        self._epoll.register(worker.sock.fileno(), select.EPOLLIN)
        if not server.order(("spawn", worker.number), worker.worker_end.fileno()):
            self._forget(worker)  # it no longer reads orders, and its silence will show that
            return None
        server.ask(self._clock())
        return worker

    def _place(self, slot: int) -> tuple[dict[str, str], list[int], JournalView | None]:
        """Return the binding of this worker: variables, processors (none: all), and the path of its start journal."""
        if not self._begun_directory:
            return {}, [], None
        from user_endpoint.workers import start_journal

        path = f"{self._begun_directory}/p.{slot}"
        try:
            with contextlib.suppress(FileExistsError):
                start_journal.create(path, start_journal.PLAIN)
            return {BEGUN_VARIABLE: f"{start_journal.PLAIN}:{path}"}, [], start_journal.JournalView(path)
        except (OSError, ValueError):  # a full disk: tasks run nevertheless
            return {}, [], None
