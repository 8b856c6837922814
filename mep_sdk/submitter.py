"""The machinery behind an Executor's methods: registers functions, sends tasks in batches, resolves futures.

Kinds of thread: one sender, which sends the queue when its previous request has returned; one listener
for each task group; one that asks for tasks which the stream may never bring. Others call done-callbacks. Every
future ends exactly once: the thread that takes it out of `_pending` ends it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mep_sdk.batch import pieces_of, user_runtime
from mep_sdk.callback_threads import CallbackThreads
from mep_sdk.client import Client
from mep_sdk.encoding import OUTPUT
from mep_sdk.errors import DataUnreadable, DependencyFailed, ForkedExecutor, RelayAnswerMissing
from mep_sdk.foreign_code import attempt, failure_text
from mep_sdk.futures import TaskFuture, new_task_id
from mep_sdk.http import PATIENT_S, SILENT_S, log_failure
from mep_sdk.result_decoding import output_of, runs_code_to_load, settle
from mep_sdk.result_stream import ResultListener
from mep_sdk.status_poller import PAGE, StatusPoller
from mep_sdk.task_options import TaskOptions
from mep_wire import api, limits
from mep_wire.data_frames import MAY_BE_DATA, digests_of, is_data
from mep_wire.errors import DataExpired, DependencyRefused, MepError, RelayUnreachable, TaskNotFound
from mep_wire.states import API_STATUS, TaskState
from mep_wire.text import printable
from mep_wire.waits import USUAL, Wait, WaitCode, wait

if TYPE_CHECKING:
    from mep_sdk.live_output import LiveText, Printer

log = logging.getLogger("mep_sdk")

_BODY_BYTES = limits.MAX_BODY_BYTES - 256 * 1024
_TASK_OVERHEAD_BYTES = 256
"""Of a task with a function of its own: both ids of the function, that of the task, and the heads of MessagePack."""
_TEXT_BYTES = 2
"""Of a short text's head in MessagePack."""
_CANCEL_S = 9.0
"""How long to cancel may take, with a relay that is away or says nothing."""
_CANCEL_ARRIVES_S = 5.0
"""How much of that a request on its way is given to arrive."""
_SILENT_S = SILENT_S
_LOOK_AGAIN_S = 1.0
_NO_TOKEN = 401
"""The HTTP status of a token that is unknown, revoked or past its time."""
_JOIN_S = 2.0
_MOST_LOADS = 16
"""Results that are loaded at a time where all of them take long."""
_WAITS = frozenset({API_STATUS[TaskState.QUEUED], API_STATUS[TaskState.DISPATCHED]})
_MOST_REASONS = 4
"""Endpoints for which the reason of a wait is asked at a time."""
_NUMBERS = re.compile(r"[0-9:.,]+")
_decoder = msgspec.json.Decoder(dict[str, Any])


class Target(NamedTuple):
    """Where a task goes, and how: tasks with the same target share a request. JSON where it was a dict."""

    endpoint_id: str
    task_group_id: str
    user_endpoint_config: bytes
    resource_specification: bytes
    options: TaskOptions


@dataclass(slots=True, eq=False)
class Function:
    """A function on its way to the relay, or there already: then `id` is set."""

    body: api.FunctionBody | None = None
    id: str = ""


@dataclass(slots=True, eq=False)
class Item:
    """A task that waits to be sent."""

    future: TaskFuture[Any]
    target: Target
    function: Function
    payload: bytes
    depends_on: tuple[str, ...] = ()
    """The ids of tasks that are to end first. The relay adds their results."""
    otherwise: Callable[[], None] | None = None
    """Called where the relay cannot do that."""


@dataclass(slots=True)
class _Load:
    """A result to be loaded, as CallbackThreads call it."""

    submitter: Submitter
    future: TaskFuture[Any]
    result: api.StreamedResult

    def call_callbacks(self) -> None:
        """Load it, and resolve its future."""
        self.submitter.load(self.future, self.result)


