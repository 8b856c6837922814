"""In a forked child, whatever waits for its parent's tasks says so at once; the parent's go on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mep_sdk import Client, Executor
from mep_sdk.errors import ForkedExecutor
from mep_sdk.futures import TaskFuture
from mep_wire.errors import MepError
from tests.support.waiting import until

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
Call = Callable[[Executor, TaskFuture[Any]], Any]
REFUSED: list[Call] = [
    lambda executor, _: executor.submit(pow, 2, 3),
    lambda executor, _: executor.flush(),
    lambda executor, _: executor.reload_tasks(ENDPOINT),
    lambda executor, _: executor.stats(),
    lambda executor, future: executor.cancel([future]),
    lambda _, future: future.result(),
    lambda _, future: future.exception(),
    lambda _, future: future.cancel(),
    lambda _, future: future.add_done_callback(print),
    lambda _, future: concurrent.futures.wait([future]),
    lambda _, future: list(concurrent.futures.as_completed([future])),
]
ALLOWED: list[Call] = [
    lambda _, future: repr(future),
    lambda _, future: (future.reason, future.reason_code, future.running(), future.done()),
    lambda executor, _: repr(executor),
    lambda executor, _: executor.shutdown(cancel_futures=True),
    lambda executor, future: executor._session.cancel_futures([future]),  # by an iterator's end
]


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor(ENDPOINT, client=Client("http://127.0.0.1:9", "token"))
    yield made
    made._session.stop(cancel_futures=False)
    made._session._fail_futures(list(made._session._pending.values()), MepError(text="the test is over"))


def _outcome(call: Callable[[], Any]) -> int:
    try:
        call()
    except ForkedExecutor:
        return 3
    except BaseException:  # the child must not go on as a second pytest
        return 4
    return 0


def _in_child(executor: Executor, call: Callable[[], Any]) -> int:
    """Return how `call` ends in a child that is forked while another thread holds the executor's lock."""
    with executor._session._change:
        child = os.fork()
        if child == 0:
            os._exit(_outcome(call))
    try:
        until("the child's end", lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_what_needs_the_parents_threads_is_refused(executor: Executor) -> None:
    future = executor.submit(pow, 2, 3)
    assert [_in_child(executor, lambda call=call: call(executor, future)) for call in REFUSED] == [3] * len(REFUSED)  # type: ignore[misc]
    assert not future.done()


def test_what_does_not_is_answered(executor: Executor) -> None:
    future = executor.submit(pow, 2, 3)
    assert [_in_child(executor, lambda call=call: call(executor, future)) for call in ALLOWED] == [0] * len(ALLOWED)  # type: ignore[misc]
    assert not future.done()


def test_a_result_that_was_there_stays(executor: Executor) -> None:
    future = executor.submit(pow, 2, 3)
    executor._session._pending.pop(future.task_id)
    future.resolve(8, None)
    assert _in_child(executor, lambda: future.result() / 8 - 1 and os._exit(9)) == 0
    assert _in_child(executor, lambda: future.add_done_callback(lambda _: os._exit(7))) == 7
