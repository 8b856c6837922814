"""GlobusComputeEngine: tasks in blocks of workers that Parsl's providers start, by Parsl's HighThroughputExecutor.

This module runs on the user endpoint's one thread. It sends tasks, reads reports, and decides which tasks are lost
when a process dies. blocks.py starts and watches blocks, on a thread. This module imports Parsl, and
is therefore imported only when a template asks for it.

A task that no worker has begun is never lost: it is sent again. A task that had begun ends with WORKER_LOST, and
the user endpoint decides by its attempts whether to run it again. The engine learns which tasks workers have begun
from reports and, if a report was never sent, from the workers' start journals. The journals also fence off nodes that
were given up (start_journals.py). Both need a file system that this host and the nodes share.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import select
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mep_wire.errors import EngineFailed, MepError, TaskCancelled, UserEndpointLost, WalltimeTooLong, WorkerLost
from mep_wire.limits import MAX_PAYLOAD_BYTES
from mep_wire.messages import ResultItem
from user_endpoint.descriptors import check_interchange
from user_endpoint.engines.base import EngineOver, EngineTask, Event, TaskOutput, TaskReturned, TaskStarted
from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.blocks import (
    BlockLost,
    Blocks,
    BlocksFailed,
    BlockTrouble,
    ExecutorReady,
    InterchangeRestarted,
)
from user_endpoint.engines.htex.executor import InterchangeClient
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.engines.htex.walltimes import fits
from user_endpoint.engines.process_pool.task_durations import TaskDurations
from user_endpoint.engines.start_journals import StartJournals
from user_endpoint.run_directory import make_below
from user_endpoint.settings import GlobusComputeSettings as Settings

_log = logging.getLogger(__name__)
_TURN: Final = 256
_ATTEMPT_BITS: Final = 15
"""A task's number for the executor is its row and, in these lowest bits, which attempt it is."""
_MOST_WAITING: Final = 64
_MOST_UNSTARTED_LOSSES: Final = 5
"""Times a task may be lost before any node reported its start; after that it is assumed to kill the nodes."""
_MOST_UNFIT: Final = 2
"""New blocks that may have too little left for a task, which then fits none."""


@dataclass(slots=True)
class _Held:
    """A task that the interchange or a node has."""

    task: EngineTask
    started: bool = False
    cancelled: bool = False
    losses: int = 0
    unfit: int = 0
    """Blocks that had too little left for it when they were just up."""
    failing: MepError | None = None
    """The error to end with if no worker has begun it. Its node or interchange was asked to return it."""