class Submitter:
    """The machinery of one Executor. Thread-safe.

    `_change` guards every collection here: it is held wherever one is changed, looped over or copied. It is not held
    while a future is resolved, since that loads the person's values.
    """

    def __init__(
        self,
        client: Client,
        task_failure: Callable[[Exception], Exception] = lambda error: error,
        *,
        lost_relay_timeout_s: float,
    ) -> None:
        self.client, self._task_failure = client, task_failure
        self.batch_size = limits.MAX_TASKS_PER_SUBMIT
        self._lost_relay_timeout_s = lost_relay_timeout_s
        self._pid = os.getpid()
        self._change = threading.Condition()
        self._queue: deque[Item] = deque()
        self._deferred: set[str] = set()
        """Tasks that wait for the futures among their arguments, and are in no queue yet."""
        self._unsent: set[str] = set()
        """Ids in the queue: these tasks can still be cancelled without the relay."""
        self._sending: set[str] = set()
        self._cancelling: set[str] = set()
        self._owed: dict[str, TaskFuture[Any]] = {}
        """Tasks to be cancelled once the relay is back."""
        self._pending: dict[str, TaskFuture[Any]] = {}
        self._loading: dict[str, TaskFuture[Any]] = {}
        self._behind: dict[str, list[tuple[TaskFuture[Any], api.StreamedResult]]] = {}
        """Results that are taken in once the task of this id, which theirs waited for, is loaded."""
        """Futures with a result that is being loaded: no longer pending, and not resolved yet."""
        self._listeners: dict[str, ResultListener] = {}
        self._sender: threading.Thread | None = None
        self._recheck: StatusPoller | None = None
        self._callbacks, self._loaders = CallbackThreads(), CallbackThreads("mep-loads", _MOST_LOADS)
        self._printer: Printer | None = None
        self._warned: set[tuple[str, str]] = set()
        self._holding: set[str] = set()
        """Endpoints for which the relay holds tasks that wait for others."""
        self._sending_fails: Wait | None = None
        self._looking_fails: Wait | None = None
        """Why tasks have not reached the relay, or what keeps it from telling where they are."""
        self._ended = {"succeeded": 0, "failed": 0, "cancelled": 0}
        self._began, self._last_ended = 0.0, 0.0
        self._sender_waits = False
        self._rounds = 0
        """How often the sender has sent what it took, or has failed to."""
        self._stopping = False

    # --- taking tasks -----------------------------------------------------------------------------------

    def submit(
        self,
        target: Target,
        function: Function,
        payload: bytes | None,
        *,
        live: bool = False,
        only_json: bool = False,
    ) -> TaskFuture[Any]:
        """Queue a task; without a payload it waits for `supply`. `live`: print its output as it comes. `only_json`:
        unpickle nothing of its result. Raises RuntimeError after shutdown, and ForkedExecutor in a forked child."""
        self.check_process()
        future: TaskFuture[Any] = TaskFuture(new_task_id(), target.task_group_id, self)
        future.endpoint_id, future.only_json = target.endpoint_id, only_json
        if live:
            future.live = self._live_text()
        with self._change:
            if self._stopping:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._sender is None:
                sender = threading.Thread(target=self._send_forever, name="mep-sender", daemon=True)
                sender.start()  # and where no thread can be started, there is no task either
                self._sender = sender
            listener = self._listen(target.task_group_id)
            if live:
                listener.want_output()
            self._began = self._began or time.monotonic()
            self._pending[future.task_id] = future
            self._unsent.add(future.task_id)
            if payload is None:
                self._deferred.add(future.task_id)
            else:
                self._queue.append(Item(future, target, function, payload))
            if self._sender_waits:
                self._change.notify_all()
        return future

    def check_process(self) -> None:
        """Raises ForkedExecutor in a forked child, which has none of the threads, and locks that may never open."""
        if self._pid != os.getpid():
            raise ForkedExecutor

    def supply(self, item: Item) -> None:
        """Queue a task that was submitted without its payload, unless it was cancelled."""
        with self._change:
            self._deferred.discard(item.future.task_id)
            if item.future.task_id in self._unsent:
                self._queue.append(item)
            self._change.notify_all()

    def can_refer_to(self, other: TaskFuture[Any], target: Target) -> bool:
        """Return whether the relay may know a task as one of this person's at the endpoint of this target."""
        of = other.session
        same = isinstance(of, Submitter) and of.client.settings.relay_url == self.client.settings.relay_url
        return same and other.endpoint_id == target.endpoint_id

    def give_up(self, future: TaskFuture[Any], error: MepError) -> None:
        """Fail a task that was submitted without its payload."""
        with self._change:
            self._deferred.discard(future.task_id)
            self._unsent.discard(future.task_id)
            self._change.notify_all()
        if self._taken(future.task_id) is not None:
            self._resolve(future, None, error)
        self._settled()

    def adopt(self, task_group_id: str, task_ids: Sequence[str], *, only_json: bool = False) -> list[TaskFuture[Any]]:
        """Return futures for tasks that the relay has already: known ones, and new ones for the rest.
        Raises RuntimeError after shutdown, and ForkedExecutor in a forked child."""
        self.check_process()
        with self._change:
            if self._stopping:
                raise RuntimeError("cannot reload tasks after shutdown")
            futures = []
            for task_id in task_ids:
                known = self._pending.get(task_id) or self._loading.get(task_id)
                if known is None:
                    known = self._pending[task_id] = TaskFuture(task_id, task_group_id, self)
                    known.only_json = only_json
                futures.append(known)
            if futures:
                self._listen(task_group_id).replay()
        return futures

    def register(self, function: Function) -> str:
        """Return the function's id, registering it first where that has not been done. Raises MepError."""
        if not function.id:
            assert function.body is not None
            function.id = self.client.register_serialized(
                function.body, silent_s=PATIENT_S, retrying=self._sending_is_retried
            )
            function.body = None
        return function.id

    def _listen(self, task_group_id: str) -> ResultListener:
        listener = self._listeners.get(task_group_id)
        if listener is None:
            if self._recheck is None:
                recheck = StatusPoller(self.client, self._on_relay, self._rechecked, self._look)
                recheck.start()
                self._recheck = recheck
            listener = ResultListener(
                self.client.settings,
                task_group_id,
                self._deliver,
                self._group_refused,
                self._recheck.soon,
                self._printed,
            )
            listener.start()
            self._listeners[task_group_id] = listener
        return listener

    # --- sending ----------------------------------------------------------------------------------------

    def _send_forever(self) -> None:
        while True:
            with self._change:
                while not self._queue and not (self._stopping and not self._deferred):
                    self._sender_waits = True
                    self._change.wait()
                    self._sender_waits = False
                if not self._queue:
                    return
                items = self._take()
            try:
                self._send(items)
            except Exception as error:  # noqa: BLE001 - the outermost loop of the thread: waiting callers must get the error
                log_failure("sending tasks failed")
                self._fail(items, MepError(text=f"Sending the task failed: {type(error).__name__}: {error}"))
            with self._change:
                self._sending.clear()
                self._sending_fails = None
                self._rounds += 1
                self._change.notify_all()

    def _take(self) -> list[Item]:
        """Take what goes into the next requests; the caller holds the lock."""
        items: list[Item] = []
        size = 0
        limit = max(1, min(self.batch_size, limits.MAX_TASKS_PER_SUBMIT))
        while self._queue and len(items) < limit:
            item = self._queue[0]
            size += _size_in_request(item)
            if items and size > _BODY_BYTES:
                break
            self._queue.popleft()
            if item.future.task_id in self._unsent:  # else it was cancelled
                self._unsent.discard(item.future.task_id)
                self._sending.add(item.future.task_id)
                items.append(item)
        return items

    def _send(self, items: list[Item]) -> None:
        for target, by_function in _requests(item for item in items if not item.depends_on).items():
            registered = [group for group in by_function.values() if self._registered(group)]
            if registered:
                self._send_to(target, registered)
        for target, by_function in _requests(item for item in items if item.depends_on).items():
            with self._change:
                held = target.endpoint_id in self._holding
                may = [
                    [each for each in group if held and self._unsent.isdisjoint(each.depends_on)]
                    for group in by_function.values()
                ]
            self._defer(set(itertools.chain(*by_function.values())) - set(itertools.chain(*may)))
            registered = [group for group in may if group and self._registered(group)]
            if registered:
                self._send_to(target, registered)

    def _defer(self, items: Iterable[Item]) -> None:
        """The relay cannot hold these until others have ended: hold them here."""
        for item in items:
            with self._change:
                self._sending.discard(item.future.task_id)
                if item.future.task_id not in self._pending:
                    continue  # cancelled in between
                self._unsent.add(item.future.task_id)
                self._deferred.add(item.future.task_id)
            if item.otherwise is not None:
                item.otherwise()

    def _registered(self, group: list[Item]) -> bool:
        try:
            self.register(group[0].function)
        except MepError as error:
            self._fail(group, error)
            return False
        return True

    def _send_to(self, target: Target, groups: list[list[Item]]) -> None:
        try:
            body = _body(target, groups)
            told = self.client.submit(target.endpoint_id, body, silent_s=PATIENT_S, retrying=self._sending_is_retried)
        except DependencyRefused:
            self._defer([item for group in groups for item in group])
        except MepError as error:
            if isinstance(error, DataExpired) and (left := self._without_expired(groups, error)) != groups:
                self._send_to(target, left)
                return
            if len(groups) == 1 or error.http_status >= 429:
                self._fail([item for group in groups for item in group], error)
                return
            for group in groups:  # one function's refusal is no other's
                self._send_to(target, [group])
        else:
            if log.isEnabledFor(logging.INFO):
                count = sum(map(len, groups))
                log.info("%d tasks are at the relay, for endpoint %s", count, target.endpoint_id)
                for item in itertools.chain.from_iterable(groups):
                    log.debug("task %s is at the relay, as a call of %s", item.future.task_id, item.function.id)
            with self._change:
                listener = self._listeners.get(target.task_group_id)
                (self._holding.add if told.holds_tasks else self._holding.discard)(target.endpoint_id)
            if listener is not None:
                listener.group_known()

    def _without_expired(self, groups: list[list[Item]], error: DataExpired) -> list[list[Item]]:
        """Fail the tasks that have lost their arguments at the relay; return the others."""
        needed = {id(item): digests_of(item.payload) for group in groups for item in group if is_data(item.payload)}
        missing = self.client.data.missing(itertools.chain.from_iterable(needed.values()))
        lost = {key for key, digests in needed.items() if missing.intersection(digests)}
        self._fail([item for group in groups for item in group if id(item) in lost], error)
        left = [[item for item in group if id(item) not in lost] for group in groups]
        return [group for group in left if group]

    # --- resolving --------------------------------------------------------------------------------------

    def _deliver(self, results: list[api.StreamedResult]) -> None:
        for result in results:
            with self._change:
                future = self._pending.pop(result.task_id, None)
                cancelling = result.task_id in self._cancelling
                runs_code = future is not None and runs_code_to_load(result.payload)
                if future is not None and runs_code:
                    self._loading[result.task_id] = future
            if future is None:
                continue
            if result.state == TaskState.CANCELLED and cancelling:
                self._loading.pop(result.task_id, None)
                self._cancelled(future)  # the stream was faster than the answer to the request to cancel
            elif runs_code:
                self._loaders.put(_Load(self, future, result))
            else:
                self._take_in_order(future, result)
        self._settled()

    def _take_in_order(self, future: TaskFuture[Any], result: api.StreamedResult) -> None:
        """Resolve a future, but not before one that it waits for and that is being loaded: that may be its cause."""
        if future.waits_for:
            with self._change:
                others = [each.task_id for each in future.waits_for if isinstance(each, TaskFuture)]
                first = next((each for each in others if each in self._loading), None)
                if first is not None:
                    self._loading[result.task_id] = future
                    self._behind.setdefault(first, []).append((future, result))
                    return
        self._take_in(future, result)

    def load(self, future: TaskFuture[Any], result: api.StreamedResult) -> None:
        """Load a result that runs code to be loaded, which may take its time or wait for other results."""
        ready = deque([(future, result)])
        while ready:
            future, result = ready.popleft()
            self._take_in(future, result)
            with self._change:
                self._loading.pop(result.task_id, None)
                ready += self._behind.pop(result.task_id, ())
        self._settled()

    def _take_in(self, future: TaskFuture[Any], result: api.StreamedResult) -> None:
        """Resolve a future with a result, and with what the task printed."""
        if result.payload[3:4] == OUTPUT:
            future.stdout, future.stderr = output_of(result.payload)
            if future.live is not None:
                self._show(future, future.live.rest(result.payload))
        value, failure = _settle(result, self._load_by_reference, only_json=future.only_json)
        self._resolve(future, value, failure and self._task_failure(failure))

    def _load_by_reference(self, payload: bytes) -> Any:
        return self.client.load_result(payload)

    def _live_text(self) -> LiveText:
        from mep_sdk.live_output import LiveText, Printer  # most scripts show nothing

        if self._printer is None:
            self._printer = Printer()
        return LiveText()

    def _printed(self, pieces: list[api.StreamedOutput]) -> None:
        """Show the output of running tasks."""
        for piece in pieces:
            with self._change:
                future = self._pending.get(piece.task_id)
            if future is None or future.live is None:
                continue
            text = future.live.take(piece)
            future.stdout, future.stderr = future.live.texts
            self._show(future, ("", text) if piece.stream else (text, ""))

    def _show(self, future: TaskFuture[Any], texts: tuple[str, str]) -> None:
        for stream, text in enumerate(texts):
            if text and self._printer is not None:
                self._printer.put(future.task_id, stream, text)

    def finish_printing(self, timeout_s: float | None = None) -> None:
        """Wait until all output that came is printed."""
        if self._printer is not None and self._pid == os.getpid():
            self._printer.wait(timeout_s)

    def _ends_line(self, future: TaskFuture[Any]) -> None:
        if future.live is not None and self._printer is not None:
            self._printer.put(future.task_id, 0, "")

    def _resolve(self, future: TaskFuture[Any], value: Any, failure: Exception | None) -> None:
        self._ends_line(future)
        if isinstance(failure, DependencyFailed) and failure.__cause__ is None:
            failure.__cause__ = _cause(future)
        log.debug("task %s has %s", future.task_id, "succeeded" if failure is None else "failed")
        with self._change:
            self._ended["succeeded" if failure is None else "failed"] += 1
            self._last_ended = time.monotonic()
        try:
            future.resolve(value, failure)
        except InvalidStateError:
            log.warning(
                "task %s: your script has given its future a result itself; this one is dropped", future.task_id
            )

    def call_back(self, future: TaskFuture[Any]) -> None:
        """Have a future's callbacks called. They may wait, so the threads that bring results do not call them."""
        self._callbacks.put(future)

    def _fail(self, items: Sequence[Item], error: MepError) -> None:
        self._fail_futures([item.future for item in items], error)

    def _fail_futures(self, futures: Sequence[TaskFuture[Any]], error: MepError) -> None:
        for future in futures:
            if self._taken(future.task_id) is not None:
                self._resolve(future, None, _copy(error))
        self._settled()

    def _taken(self, task_id: str) -> TaskFuture[Any] | None:
        """Return the pending future of a task, and hold it as pending no longer; None where it has ended."""
        with self._change:
            return self._pending.pop(task_id, None)

    def _group_refused(self, task_group_id: str, error: MepError) -> None:
        with self._change:
            listener = self._listeners.pop(task_group_id, None)  # the next submission gets a new one
            lost = self._pending_of(task_group_id)
        if listener is not None:
            listener.stop()
        self._fail_futures(lost, error)

    def _pending_of(self, task_group_id: str) -> list[TaskFuture[Any]]:
        """Return a group's pending futures; the caller holds the lock."""
        return [future for future in self._pending.values() if future.task_group_id == task_group_id]

    def _settled(self) -> None:
        with self._change:
            if self._stopping and not self._pending and not self._loading:
                self._change.notify_all()
                for thread in self._threads():
                    thread.stop()

    def _threads(self) -> list[StatusPoller | ResultListener]:
        """Return the threads that bring results; the caller holds the lock."""
        return [*([self._recheck] if self._recheck is not None else []), *self._listeners.values()]

    def _on_relay(self) -> list[str]:
        """Return the pending tasks that the relay has confirmed, and must know; first cancel those that are owed."""
        self._cancel_owed()
        with self._change:
            return [each for each in self._pending if each not in self._unsent and each not in self._sending]

    def _rechecked(self, ended: list[api.StreamedResult], missing: list[str]) -> None:
        """Handle the relay's answers on pending tasks."""
        for task_id in missing:
            future = self._taken(task_id)
            if future is not None:
                self._resolve(future, None, TaskNotFound(task_id=task_id))
        self._deliver(ended)

    # --- where tasks are --------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Have the relay asked soon where the oldest pending tasks are."""
        if self._recheck is not None and self._pid == os.getpid():
            self._recheck.look_soon()

    def _look(self) -> None:
        """Ask where the oldest pending tasks are, and why they wait. Raises MepError."""
        with self._change:
            sent = (each for each in self._pending.values() if each.task_id not in self._unsent)
            asked = {each.task_id: each for each in itertools.islice(sent, PAGE) if each.task_id not in self._sending}
        if not asked:
            return
        try:
            self._look_at(asked)
        except MepError as error:
            self._looking_fails = _trouble(error, self._looking_fails)
            if error.http_status == _NO_TOKEN:
                self._all_refused(error)
            raise
        self._looking_fails = None

    def _all_refused(self, error: MepError) -> None:
        """Fail all pending tasks: the token is no longer good, though a stream that was opened with it may still be."""
        log.warning("the relay refuses this script's token: its tasks are given up here: %s", error)
        with self._change:
            groups = list(self._listeners)
        for each in groups:
            self._group_refused(each, error)

    def _look_at(self, asked: dict[str, TaskFuture[Any]]) -> None:
        told = self.client.statuses(list(asked), retry_for_s=0.0)
        waiting: dict[str, list[TaskFuture[Any]]] = {}
        for task_id, status in told.items():
            future = asked[task_id]
            if status != future.status:
                log.debug("task %s is now %s", task_id, printable(status))
            future.told(status, future.wait_told if status in _WAITS else Wait("", ""))
            if status in _WAITS:
                waiting.setdefault(future.endpoint_id, []).append(future)
        for endpoint_id in list(waiting)[:_MOST_REASONS]:
            self._tell_why(endpoint_id, waiting[endpoint_id])

    def _sending_is_retried(self, error: MepError) -> None:
        self._sending_fails = _trouble(error, self._sending_fails)

    def held_up(self, task_id: str) -> Wait | None:
        """Return what keeps a task from the relay, or its state from here; None where nothing does, and in a forked
        child."""
        if self._pid != os.getpid():
            return None
        with self._change:
            if task_id in self._deferred:
                return wait(WaitCode.ARGUMENTS_PENDING)
            unsent = task_id in self._unsent or task_id in self._sending
            return self._sending_fails if unsent else self._looking_fails

    def _tell_why(self, endpoint_id: str, futures: list[TaskFuture[Any]]) -> None:
        found = self.client.wait_of(futures[0].task_id, endpoint_id, retry_for_s=0.0)
        for future in futures:
            future.told(future.status, found)
        kind = (endpoint_id, found.code or _NUMBERS.sub("", found.text))  # a queue position may change
        if found.text and kind not in self._warned:
            self._warned.add(kind)
            level = logging.INFO if found.code in USUAL else logging.WARNING
            log.log(level, "tasks wait at endpoint %s: %s", printable(endpoint_id), printable(found.text))

    def stats(self) -> dict[str, int]:
        """Return how many tasks are in which state, as far as this process knows. Raises ForkedExecutor in a forked
        child."""
        self.check_process()
        with self._change:
            pending = list(self._pending.values())
            unsent = len(self._unsent) + sum(each in self._pending for each in self._sending)
            counts = dict(self._ended)
        running = sum(each.status == "running" for each in pending)
        return {"unsent": unsent, "waiting": len(pending) - unsent - running, "running": running, **counts}

    def elapsed_s(self) -> float:
        """Return the seconds from the first submission until now, or until the last task's end where none is left."""
        with self._change:
            ended = time.monotonic() if self._pending or self._loading else self._last_ended
            return max(0.0, ended - self._began) if self._began else 0.0

    # --- cancelling -------------------------------------------------------------------------------------

    def cancel_futures(self, futures: list[TaskFuture[Any]]) -> int:
        """Cancel the tasks that have not ended; return their number. Unsent tasks are only dropped.
        Does nothing in a forked child, where an iterator of the parent's may be closed."""
        if self._pid != os.getpid():
            return 0
        with self._change:
            drop = [future for future in futures if future.task_id in self._unsent]
            self._unsent.difference_update(future.task_id for future in drop)
            self._deferred.difference_update(future.task_id for future in drop)
            ask = {future.task_id: future for future in futures if future.task_id in self._pending}
            for future in drop:
                ask.pop(future.task_id, None)
        count = sum(self._mark_cancelled(future) for future in drop)
        if ask:
            count += self._cancel_sent(ask)
        self._settled()
        return count

    def _cancel_sent(self, ask: dict[str, TaskFuture[Any]]) -> int:
        ends = time.monotonic() + _CANCEL_S
        with self._change:
            # A request on its way must arrive first, or the relay would not know the tasks.
            self._change.wait_for(lambda: self._sending.isdisjoint(ask), _CANCEL_ARRIVES_S)
            self._cancelling |= ask.keys()
        try:
            left_s = ends - time.monotonic()
            cancelled = self.client.cancel_many(ask, retry_for_s=left_s, silent_s=left_s)
        except MepError as error:
            cancelled = set()
            if error.http_status >= 500:
                self._cancel_later(ask, error)
            else:
                log.warning("could not cancel %d tasks: %s", len(ask), error)
        else:
            self._settle_owed(ask)
        told = [ask[task_id] for task_id in cancelled & ask.keys()]
        count = sum(self._mark_cancelled(future) or future.cancelled() for future in told)
        with self._change:
            self._cancelling -= ask.keys() - self._owed.keys()
        return count

    def _settle_owed(self, ask: dict[str, TaskFuture[Any]]) -> None:
        with self._change:
            for task_id in ask:
                self._owed.pop(task_id, None)

    def _cancel_later(self, ask: dict[str, TaskFuture[Any]], error: MepError) -> None:
        with self._change:
            new = ask.keys() - self._owed.keys()
            self._owed |= {task_id: future for task_id, future in ask.items() if task_id in self._pending}
            if self._recheck is not None:
                self._recheck.soon()
        if new:
            log.warning("%d tasks are cancelled once the relay is back: %s", len(new), error)

    def _cancel_owed(self) -> None:
        with self._change:
            for task_id in self._owed.keys() - self._pending.keys():
                del self._owed[task_id]
                self._cancelling.discard(task_id)
            owed = dict(self._owed)
        if owed:
            self._cancel_sent(owed)

    def _mark_cancelled(self, future: TaskFuture[Any]) -> bool:
        return self._taken(future.task_id) is not None and self._cancelled(future)

    def _cancelled(self, future: TaskFuture[Any]) -> bool:
        log.debug("task %s is cancelled", future.task_id)
        self._ends_line(future)
        self._ended["cancelled"] += 1
        return future.mark_cancelled()

    # --- ending -----------------------------------------------------------------------------------------

    def unfinished(self) -> int:
        """Return the number of unresolved futures; 0 in a forked child, since they belong to its parent."""
        if self._pid != os.getpid():
            return 0
        with self._change:
            return len(self._pending) + len(self._loading)

    def stop(self, *, cancel_futures: bool) -> None:
        """Stop accepting tasks; end the threads when everything queued is sent and has ended."""
        if self._pid != os.getpid():
            return
        with self._change:
            self._stopping = True
            self._change.notify_all()
            futures = list(self._pending.values()) if cancel_futures else []
        if futures:
            self.cancel_futures(futures)
        self._settled()

    def wait(self) -> None:
        """Wait until every future has ended and its callbacks have returned, after `stop`; a callback that calls this
        waits for the others. Raises RelayAnswerMissing."""
        if self._pid != os.getpid():
            return
        while True:
            with self._change:
                if not self._pending and not self._loading:
                    threads = [self._sender, *self._threads()]
                    break
                self._change.wait(_LOOK_AGAIN_S)
                lost = self._lost_group()
            if lost is not None:
                self._group_refused(str(lost.fields["task_group_id"]), lost)
                self._callbacks.wait()
                raise lost
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(_JOIN_S)  # it may be connecting to a relay that does not answer, and is a daemon
        self._callbacks.wait()
        self.finish_printing()

    def flush(self, timeout_s: float | None) -> bool:
        """Wait until everything queued is sent; return whether it is. Without a timeout this ends once nothing has been
        sent for SILENT_S seconds. Raises ForkedExecutor in a forked child."""
        self.check_process()
        with self._change:
            if timeout_s is not None:
                return self._change.wait_for(self._is_sent, timeout_s)
            while not self._is_sent():
                before = self._rounds
                if not self._change.wait_for(lambda: self._rounds != before or self._is_sent(), _SILENT_S):  # noqa: B023
                    return False
            return True

    def _is_sent(self) -> bool:
        """Return whether everything queued is sent; the caller holds the lock."""
        return not self._queue and not self._sending and not self._deferred

    def _lost_group(self) -> RelayAnswerMissing | None:
        """Return what says that a group's relay has been away for too long; the caller holds the lock."""
        for group_id, listener in self._listeners.items():
            waited_s = listener.down_for_s()
            if waited_s < self._lost_relay_timeout_s or self._queue or self._sending:
                continue
            if count := len(self._pending_of(group_id)):
                url = self.client.settings.relay_url
                return RelayAnswerMissing(count=count, url=url, waited_s=round(waited_s), task_group_id=group_id)
        return None


