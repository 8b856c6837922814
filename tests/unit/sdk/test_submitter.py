"""The outcomes that reach futures from the threads that bring results."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import sys
import threading
from typing import Any

import msgspec
import pytest

from mep_sdk import encoding, submitter
from mep_sdk.errors import DataUnreadable, DependencyFailed
from mep_sdk.futures import TaskFuture, new_task_id
from mep_sdk.serialize import serialize_result
from mep_sdk.submitter import Submitter, Target
from mep_sdk.task_options import TaskOptions
from mep_wire import api
from mep_wire.data_frames import DataFrame, Part, encode_data
from mep_wire.states import TaskState


class Exits:
    """A value that ends any process that loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, ("from the result",)


@pytest.fixture
def session() -> Submitter:
    return Submitter(None, lost_relay_timeout_s=10.0)  # type: ignore[arg-type]  # nothing is asked of the relay


def awaited(session: Submitter, *task_ids: str) -> list[TaskFuture]:
    for task_id in task_ids:
        session._pending[task_id] = TaskFuture(task_id, "group", session)
    return [session._pending[task_id] for task_id in task_ids]


def success(task_id: str, payload: bytes) -> api.StreamedResult:
    return api.StreamedResult(task_id, TaskState.SUCCESS, "", "", payload)


def test_a_callback_that_exits_keeps_no_other_result_from_its_future(session: Submitter) -> None:
    first, second = awaited(session, "first", "second")
    called: list[concurrent.futures.Future[Any]] = []
    first.add_done_callback(lambda _: sys.exit("from a callback"))
    first.add_done_callback(called.append)
    session._deliver([success("first", serialize_result(1)), success("second", serialize_result(2))])
    assert (first.result(0), second.result(0)) == (1, 2)
    session._callbacks.wait()
    assert called == [first]


def test_a_result_that_exits_when_it_is_loaded_is_that_futures_failure(session: Submitter) -> None:
    first, second = awaited(session, "first", "second")
    exits = encoding.frame(encoding.PICKLE, pickle.dumps(Exits()))
    session._deliver([success("first", exits), success("second", serialize_result(2))])
    session._loaders.wait()
    with pytest.raises(DataUnreadable, match="SystemExit: from the result"):
        first.result(0)
    assert second.result(0) == 2


GO = threading.Event()


def wait_and_fail() -> None:
    assert GO.wait(60)
    raise KeyError("loaded")


class WaitsAndFails:
    def __reduce__(self) -> tuple[Any, ...]:
        return wait_and_fail, ()


def test_a_task_that_was_not_run_ends_after_its_cause_is_loaded(session: Submitter) -> None:
    """Else its exception has no `__cause__`: results that run code are loaded by other threads."""
    first, second, third = awaited(session, "first", "second", "third")
    second.waits_for, third.waits_for = (first,), (second,)
    first.add_done_callback(lambda _: third.exception(60))  # a person's callback may wait for what comes behind
    slow = encoding.frame(encoding.PICKLE, pickle.dumps(WaitsAndFails()))
    not_run = api.StreamedResult("second", TaskState.FAILED, "DEPENDENCY_FAILED", "first: FAILED", b"")
    behind = api.StreamedResult("third", TaskState.FAILED, "DEPENDENCY_FAILED", "second: DEPENDENCY_FAILED", b"")
    session._deliver([success("first", slow), not_run, behind])
    assert not second.done() and not third.done()
    GO.set()
    failure = second.exception(60)
    assert isinstance(failure, DependencyFailed)
    assert failure.__cause__ is first.exception(0)
    last = third.exception(60)
    assert last is not None and last.__cause__ is failure
    session._callbacks.wait()
    assert not session._loading and not session._behind


def by_reference(count: int) -> bytes:
    parts = [Part(1 << 22, os.urandom(32)) for _ in range(count)]
    return encode_data(DataFrame(encoding.PICKLE, "", 2, parts), encoding.OUTPUT_WANTED)


@pytest.mark.parametrize("payload", [b"", b"x" * 70_000, by_reference(1), by_reference(500)], ids=range(4))
@pytest.mark.parametrize("others", [0, 1, 100])
def test_a_request_is_no_larger_than_its_tasks_were_taken_to_be(payload: bytes, others: int) -> None:
    target = Target(new_task_id(), new_task_id(), b"", b"", TaskOptions())
    depends_on = tuple(new_task_id() for _ in range(others))

    def item() -> submitter.Item:
        future: TaskFuture[Any] = TaskFuture(new_task_id(), target.task_group_id, None)
        return submitter.Item(future, target, submitter.Function(id=new_task_id()), payload, depends_on)

    items = [item() for _ in range(300)]
    request = msgspec.msgpack.encode(submitter._body(target, [[each] for each in items]))
    empty = msgspec.msgpack.encode(submitter._body(target, []))
    assert len(request) - len(empty) <= sum(map(submitter._size_in_request, items))
