"""The future of one task on an endpoint, and the ids of tasks."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mep_sdk.errors import ForkedExecutor
from mep_sdk.foreign_code import attempt, failure_text, type_name
from mep_wire.text import printable, printable_lines
from mep_wire.waits import Wait

if TYPE_CHECKING:
    from mep_sdk.live_output import LiveText

log = logging.getLogger("mep_sdk")


_T = TypeVar("_T")


class Canceller(Protocol):
    """What a future asks to be cancelled, to have its callbacks called, and where its task is."""

    def cancel_futures(self, futures: list[TaskFuture[Any]]) -> int:
        """Cancel the tasks that have not ended; return their number."""

    def call_back(self, future: TaskFuture[Any]) -> None:
        """Have `call_callbacks` of a future called, in a thread that has nothing else to do."""

    def look_soon(self) -> None:
        """Have the relay asked soon where tasks are."""

    def held_up(self, task_id: str) -> Wait | None:
        """Return what keeps the task from the relay, or its state from here; None where nothing does."""


_making = threading.Lock()
"""Held while a future gets its condition, or is resolved without one."""


_forks = 0
"""How often this process, or one that it comes from, was forked."""


def _unlock_in_child() -> None:
    global _making, _forks
    _making = threading.Lock()  # another thread of the parent may have held it
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)


class TaskFuture(Future[_T]):
    """A concurrent.futures.Future with the task's id.

    While the task has not ended, the executor asks the relay now and then where it is. `running()` and `reason` tell
    the last answer, and have it asked again soon.

    A Future makes a condition, a lock and three containers when it is made. Of many thousand futures most are
    never waited for while pending, and the garbage collector would spend more time on these than all else here
    takes. They are therefore made on the first access to the condition.
    """

    _lazy_condition: threading.Condition | None = None
    endpoint_id = ""
    """The endpoint that the task was sent to; empty where another script has sent it."""
    function_name = ""
    status = ""
    """The relay's last word on where the task is, such as `waiting-for-ep` or `running`; empty before it is asked."""
    stdout = ""
    """What the task printed, once it has ended: by Python's own streams, the last 64 kB. The function's print() and
    logging, for example, but not the output of programs that it ran. With the executor's `stream_output` it has what
    came so far while the task runs, and the output of a ShellFunction's command too."""
    stderr = ""
    """The same of sys.stderr."""
    only_json = False
    """Whether nothing of its result is unpickled: its executor asked for JSON alone. For the session alone."""
    waits_for: tuple[Future[Any], ...] = ()
    """The futures among its arguments. For the session alone."""
    live: LiveText | None = None
    """What came while it runs, where that is wanted. For the session alone."""
    _wait = Wait("", "")
    _calling_back = False
    """Whether a thread is in `call_callbacks`."""

    def __init__(self, task_id: str, task_group_id: str, canceller: Canceller) -> None:
        # Not the base's __init__, which makes everything: see above.
        self._state: str = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self.task_id = task_id
        self.task_group_id = task_group_id
        self._canceller = canceller
        self._born = _forks

    @property
    def session(self) -> Canceller:
        """The session that it belongs to. For sessions alone."""
        return self._canceller

    def _check_process(self) -> None:
        """Raises ForkedExecutor in a forked child for a task of its parent's that had not ended then: no thread here
        gets its result."""
        if self._born != _forks and not self.done():
            raise ForkedExecutor

    def _made_condition(self) -> threading.Condition:
        made = self._lazy_condition
        if made is None:
            with _making:
                made = self._lazy_condition
                if made is None:
                    self._waiters = []
                    self._done_callbacks: list[Callable[[Future[_T]], object]] = []
                    made = self._lazy_condition = threading.Condition()
        return made

    def _checked_condition(self) -> threading.Condition:
        self._check_process()
        return self._made_condition()

    if not TYPE_CHECKING:  # the base has an attribute, which as_completed() asks for by type
        _condition = property(_checked_condition)

    def done(self) -> bool:
        """Return whether the task has ended or was cancelled."""
        return self._state not in (PENDING, RUNNING)

    def running(self) -> bool:
        """Return whether a worker has begun the task, as far as the relay was asked by now, and has not ended it."""
        if self.done():
            return False
        self._canceller.look_soon()
        return self.status == "running"

    @property
    def reason(self) -> str:
        """Why the task waits, as the relay told it last; empty if it is not known, or the task runs or has ended."""
        if self.done():
            return ""
        self._canceller.look_soon()
        return self._known_wait().text

    @property
    def reason_code(self) -> str:
        """The code of `reason`: a mep_wire.waits.WaitCode, or that of an error that is tried again."""
        return self._known_wait().code

    @property
    def waiting_since(self) -> float | None:
        """Since when it waits for `reason`, in seconds since the epoch; None if not known. By the relay's clock, or by
        this machine's where the relay is what it waits for."""
        return self._known_wait().since or None

    def _known_wait(self) -> Wait:
        return Wait("", "") if self.done() else self._canceller.held_up(self.task_id) or self._wait

    @property
    def wait_told(self) -> Wait:
        """The reason that was told last. For the session alone."""
        return self._wait

    def told(self, status: str, wait: Wait) -> None:
        """Take in where the relay has the task, and why it waits. For the session alone."""
        self.status, self._wait = status, wait

    def __repr__(self) -> str:
        shown = f"<TaskFuture {self.task_id}"
        for name, value in (("function", self.function_name), ("endpoint", self.endpoint_id)):
            shown += f" {name}={printable(value)}" if value else ""
        return f"{shown} {self._shown_state()}>"

    def _repr_html_(self) -> str:
        from mep_sdk import html  # only notebooks need it

        rows = [
            ("task", self.task_id),
            ("function", self.function_name),
            ("endpoint", self.endpoint_id),
            ("state", self._shown_state().partition("=")[2]),
            *((name, html.last_lines(getattr(self, name))) for name in ("stdout", "stderr")),
        ]
        return html.table("TaskFuture", rows)

    def _shown_state(self) -> str:
        text = self._known_wait().text
        known = [printable(each) for each in (self.status, text) if each]
        told = f" ({': '.join(known)})" if known and not self.done() else ""
        with self._made_condition():
            if self._state != FINISHED:
                return f"state={self._state.partition('_')[0].lower()}{told}"
            if self._exception is not None:
                return f"state=finished raised {type_name(self._exception)}"
            return f"state=finished returned {type(self._result).__name__}"

    def result(self, timeout: float | None = None) -> _T:
        """Return the task's value, or raise what it raised. Waits `timeout` seconds at most; raises TimeoutError,
        CancelledError, and ForkedExecutor in a forked child."""
        failure = None if self._state == FINISHED and self._exception is None else self.exception(timeout)
        if failure is None:
            return self._result  # type: ignore[no-any-return]  # as the base has it
        try:
            raise failure  # not by the base, which takes an exception that is false for none
        finally:
            failure = None  # its traceback has this frame: no cycle

    def resolve(self, value: Any, failure: BaseException | None) -> None:
        """End with this value or failure. For the session alone."""
        with _making:
            if self._lazy_condition is None and self._state == PENDING:
                # No thread can be waiting yet, and a later one will see this.
                self._result, self._exception = value, failure
                self._state = FINISHED
                return
        if failure is None:
            self.set_result(value)
        else:
            self.set_exception(failure)

    def cancel(self) -> bool:
        """Cancel the task, waiting or running; return False where it has ended already.

        A task that was not sent yet is simply dropped. For others the relay is asked, which takes a round trip;
        False is also the answer where it is away. It is then asked once it is back, as long as this process lives.
        Raises ForkedExecutor in a forked child.
        """
        self._check_process()
        if self.cancelled():
            return True
        return not self.done() and self._canceller.cancel_futures([self]) == 1

    def add_done_callback(self, fn: Callable[[Future[_T]], object]) -> None:
        """Have `fn` called with this future once it has ended: after those that were added before, in a thread of the
        executor's. It may wait for other futures. What it raises is logged, sys.exit() included."""
        with self._condition:
            if not self.done() or self._done_callbacks or self._calling_back:
                self._done_callbacks.append(fn)
                return
        self._call(fn)

    def _invoke_callbacks(self) -> None:
        # Called by the base once the state is final, in the thread that brings results.
        if self._done_callbacks:
            self._canceller.call_back(self)

    def call_callbacks(self) -> None:
        """Call the callbacks, and those that are added meanwhile."""
        while True:
            with self._condition:
                callbacks, self._done_callbacks = self._done_callbacks, []
                self._calling_back = bool(callbacks)
                if not callbacks:
                    return
            for callback in callbacks:
                self._call(callback)

    def _call(self, callback: Callable[[Future[_T]], object]) -> None:
        _, failure = attempt(callback, self)
        if isinstance(failure, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise failure
        if failure is not None:
            shown, _ = attempt(traceback_of, failure)
            log.error("a callback of task %s has failed\n%s", self.task_id, shown or failure_text(failure))

    def mark_cancelled(self) -> bool:
        """Become cancelled unconditionally, and wake waiting threads. Called only by the session."""
        return super().cancel() and not self.set_running_or_notify_cancel()


def traceback_of(error: BaseException) -> str:
    """Return an exception with its traceback, for a log that is mostly a terminal."""
    import traceback  # only a failure needs it

    return printable_lines("".join(traceback.format_exception(error)).rstrip())


class TaskIds:
    """Version 7 UUIDs as text, each greater than the one before in this process, so that the relay's index of
    tasks is appended to. The random part is drawn once and then counted up (RFC 9562, section 6.2, method 2)."""

    def __init__(self) -> None:
        self.reseed()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reseed)

    def reseed(self) -> None:
        """Draw a new random part: a forked child must not repeat its parent's ids."""
        start = int.from_bytes(os.urandom(8), "big") >> 3  # the top bit stays clear, as room for counting up
        self._count = itertools.count(start)
        self._newest_ms = 0

    def __call__(self) -> str:
        """Return the next id."""
        # A clock that steps back keeps the newest time: the count alone then gives the order.
        now_ms = time.time_ns() // 1_000_000
        self._newest_ms = stamp = max(self._newest_ms, now_ms)
        low = next(self._count) & 0x3FFF_FFFF_FFFF_FFFF
        text = f"{stamp:012x}7000{low | 0x8000_0000_0000_0000:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


new_task_id = TaskIds()
