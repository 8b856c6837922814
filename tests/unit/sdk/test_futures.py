"""Futures behave as the standard library's, and ids of tasks."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import uuid
from concurrent.futures import CancelledError, InvalidStateError

import pytest

from mep_sdk.futures import TaskFuture, TaskIds

WAIT_S = 10


class Nobody:
    def cancel_futures(self, futures):
        return sum(future.mark_cancelled() for future in futures)

    def call_back(self, future):
        future.call_callbacks()

    def held_up(self, task_id):
        return None


def pending() -> TaskFuture:
    return TaskFuture("t", "g", Nobody())


def waited_for() -> TaskFuture:
    """A future that already has its condition, as after `wait` or a callback."""
    future = pending()
    assert "pending" in repr(future)
    return future


@pytest.fixture(params=[pending, waited_for])
def future(request) -> TaskFuture:
    return request.param()


def test_a_value(future):
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(0)
    future.resolve(3, None)
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert (future.result(), future.result(0), future.exception()) == (3, 3, None)
    assert not future.cancel()
    assert "returned int" in repr(future)


def test_an_exception(future):
    future.resolve(None, ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        future.result()
    assert type(future.exception(0)) is ValueError


def test_cancelled(future):
    assert future.cancel()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result(0)
    assert concurrent.futures.wait([future], 0).done == {future}


def test_it_ends_once(future):
    future.resolve(1, None)
    with pytest.raises(InvalidStateError):
        future.resolve(2, None)
    assert future.result() == 1


def test_callbacks_before_and_after(future):
    called = []
    future.add_done_callback(called.append)
    assert called == []
    future.resolve(1, None)
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_wait_and_as_completed(future):
    other = pending()
    future.resolve(1, None)
    done, left = concurrent.futures.wait([future, other], 0)
    assert (done, left) == ({future}, {other})
    assert list(concurrent.futures.as_completed([future])) == [future]
    threading.Timer(0.05, other.resolve, (2, None)).start()
    assert {each.result() for each in concurrent.futures.as_completed([future, other], WAIT_S)} == {1, 2}


def test_nobody_who_begins_to_wait_at_that_moment_is_forgotten():
    futures = [pending() for _ in range(3000)]
    called = []

    def follow(part):
        for each in part:
            each.add_done_callback(lambda each: called.append(each))
        assert concurrent.futures.wait(part, WAIT_S).not_done == set()
        assert [each.result(WAIT_S) for each in part] == [7] * len(part)

    threads = [threading.Thread(target=follow, args=(futures[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for each in futures:
        each.resolve(7, None)
    for thread in threads:
        thread.join(WAIT_S)
    assert len(called) == 3000


def test_ids_are_version_7_and_in_order():
    ids = TaskIds()
    made = [ids() for _ in range(5000)]
    assert made == sorted(set(made))
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in made} == {(7, uuid.RFC_4122)}
    assert all(str(uuid.UUID(each)) == each for each in made)


def test_a_forked_child_repeats_none():
    ids = TaskIds()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ids().encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader) as theirs:
        os.close(writer)
        assert theirs.read()[-17:] != ids()[-17:]
