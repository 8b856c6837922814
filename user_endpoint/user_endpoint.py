"""The user endpoint itself: handles each message of the relay and each event of the engine.

Every task that comes is either given back unstarted or ends in one result, which stays spooled until the relay
has it on its disk. Messages of one turn of the loop leave together. It trusts the relay (pinned key) to send
its own person's tasks; it still checks the allow-list and the size of results. Called by the loop alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mep_link.client import LinkClient
from mep_wire import PROTOCOL_VERSION, messages
from mep_wire.data_frames import MAY_BE_DATA
from mep_wire.errors import (
    DataUnavailable,
    EngineFailed,
    FunctionCodeChanged,
    JoinRefused,
    MepError,
    ResultTooLarge,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
)
from mep_wire.limits import MAX_PAYLOAD_BYTES, MAX_PUBLIC_TEXT
from mep_wire.waits import SENTENCES, WaitCode
from user_endpoint.bounded_log import BoundedLog
from user_endpoint.credit import MAX_HELD_BYTES, CreditLedger, Ledger
from user_endpoint.data_cache import DataCache
from user_endpoint.data_transfers import DataTransfers, needs_pieces
from user_endpoint.deadlines import RunningDeadlines
from user_endpoint.descriptors import Headroom
from user_endpoint.engines.base import (
    OUTPUT_EVERY_S,
    Engine,
    EngineOver,
    EngineTask,
    TaskOutput,
    TaskReturned,
    TaskStarted,
)
from user_endpoint.figures_page import FiguresPage
from user_endpoint.function_store import Functions
from user_endpoint.keeper_report import Reporter, StartFailure
from user_endpoint.lifecycle.idle import IdleRule
from user_endpoint.lifecycle.shutdown import Stopping
from user_endpoint.lost_attempts import LOSSES, Attempts
from user_endpoint.result_spool import Spool
from user_endpoint.task_admission import Admission, FunctionList, Refusals, Serializers

DRAINING: Final = (
    "This process is being drained by the site's administrators: it finishes its running tasks and takes no others. "
    "Your tasks wait for the next one."
)
RESULT_BATCH_BYTES: Final = 8 * 1024 * 1024
RESULT_BATCH: Final = 4096
RESEND_BATCHES: Final = 4
"""Batches of spooled results sent at once after a welcome; each confirmation brings the next."""
MAX_NOTICES: Final = 16
"""Functions about which the administrator is told. The keeper listens to a bounded number of reports."""
GATHER_TASKS: Final = 32
MAX_LOGGED_TEXT: Final = 500
_LEVELS: Final = {
    TaskFailed.code: "INFO", TaskCancelled.code: "INFO", TaskExpired.code: "INFO", EngineFailed.code: "ERROR"
}  # fmt: skip
"""Log levels of ends by code: the first three say nothing against the endpoint. Others are warnings."""
OUTPUT_BYTES: Final = 256 * 1024
"""The most of what tasks print that is sent in OUTPUT_EVERY_S; the rest is left out."""
GATHER_S: Final = 0.001
"""While this many tasks are held, results are sent at most once in this time. A lone result is sent at once."""


class UserEndpoint:
    """See the module. The loop calls `take`, `collect` and `flush` in each turn, and `tick` when time passes."""

    def __init__(
        self,
        *,
        uep_id: str,
        join_token: bytes,
        endpoint_id: str,
        allowed_functions: tuple[FunctionList, ...],
        check_resources: Callable[[bytes], None] = lambda _spec: None,
        serializers: Serializers | None = None,
        engine: Engine,
        functions: Functions,
        spool: Spool,
        idle: IdleRule,
        reporter: Reporter,
        log: BoundedLog,
        attempts: Attempts | None = None,
        headroom: Headroom | None = None,
        data_directory: str = "",
        page: FiguresPage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uep_id, self._token = uep_id, join_token
        self._engine, self._spool, self._idle = engine, spool, idle
        self._reporter, self._log, self._clock = reporter, log, clock
        self.link: LinkClient[messages.ToUep] | None = None
        self._ledger, self._credit = Ledger(), CreditLedger()
        self._attempts = Attempts() if attempts is None else attempts
        self._headroom = Headroom(clock) if headroom is None else headroom
        self._page = FiguresPage(-1) if page is None else page
        self._deadlines = RunningDeadlines()
        self._functions = functions
        self._admission = Admission(endpoint_id, allowed_functions, check_resources, serializers, functions)
        self._max_result_bytes = MAX_PAYLOAD_BYTES
        self._joins_sent, self._enrolled, self._ready = 0, False, False
        self.stopping: Stopping | None = None
        self._resending: Iterator[list[messages.ResultItem]] = iter(())
        self._was_full = False
        self._to_run: list[EngineTask] = []
        self._begun: dict[int, tuple[str, str]] = {}  # and not ended: each welcome tells them again
        self._started: dict[int, tuple[str, str]] = {}  # of those, the ones not reported yet
        self._changed: set[str] = set()
        self._told_trouble, self._trouble_code, self._trouble_since = "", "", 0.0
        self._returned: list[int] = []
        self._results: list[messages.ResultItem] = []
        self._flushed_at = -GATHER_S
        self._takes_output, self._printed_bytes, self._printed_since = False, 0, 0.0
        self._data = self._transfers(DataCache(data_directory)) if data_directory else None

    def _transfers(self, cache: DataCache) -> DataTransfers:
        return DataTransfers(
            cache,
            self._log,
            send=self._sent,
            ready=self._run_with_data,
            failed=self._fail,
            bring=lambda item: self._send(messages.Results(items=[item])),
            replace=self._replace,
            is_held=lambda row: row in self._ledger.held,
            clock=self._clock,
        )

    # --- the relay ------------------------------------------------------------------------------------

    def hello(self) -> messages.Join | messages.UepHello:
        """Return the first message of a connection: the join token until it has worked, then who we are."""
        self._credit.reset()
        self._told_trouble = ""
        default, most = self._attempts.default, self._attempts.most
        if self._enrolled:
            gathered = [item.row for item in self._results]
            held = list(dict.fromkeys([*self._ledger.held, *gathered, *self._spool.rows]))
            return messages.UepHello(
                protocol=PROTOCOL_VERSION,
                uep_id=self._uep_id,
                held=held,
                default_attempts=default,
                most_attempts=most,
                takes_inputs=True,
            )
        self._joins_sent += 1
        return messages.Join(
            protocol=PROTOCOL_VERSION,
            uep_id=self._uep_id,
            token=self._token,
            held=self._spool.rows,
            default_attempts=default,
            most_attempts=most,
            takes_inputs=True,
        )

    def take(self, received: Iterable[messages.ToUep]) -> None:
        """Handle the relay's messages."""
        for message in received:
            match message:
                case messages.Tasks():
                    self._take_tasks(message)
                case messages.ResultsDurable():
                    self._spool.durable(message.rows)
                    self._resend()
                    self._idle.moved(self._clock())
                case messages.LossesDurable():
                    for row in self._attempts.known(message):
                        self._ledger.release(row)
                case messages.CancelTasks():
                    self._submit()
                    self._cancel(message.rows)
                case messages.Piece() if self._data is not None:
                    self._data.came(message)
                case messages.PieceStored() if self._data is not None:
                    self._data.stored(message)
                case messages.UepWelcome():
                    self._welcomed(message)
                case messages.StopUep():
                    self.stop(message.code or "STOPPED", message.text)
                case messages.Refused():
                    self._refused(message)
                case messages.Ping() | messages.Pong():
                    pass
        self._submit()

    def _welcomed(self, welcome: messages.UepWelcome) -> None:
        self._enrolled = True
        self._max_result_bytes, self._takes_output = welcome.max_result_bytes, welcome.takes_output
        self._log.info("joined the relay", held=len(self._ledger), spooled=len(self._spool))
        if self._data is not None:
            self._data.welcomed(welcome.max_data_bytes)
        self._resending = in_batches(self._spooled())
        for _ in range(RESEND_BATCHES):
            self._resend()
        if lost := self._attempts.message(everything=True):
            self._send(lost)
        self._started = dict(self._begun)  # earlier messages may have been lost with their connection or the relay
        if not self._ready:
            self._ready = True
            self._reporter.ready()

    def _spooled(self) -> Iterator[messages.ResultItem]:
        """Yield every unconfirmed result that can be sent at once; those by reference follow their pieces."""
        for item in self._spool.unconfirmed():
            if item.pieces and self._data is not None:
                self._data.hand_over(item)
            else:
                yield item

    def _resend(self) -> None:
        """Send the next batch of results that an earlier connection or process left."""
        batch = next(self._resending, None)
        if batch is not None:
            self._send(messages.Results(items=batch))

    def _refused(self, refused: messages.Refused) -> None:
        self._log.error("the relay refused", code=refused.code, text=refused.text, final=refused.final)
        link = self.link
        if link is None:
            return
        if refused.code == JoinRefused.code and not self._enrolled and self._joins_sent > 1:
            # The relay may have accepted an earlier Join, and its welcome was lost with the connection.
            self._enrolled = True
            link.disconnect("the join token was refused the second time", wait_s=0.0)
        elif refused.final:
            self.stop(refused.code, refused.text, grace_s=0.0)
        else:
            link.disconnect(f"refused: {refused.code}", patient=True)

    def _take_tasks(self, message: messages.Tasks) -> None:
        for function in message.functions:
            self._functions.add(function.function_id, function.code)
        self._credit.used(len(message.tasks))
        self._idle.moved(self._clock())
        for task in message.tasks:
            ended = self._spool.get(task.row)
            if ended is not None and ended.task_id != task.task_id:
                # A relay restored from a backup reuses row numbers. The old task's result is no longer wanted.
                self._log.warning("a spooled result is of no task the relay knows", row=task.row, task=ended.task_id)
                self._spool.durable([task.row])
                ended = None
            if self._attempts.comes_again(task):
                self._ledger.release(task.row)
            if ended is not None:
                self._send_again(ended)  # the relay repeats itself, and so do we
            elif self.stopping is not None and self.stopping.engine_stopped:
                self._returned.append(task.row)
            elif self._ledger.take(task):
                self._admit(task)

    def _admit(self, task: messages.TaskItem) -> None:
        try:
            code = self._admission.code_of(task)
        except Refusals as error:
            if isinstance(error, FunctionCodeChanged):
                self._code_changed(task.function_id, error)
            self._fail(task, error)
            return
        if task.expires_in_s:
            self._deadlines.add(task.row, self._clock() + task.expires_in_s)
        may_need = task.payload[3:4] in MAY_BE_DATA or task.inputs
        if may_need and self._data is not None and needs_pieces(task):
            self._data.admit(task)
        else:
            self._run(task, code)

    def _run_with_data(self, task: messages.TaskItem) -> None:
        """Run a task that has waited for its data. Its function's code was not kept."""
        try:
            code = self._admission.code_of(task)
        except Refusals as error:
            self._fail(task, error)
        else:
            self._run(task, code)

    def _run(self, task: messages.TaskItem, code: bytes) -> None:
        payload = task.payload
        if task.inputs:
            from mep_sdk.serialize import with_inputs  # few tasks have the results of others

            payload = with_inputs(payload, task.inputs)
        self._to_run.append(
            EngineTask(
                task.row,
                task.task_id,
                task.function_id,
                code,
                payload,
                task.resource_spec,
                task.walltime_s,
                attempt=task.attempt,
                priority=task.priority,
            )
        )

    def _cancel(self, rows: Iterable[int]) -> None:
        """End tasks: those that wait for their arguments here, the others in the engine."""
        rows = list(rows)
        if self._data is not None:
            for task in self._data.forget(rows):
                self._fail(task, TaskCancelled())
        self._engine.cancel(rows)

    def _code_changed(self, function_id: str, error: FunctionCodeChanged) -> None:
        """Tell the administrator, once for each function: the relay serves other code than was pinned."""
        if function_id in self._changed or len(self._changed) >= MAX_NOTICES:
            return
        self._changed.add(function_id)
        self._log.error("function refused: not the pinned code", function=function_id, received=error.fields["sha256"])
        self._reporter.notice(error.code, error.text)

    def _submit(self) -> None:
        if self._to_run:
            tasks, self._to_run = self._to_run, []
            if any(task.priority for task in tasks):
                tasks.sort(key=lambda task: -task.priority)
            self._engine.submit(tasks)

    def _fail(self, task: messages.TaskItem, error: MepError) -> None:
        self._finish(messages.ResultItem(task.row, task.task_id, error.code, error.text, b"", 0.0, time.time()))

    # --- the engine -----------------------------------------------------------------------------------

    def collect(self) -> bool:
        """Handle the engine's events; return whether there were any."""
        events = self._engine.collect()
        printed: list[messages.PrintedItem] = []
        for event in events:
            if isinstance(event, messages.ResultItem):
                self._finish(event)
            elif isinstance(event, TaskStarted):
                self._begun[event.row] = self._started[event.row] = (event.block_id, event.job_id)
            elif isinstance(event, TaskOutput):
                printed += self._to_tell(event)
            elif isinstance(event, TaskReturned) and self._ledger.release(event.row):
                self._deadlines.forget(event.row)
                self._forget_start(event.row)
                self._returned.append(event.row)
            elif isinstance(event, EngineOver):
                self.stop(event.code, event.text, grace_s=0.0)
        if printed:
            self._send(messages.Printed(items=printed))  # before the results of this turn
        if events:
            self._idle.moved(self._clock())
        return bool(events)

    def _to_tell(self, output: TaskOutput) -> list[messages.PrintedItem]:
        """Return a running task's output for the relay: nothing where it takes none, or there is too much."""
        now, task = self._clock(), self._ledger.held.get(output.row)
        if now >= self._printed_since + OUTPUT_EVERY_S:
            self._printed_since, self._printed_bytes = now, 0
        if task is None or not self._takes_output or self._printed_bytes + len(output.data) > OUTPUT_BYTES:
            return []
        self._printed_bytes += len(output.data)
        rest = (output.stream, output.position, output.data)
        return [messages.PrintedItem(output.row, task.task_id, task.attempt, *rest)]

    def _finish(self, item: messages.ResultItem) -> None:
        task = self._ledger.held.get(item.row)
        if task is None or self._attempts.is_lost(item.row):
            self._log.error("the engine ended a task twice", row=item.row, code=item.code)
            return
        self._forget_start(item.row)  # the result says as much
        item = self._deadlines.settled(item)
        if item.code in LOSSES:
            if self._attempts.lose(task):
                self._log.warning("lost, to be run again", task=task.task_id, attempt=task.attempt, reason=item.text)
                return
            item = self._attempts.failed(task, item)
        self._ledger.release(item.row)
        if len(item.payload) > self._max_result_bytes:
            error = ResultTooLarge(size=len(item.payload), limit=self._max_result_bytes)
            times = (item.started_at, item.ended_at)
            item = messages.ResultItem(item.row, item.task_id, error.code, error.text, b"", *times)
        if item.payload[3:4] in MAY_BE_DATA and self._data is not None and not item.code:
            item = self._with_pieces(self._data, item)
        if item.code:
            self._log_failure(task, item)
        if item.pieces and self._data is not None:
            self._spool.add([item])
            self._data.hand_over(item)
        else:
            self._results.append(item)
        self._page.ended(item.code, item.text)

    def _with_pieces(self, data: DataTransfers, item: messages.ResultItem) -> messages.ResultItem:
        try:
            return data.finished(item)
        except (DataUnavailable, ResultTooLarge) as error:
            return _failed(item, error)

    def _replace(self, item: messages.ResultItem, error: MepError) -> None:
        """A result that was spooled cannot be stored at the relay: its task ends with an error."""
        self._log.warning("a large result is lost", task=item.task_id, code=error.code, reason=error.text)
        ended = _failed(item, error)
        self._spool.add([ended])
        self._send(messages.Results(items=[ended]))

    def _send_again(self, item: messages.ResultItem) -> None:
        if item.pieces and self._data is not None:
            self._data.hand_over(item)
        else:
            self._send(messages.Results(items=[item]))

    def _log_failure(self, task: messages.TaskItem, item: messages.ResultItem) -> None:
        """Log the end of a task that did not succeed. A person quotes the task's id, its correlation id."""
        where = {"block": item.block_id, "job": item.job_id} if item.block_id else {}
        self._log.write(
            _LEVELS.get(item.code, "WARNING"), "task failed", code=item.code, task=item.task_id,
            function=task.function_id, attempt=task.attempt, **where, reason=item.text[:MAX_LOGGED_TEXT],
        )  # fmt: skip

    def _forget_start(self, row: int) -> None:
        self._begun.pop(row, None)
        self._started.pop(row, None)

    # --- sending --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send this turn's messages, and put its results on the disk."""
        if self.gathers:
            return
        self._flushed_at = self._clock()
        results, self._results = self._results, []
        if self._returned:
            self._send(messages.Returned(rows=self._returned))
            self._returned = []
        if lost := self._attempts.message():
            self._send(lost)
        if self._started:
            locations = list(self._started.values())
            known = any(block for block, _ in locations)
            self._send(messages.Started(rows=list(self._started), locations=locations if known else []))
            self._started = {}
        for batch in in_batches(results):
            self._send(messages.Results(items=batch))
        if results:
            self._spool.add(results)
        self._grant()
        self._tell_figures()

    def _tell_figures(self) -> None:
        engine, begun = self._engine, len(self._begun)
        self._page.tell(max(0, len(self._ledger) - begun), begun, engine.trouble, lambda: engine.blocks)

    @property
    def gathers(self) -> bool:
        """Whether results wait a moment for others: many tasks are held, and some results have just been sent."""
        many = len(self._ledger) >= GATHER_TASKS and self._gathered
        return many and self._clock() < self._flushed_at + GATHER_S

    @property
    def _gathered(self) -> bool:
        return bool(self._results or self._started)

    def _send(self, message: messages.ToRelay) -> None:
        """Say it if the relay has welcomed us; otherwise the next hello and the spool say it."""
        if self.link is not None and self.link.welcomed:
            self.link.send(message)

    def _sent(self, message: messages.WantPieces | messages.StorePiece) -> bool:
        """Send a message of data if the link is up; return whether it is."""
        if self.link is None or not self.link.welcomed:
            return False
        self.link.send(message)
        return True

    def _grant(self) -> None:
        if self.link is None or not self.link.welcomed or self.stopping is not None:
            return
        self._tell_trouble(self.link)
        full = self._spool.is_full
        if full and not self._was_full:
            self._log.warning("not requesting tasks until the relay confirms results", spooled=len(self._spool))
        self._was_full = full
        if full or self._headroom.low or self._ledger.bytes > MAX_HELD_BYTES:
            return
        if more := self._credit.grant(self._engine.capacity, len(self._ledger)):
            self._send_credit(self.link, more)

    def _send_credit(self, link: LinkClient[messages.ToUep], grant: int) -> None:
        self._told_trouble, python = self._trouble, self._engine.worker_python
        own = self._told_trouble != self._engine.trouble
        code = "" if not self._told_trouble else WaitCode.ENGINE_TROUBLE if own else self._engine.trouble_code
        if code != self._trouble_code or not self._told_trouble:
            self._trouble_code, self._trouble_since = code, time.time() if self._told_trouble else 0.0
        link.send(
            messages.Credit(
                grant=grant,
                worker_python=python,
                trouble=self._told_trouble[:MAX_PUBLIC_TEXT],
                trouble_code=code,
                trouble_since=self._trouble_since,
            )
        )

    @property
    def _trouble(self) -> str:
        """What keeps tasks from beginning, for the person: the engine's trouble, or a shortage here."""
        if self._engine.trouble:
            return self._engine.trouble
        if self._headroom.low:
            return SENTENCES[WaitCode.ENGINE_TROUBLE].format(words="your process there has few file descriptors left")
        if self._spool.is_full:
            return SENTENCES[WaitCode.ENGINE_TROUBLE].format(words="its results wait for the relay to confirm them")
        return ""

    def _tell_trouble(self, link: LinkClient[messages.ToUep]) -> None:
        """Tell the relay, for the person, what keeps tasks from beginning, and when that is over."""
        if (trouble := self._trouble) != self._told_trouble:
            if trouble:
                self._log.warning("tasks wait", reason=trouble, held=len(self._ledger))
            self._send_credit(link, 0)

    # --- the end --------------------------------------------------------------------------------------

    def stop(self, code: str, text: str, grace_s: float | None = None) -> None:
        """Begin to shut down: return tasks that have not started; let the rest finish within the grace period."""
        if self.stopping is None:
            self._log.info("ending", code=code, text=text, held=len(self._ledger))
            self.stopping = Stopping(code, text, self._clock(), grace_s)
            self._submit()
            self._return_waiting()
            self._engine.drain()
        elif grace_s is not None:
            self.stopping.hurry(self._clock() + grace_s)

    def _return_waiting(self) -> None:
        """Give back the tasks that wait for their arguments."""
        if self._data is not None:
            for task in self._data.forget(self._data.waiting):
                self._ledger.release(task.row)
                self._deadlines.forget(task.row)
                self._returned.append(task.row)

    def drain(self) -> None:
        """Accept no further tasks, let the running ones finish, and end. Tasks that have not begun wait."""
        if self.stopping is None:
            self.stop("STOPPED", "the site's administrators are draining it", grace_s=math.inf)
            if self.link is not None and self.link.welcomed:
                self.link.send(messages.Credit(grant=0, worker_python=self._engine.worker_python, trouble=DRAINING))

    def tick(self) -> bool:
        """Do the periodic work; return True once there is nothing more to do and the process may end."""
        now = self._clock()
        self._spool.tick()
        if self._page.due is not None and now >= self._page.due:
            self._tell_figures()
        self._expire(now)
        if self._data is not None:
            self._data.tick()
        if self._headroom.look():  # what `_grant` goes by
            text = "not requesting tasks: few descriptors are free" if self._headroom.low else "requesting tasks again"
            self._log.warning(text, held=len(self._ledger))
        if self.stopping is None:
            if reason := self._idle.verdict(now, busy=self._busy):
                self.stop("IDLE", reason)
            return False
        if not self._engine_stopped_by(now):
            return False
        unsent = bool(self._spool or self._attempts) and self.link is not None and self.link.welcomed
        return not unsent or now >= self.stopping.flush_until

    def _expire(self, now: float) -> None:
        """End tasks that are past their deadline."""
        due = [row for row in self._deadlines.due(now) if row in self._ledger.held]
        if not due or (self.stopping is not None and self.stopping.engine_stopped):
            return
        for row in due:
            self._deadlines.expire(row)
        self._cancel(due)

    def _engine_stopped_by(self, now: float) -> bool:
        """Return whether all tasks have ended, ending them by force when their time is over."""
        assert self.stopping is not None
        if self._ledger and now < self.stopping.run_until:
            return False
        if not self.stopping.engine_stopped:
            self.stopping.engine_stopped = True
            self._engine.stop(self.stopping.kill_s)
            for task in [task for row, task in self._ledger.held.items() if not self._attempts.is_lost(row)]:
                self._fail(task, self.stopping.error())
            self.flush()
            self.stopping.flush_from(self._clock())
        return True

    def goodbye(self) -> None:
        """Say that this process ends and holds no task."""
        assert self.stopping is not None
        self._send(messages.Goodbye(code=self.stopping.code, text=self.stopping.text))

    def report_end(self) -> None:
        """Tell the keeper why this process ends."""
        assert self.stopping is not None
        if self._ready:
            self._reporter.ended(self.stopping.code, self.stopping.text)
        else:
            self._reporter.failed(StartFailure(self.stopping.code, self.stopping.text))

    @property
    def held(self) -> int:
        """How many tasks have come and not ended."""
        return len(self._ledger)

    @property
    def _busy(self) -> bool:
        return bool(self._ledger) or bool(self._spool)

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, by the clock, or None."""
        due = [self._headroom.next_look(), self._deadlines.next(), self._spool.tick_at]
        due.append(self._flushed_at + GATHER_S if self._gathered else None)
        due.append(self._page.due)
        due.append(self._data.retry_at if self._data is not None else None)
        if self.stopping is None:
            due.append(self._idle.deadline(busy=self._busy))
        elif self._ledger or self.stopping.engine_stopped:
            due.append(self.stopping.next_deadline())
        else:
            due.append(self._clock())
        return min((when for when in due if when is not None), default=None)


def _failed(item: messages.ResultItem, error: MepError) -> messages.ResultItem:
    """Return the result of a task that ends with an error after all."""
    return messages.ResultItem(
        item.row, item.task_id, error.code, error.text, b"", item.started_at, item.ended_at, item.block_id, item.job_id
    )


def in_batches(items: Iterable[messages.ResultItem]) -> Iterator[list[messages.ResultItem]]:
    """Yield the results in lists that fit a message."""
    batch: list[messages.ResultItem] = []
    size = 0
    for item in items:
        if batch and (size + len(item.payload) > RESULT_BATCH_BYTES or len(batch) >= RESULT_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.payload)
    if batch:
        yield batch