def _trouble(error: MepError, known: Wait | None) -> Wait:
    """Return the wait for a relay that has answered an error; `known` is the one before."""
    text = error.text
    if isinstance(error, RelayUnreachable):
        text = f"The relay at {error.fields['url']} cannot be reached ({error.fields['reason']}). The SDK keeps trying."
    return Wait(error.code, text, time.time() if known is None else known.since)


def _settle(
    result: api.StreamedResult, load_by_reference: Callable[[bytes], Any], *, only_json: bool
) -> tuple[Any, Exception | None]:
    """As `settle`. To load a result can run anything: that ends neither this thread nor the wait for the result."""
    settled, trouble = attempt(functools.partial(settle, only_json=only_json), result, load_by_reference)
    if settled is not None:
        return settled
    return None, DataUnreadable(what="result", where="here", reason=failure_text(trouble) if trouble else "")


def _cause(future: TaskFuture[Any]) -> BaseException | None:
    """Return the exception of the first of a task's futures that has failed, as far as it is known here."""
    ended = (each for each in future.waits_for if each.done() and not each.cancelled())
    return next((error for each in ended if (error := each.exception(0)) is not None), None)


def _requests(items: Iterable[Item]) -> dict[Target, dict[int, list[Item]]]:
    """Return tasks by target and then by function."""
    by_target: dict[Target, dict[int, list[Item]]] = {}
    for item in items:
        by_target.setdefault(item.target, {}).setdefault(id(item.function), []).append(item)
    return by_target