class HtexEngine:
    """See the module. `run_directory` is the user endpoint's own; blocks on other hosts must see it too."""

    fed = False

    def __init__(
        self,
        settings: Settings,
        *,
        run_directory: str,
        max_result_bytes: int = MAX_PAYLOAD_BYTES,
        report_location: bool = False,
    ) -> None:
        self._settings, self._report_location = settings, report_location
        self._max_result_bytes = max_result_bytes
        self._directory = Path(run_directory).resolve() / "htex"
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._plan = Plan(settings)
        check_interchange(self._plan.most_pools)
        self._notes = StartJournals(str(self._directory.parent))
        self.worker_python = self.trouble = self.trouble_code = ""
        self._blocks = Blocks(settings, self._plan, self._directory, self._notes, self._ring)
        self._client: InterchangeClient | None = None
        self._waiting: list[_Held] = []
        self._held: dict[int, _Held] = {}  # by our number
        self._numbers: dict[int, int] = {}  # row -> our number
        self._timed: dict[int, float] = {}  # row -> walltime, of those that have not begun
        self._attempts = 0
        self._events: list[Event] = []
        self._pace = TaskDurations()
        self._slots = self._plan.expected_slots(settings)
        self._draining = False
        self._broken: MepError | None = None
        self._broken_until = 0.0

    # --- the contract ---------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """What every block together can run, and as many waiting as they finish in about 50 ms."""
        return self._slots + self._pace.look_ahead(self._slots, _MOST_WAITING)

    @property
    def blocks(self) -> str:
        """The blocks with their jobs and states."""
        return self._blocks.listing()

    def start(self) -> None:
        """Begin to start the executor, and as many blocks as the provider's init_blocks says."""
        before = self._directory.with_name("htex-before")
        if self._directory.exists():  # scripts, keys and logs of an earlier process, which its nodes may still write
            shutil.rmtree(before, ignore_errors=True)
            self._directory.rename(before)
            shutil.rmtree(before, ignore_errors=True)
        make_below(str(self._directory.parent), str(self._directory))
        self._blocks.start()

    def fileno(self) -> int:
        """The descriptor of an epoll set over the executor's results and the blocks' news."""
        return self._epoll.fileno()

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Send these tasks on, or keep them until the executor is ready."""
        if self._draining:
            self._events += [TaskReturned(task.row) for task in tasks if not self._was_begun(_Held(task))]
            self._ring()
            return
        self._send([_Held(task) for task in tasks])

    def _fits(self, held: _Held) -> bool:
        """Tell whether some block could run a task of this walltime."""
        return fits(self._plan.block_walltime_s, held.task.walltime_s)

    def _may_run(self, held: _Held) -> bool:
        """Return whether a task may be handed over; if not, end it. The journals of earlier processes are known."""
        if self._was_begun(held):
            return False
        if not self._fits(held):
            reason = f"blocks run for {self._plan.block_walltime_s:g} s, and a little of that is needed to begin"
            self._end(held, WalltimeTooLong(walltime_s=held.task.walltime_s, reason=reason))
            return False
        return True

    def cancel(self, rows: Sequence[int]) -> None:
        """End these tasks: at once where they wait, by killing the worker where they run."""
        wanted = set(rows)
        kept = []
        for held in self._waiting:
            if held.task.row in wanted:
                self._end(held, TaskCancelled())
            else:
                kept.append(held)
        self._waiting = kept
        numbers = [self._numbers[row] for row in wanted if row in self._numbers]
        if numbers and self._client is not None:
            self._client.say(protocol.Cancel(numbers))
        for number in numbers:
            self._held[number].cancelled = True
            if self._settings.launch_cmd is not None:  # Parsl's own pool cannot end it: its answer is dropped
                self._end(self._held[number], TaskCancelled())
                self._forget(number)
        if self._events:
            self._ring()

    def collect(self) -> list[Event]:
        """Return the nodes' reports and the blocks' changes of state."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        for block_event in self._blocks.take_events():
            self._handle(block_event)
        if self._client is not None:
            self._client.flush()
            frames = self._client.hear(_TURN)
            for frame in frames:
                self._decode(frame)
            if len(frames) == _TURN:
                self._ring()
        events, self._events = self._events, []
        if events:
            self._want()
        return events

    def _want(self) -> None:
        waiting = sum(map(self._fits, self._waiting))
        self._blocks.want(waiting + len(self._held), self._timed.values())

    def drain(self) -> None:
        """Give back everything that has not started."""
        self._draining = True
        self._events += [TaskReturned(held.task.row) for held in self._waiting]
        self._waiting = []
        if self._client is not None:
            self._client.say(protocol.Drain())
        self._ring()

    def stop(self, grace_s: float) -> None:
        """End every block and the interchange."""
        if self._client is not None:
            self._client.say(protocol.Leave())
        self._blocks.stop(grace_s)
        if self._client is not None:
            self._notes.forget(self._client.begun_directory)
        self._drop_client()
        for block_event in self._blocks.take_events():
            if isinstance(block_event, ExecutorReady):
                block_event.client.close_task_sockets()
        self._epoll.close()
        os.close(self._bell)

    # --- out ------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        """Make the descriptor readable. Called from the blocks' thread too."""
        with contextlib.suppress(OSError):  # after stop, from a thread that is ending
            os.eventfd_write(self._bell, 1)

    def _send(self, tasks: list[_Held]) -> None:
        if self._broken is not None and time.monotonic() < self._broken_until:
            for held in tasks:
                self._end_unsent(held, self._broken)
            self._ring()
            return
        if self._notes.known:
            tasks = [held for held in tasks if self._may_run(held)]
        # No block is started for one that fits none.
        timed = [held.task for held in tasks if held.task.walltime_s and self._fits(held)]
        self._timed |= {task.row: task.walltime_s for task in timed}
        if self._client is None:
            self._waiting += tasks
        else:
            self._hand_over(self._client, tasks)
        if self._events:
            self._ring()
        self._want()

    def _hand_over(self, client: InterchangeClient, tasks: list[_Held]) -> None:
        packed = []
        for held in tasks:
            row = held.task.row
            self._attempts += 1
            number = row << _ATTEMPT_BITS | self._attempts % (1 << _ATTEMPT_BITS)
            self._held[number], self._numbers[held.task.row] = held, number
            packed.append((number, self._packed(number, held.task), held.task.walltime_s, held.task.priority))
        if packed:
            client.say(protocol.Queue(packed))

    def _was_begun(self, held: _Held) -> bool:
        """Tell whether an earlier process of this user endpoint had begun this attempt; if so, it is lost, and ends."""
        if not self._notes.was_begun(held.task.task_id, held.task.attempt):
            return False
        self._end(held, UserEndpointLost(reason="it was killed"))
        return True

    def _end_unsent(self, held: _Held, error: MepError) -> None:
        """End a task that this process has not handed over. An earlier one's worker may have begun it."""
        if self._was_begun(held):
            return
        if not self._notes.known:
            doubt = f"it cannot be read whether an earlier one had begun the task, and this one failed: {error.text}"
            error = UserEndpointLost(reason=doubt)
        self._end(held, error)

    def _packed(self, number: int, task: EngineTask) -> bytes:
        return protocol.encode(
            protocol.HtexTask(
                number,
                task.task_id,
                task.function_id,
                task.function,
                task.payload,
                task.walltime_s,
                self._max_result_bytes,
                task.resource_spec,
                task.attempt,
                str(self._directory.with_name("data")),
            )
        )

    # --- in -------------------------------------------------------------------------------------------

    def _decode(self, frame: bytes) -> None:
        if not protocol.is_ours(frame):
            self._stock(pickle.loads(frame))  # noqa: S301 - from our own interchange, encrypted
            return
        message = protocol.decode_to_client(frame)
        if isinstance(message, protocol.Registered):
            self._registered(message)
            return
        location = self._blocks.location(message.block_id) if self._report_location and message.block_id else ("", "")
        for number in message.started:
            if (held := self._held.get(number)) is not None and not held.started:
                held.started = True
                self._timed.pop(held.task.row, None)
                self._events.append(TaskStarted(held.task.row, *location))
        for each in message.output:  # before the results, which end their tasks
            if (held := self._held.get(each.row)) is not None:
                self._events.append(TaskOutput(held.task.row, each.stream, each.position, each.data))
        for result in message.results:
            self._result(result, location, of_node=bool(message.block_id))
        for number in message.returned:
            if (held := self._forget(number)) is not None:
                self._again(held)
        if message.lost:
            why = "its block was ended by the scheduler" if message.leaving else "the node or block that had it is gone"
            self._lost_together(message.lost, self._begun_in(message.pool), why)
        if message.leaving:
            self._blocks.node_left()

    def _registered(self, message: protocol.Registered) -> None:
        self._broken, self.trouble = None, ""
        self.worker_python = message.python
        self._slots = message.workers * self._plan.most_pools
        if self._blocks.registered(message.block_id, message.workers, message.left_s) and message.left_s is not None:
            self._end_what_fits_no_block(message.left_s)

    def _end_what_fits_no_block(self, left_s: float) -> None:
        """End tasks for which block after block has too little left as soon as its workers are up."""
        for row in [row for row, walltime_s in self._timed.items() if not fits(left_s, walltime_s)]:
            held = self._held.get(self._numbers.get(row, -1))
            if held is None:
                continue
            held.unfit += 1
            if held.unfit >= _MOST_UNFIT and self._client is not None:
                reason = f"{left_s:.0f} s were left of the last {held.unfit} blocks when their workers were up"
                self._ask_back([self._numbers[row]], WalltimeTooLong(walltime_s=held.task.walltime_s, reason=reason))

    def _result(self, result: protocol.Result, location: tuple[str, str] = ("", ""), *, of_node: bool = True) -> None:
        """Take a task's end. `of_node`: a node says it, and not the interchange of a task that no node has."""
        held = self._forget(result.id)
        if held is None:
            return
        task = held.task
        if result.started_at:
            self._pace.measured(task.function_id, result.ended_at - result.started_at)
        if result.code == TaskCancelled.code and held.failing is not None and not held.cancelled:
            # A node reports no start of a task that ends in the same report.
            begun = held.started or of_node
            self._end(held, WorkerLost(reason=f"it was killed: {held.failing.text}") if begun else held.failing)
            return
        text = result.text or (TaskCancelled().text if result.code == TaskCancelled.code else "")
        self._events.append(
            ResultItem(
                task.row, task.task_id, result.code, text, result.payload, result.started_at, result.ended_at, *location
            )
        )

    def _stock(self, message: dict[str, Any]) -> None:
        """Handle an answer of Parsl's own worker pool, which reports no starts: any task it was sent may have run."""
        from parsl.serialize import deserialize

        number = message["task_id"]
        if "result" in message:
            self._result(protocol.decode_result(deserialize(message["result"])))
            return
        held = self._forget(number)
        if held is not None:
            held.started = True
            self._lost(held, str(getattr(deserialize(message["exception"]), "e_value", "its worker failed")))

    def _forget(self, number: int) -> _Held | None:
        held = self._held.pop(number, None)
        if held is not None:
            self._numbers.pop(held.task.row, None)
            self._timed.pop(held.task.row, None)
        return held

    # --- ends -----------------------------------------------------------------------------------------

    def _begun_in(self, pool: str) -> set[int]:
        """Return the tasks that a pool's workers have begun, which may be more than its last report says.

        From here on they can't begin another, even if the pool is alive and only unreachable.
        """
        if self._client is None or not pool:
            return set()
        try:
            return self._notes.close_pool(self._client.begun_directory, pool)
        except OSError as error:
            _log.warning("notes of pool=%s cannot be read error=%s: its tasks are taken to have begun", pool, error)
            return set(self._held)

    def _lost_together(self, numbers: list[int], begun: set[int], reason: str) -> None:
        """Tasks were lost with the pool or block that held them."""
        for number in numbers:
            if (held := self._forget(number)) is not None:
                held.started = held.started or number in begun
                self._lost(held, reason)

    def _lost(self, held: _Held, reason: str) -> None:
        """A task was lost with the pool or block that held it: decide by whether it had started."""
        if held.cancelled:
            self._end(held, TaskCancelled())
            return
        if not held.started and held.failing is not None:
            self._end(held, held.failing)
            return
        if not held.started:
            held.losses += 1
            if held.losses < _MOST_UNSTARTED_LOSSES:
                self._again(held)
                return
        self._end(held, WorkerLost(reason=reason))

    def _again(self, held: _Held) -> None:
        if held.cancelled:
            self._end(held, TaskCancelled())
        elif held.failing is not None:
            self._end(held, held.failing)
        elif self._draining:
            self._events.append(TaskReturned(held.task.row))
        else:
            self._send([held])

    def _end(self, held: _Held, error: MepError) -> None:
        task = held.task
        self._timed.pop(task.row, None)
        self._events.append(ResultItem(task.row, task.task_id, error.code, error.text, b"", 0.0, time.time()))

    # --- news of blocks -------------------------------------------------------------------------------

    def _handle(self, block_event: object) -> None:
        match block_event:
            case ExecutorReady(client):
                self._client, self.trouble = client, ""
                self._epoll.register(client.descriptor(), select.EPOLLIN)
                waiting, self._waiting = self._waiting, []
                self._hand_over(client, [held for held in waiting if self._may_run(held)])
            case BlockLost(block_id):
                if self._client is not None:
                    self._client.say(protocol.BlockEnded(block_id))
            case InterchangeRestarted(begun):
                self._take_last_results()
                self._drop_client()
                self._lost_together(list(self._held), begun, "Parsl's interchange was killed")
            case BlockTrouble(text, code):
                self.trouble, self.trouble_code = text, code
            case BlocksFailed(error, until, begun):
                self._give_up(error, until, begun)

    def _take_last_results(self) -> None:
        """Take the results that the interchange sent before it died. Its reports of losses are outdated and ignored."""
        while self._client is not None and (frames := self._client.hear(_TURN)):
            for frame in frames:
                if protocol.is_ours(frame) and isinstance(
                    report := protocol.decode_to_client(frame), protocol.WorkerReport
                ):
                    for result in report.results:
                        self._result(result)

    def _drop_client(self) -> None:
        if self._client is not None:
            self._epoll.unregister(self._client.descriptor())
            self._client.close_task_sockets()
            self._client = None

    def _give_up(self, error: MepError, until: float, begun: set[int] | None) -> None:
        """End all waiting tasks, and those that come before `until`. Tasks that workers have begun are not affected."""
        self._broken = error if isinstance(error, EngineFailed) else EngineFailed(reason=error.text)
        self._broken_until = until
        waiting, self._waiting = self._waiting, []
        for held in waiting:
            self._end_unsent(held, error)
        if math.isinf(until):
            self._take_last_results()
            for held in self._held.values():
                held.failing = error
            self._lost_together(list(self._held), set(self._held) if begun is None else begun, error.text)
            self._drop_client()
            self._events.append(EngineOver(self._broken.code, self._broken.text))
        else:
            self._ask_back([number for number, held in self._held.items() if not held.started], error)

    def _ask_back(self, numbers: list[int], error: MepError) -> None:
        """Have these tasks given back, and end with this error those that no worker has begun."""
        for number in numbers:
            held = self._held[number]
            held.failing = held.failing or error
            self._timed.pop(held.task.row, None)
        if numbers and self._client is not None:
            self._client.say(protocol.Cancel(numbers))