def _body(target: Target, groups: list[list[Item]]) -> api.SubmitBody:
    depends_on = {item.future.task_id: list(item.depends_on) for group in groups for item in group if item.depends_on}
    tasks: dict[str, list[bytes]] = {}
    task_ids: dict[str, list[str]] = {}
    for group in groups:  # several groups can name one function: each call by id has a Function of its own
        tasks.setdefault(group[0].function.id, []).extend(item.payload for item in group)
        task_ids.setdefault(group[0].function.id, []).extend(item.future.task_id for item in group)
    return api.SubmitBody(
        tasks=tasks,
        task_ids=task_ids,
        pieces=pieces_of(tasks, task_ids) or None,
        task_group_id=target.task_group_id,
        user_runtime=user_runtime(),
        user_endpoint_config=_decoded(target.user_endpoint_config),
        resource_specification=_decoded(target.resource_specification),
        depends_on=depends_on or None,
        **target.options._asdict(),
    )


def _size_in_request(item: Item) -> int:
    """Return how many bytes a task adds to a request, or some more."""
    texts = list(item.depends_on)
    if item.payload[3:4] in MAY_BE_DATA and is_data(item.payload):
        texts += [digest.hex() for digest in digests_of(item.payload)]
    return len(item.payload) + _TASK_OVERHEAD_BYTES + sum(len(text) + _TEXT_BYTES for text in texts)


def _decoded(text: bytes) -> dict[str, Any] | None:
    return _decoder.decode(text) if text else None


def _copy(error: MepError) -> MepError:
    """Return an error of its own for each future: raising one adds to its traceback."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.args = error.args
    return twin
