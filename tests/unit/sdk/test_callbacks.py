"""Done-callbacks may wait, shut down and fail: results and other callbacks go on, in order for each future."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mep_sdk import submitter
from mep_sdk.callback_threads import CallbackThreads
from mep_sdk.futures import TaskFuture
from mep_sdk.serialize import serialize_result
from mep_sdk.submitter import Submitter
from mep_wire import api
from mep_wire.states import TaskState
from tests.unit.sdk.test_submitter_threads import Listener, Relay

WAIT_S = 60
DONE = serialize_result(1)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Submitter]:
    monkeypatch.setattr(submitter, "ResultListener", Listener)
    monkeypatch.setattr(submitter, "StatusPoller", Listener)
    yield Submitter(Relay(), lost_relay_timeout_s=10.0)  # type: ignore[arg-type]


def adopted(session: Submitter, count: int) -> list[TaskFuture]:
    return session.adopt("group", [f"task {number}" for number in range(count)])


def deliver(session: Submitter, *futures: TaskFuture) -> None:
    """As the listener does: in a thread of its own, which is to come back."""

    def bring() -> None:
        session._deliver([api.StreamedResult(each.task_id, TaskState.SUCCESS, "", "", DONE) for each in futures])

    listener = threading.Thread(target=bring, daemon=True)
    listener.start()
    listener.join(WAIT_S)
    assert not listener.is_alive()


def ended(call: Callable[[], object]) -> None:
    """Make a call in a thread, which is to end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_thousand_callbacks_that_each_wait_for_a_later_future_finish(session: Submitter) -> None:
    futures = adopted(session, 1001)
    got: list[Any] = []
    for future, later in itertools.pairwise(futures):
        future.add_done_callback(lambda _, later=later: got.append(later.result(WAIT_S)))
    for future in futures:
        deliver(session, future)
    session.stop(cancel_futures=False)
    ended(session.wait)
    assert got == [1] * 1000


def test_a_thousand_callbacks_that_each_wait_for_what_a_later_one_does_finish(session: Submitter) -> None:
    futures = adopted(session, 1000)
    called = [threading.Event() for _ in range(1001)]
    called[1000].set()

    def follow(number: int) -> None:
        if called[number + 1].wait(WAIT_S):
            called[number].set()

    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: follow(number))
    deliver(session, *futures)
    assert called[0].wait(WAIT_S)
    session.stop(cancel_futures=False)
    ended(session.wait)
    pool = session._callbacks
    with pool._change:
        assert pool._change.wait_for(lambda: len(pool._threads) <= 3, WAIT_S)


def test_callbacks_that_do_not_wait_need_two_threads(session: Submitter) -> None:
    most = []
    futures = adopted(session, 2000)
    for future in futures:
        future.add_done_callback(lambda _: most.append(len(session._callbacks._threads)))
    for future in futures:
        deliver(session, future)
    session.stop(cancel_futures=False)
    ended(session.wait)
    assert len(most) == 2000
    assert max(most) <= 4


@pytest.mark.parametrize("wait", ["result", "wait", "as_completed", "shutdown", "submit"])
def test_a_callback_that_waits_holds_up_no_result(session: Submitter, wait: str) -> None:
    first, second, third = adopted(session, 3)
    done, called = threading.Event(), threading.Event()

    def waits(_: object) -> None:
        if wait == "result":
            second.result(WAIT_S)
        elif wait == "wait":
            concurrent.futures.wait([second, third], WAIT_S)
        elif wait == "as_completed":
            list(concurrent.futures.as_completed([second, third], WAIT_S))
        elif wait == "shutdown":
            session.stop(cancel_futures=False)
            session.wait()
        else:
            called.wait(WAIT_S)
        done.set()

    first.add_done_callback(waits)
    third.add_done_callback(lambda _: called.set())
    deliver(session, first)
    deliver(session, second)
    deliver(session, third)
    assert second.result(WAIT_S) == 1
    assert done.wait(WAIT_S)
    assert called.wait(WAIT_S)


def test_several_callbacks_may_shut_down_while_the_script_does(session: Submitter) -> None:
    futures = adopted(session, 5)

    def shut_down() -> None:
        session.stop(cancel_futures=False)
        session.wait()

    ends: list[int] = []
    for future in futures:
        future.add_done_callback(lambda _: (shut_down(), ends.append(1)))
    deliver(session, *futures)
    ended(shut_down)
    session._callbacks.wait()
    assert len(ends) == 5


def test_shutdown_returns_after_the_callbacks(session: Submitter) -> None:
    (future,) = adopted(session, 1)
    gate, called = threading.Event(), []
    future.add_done_callback(lambda _: (gate.wait(WAIT_S), called.append(1)))
    deliver(session, future)
    session.stop(cancel_futures=False)
    threading.Timer(0.05, gate.set).start()
    ended(session.wait)
    assert called == [1]


def test_the_order_of_one_futures_callbacks_is_kept(session: Submitter) -> None:
    futures = adopted(session, 50)
    order: dict[str, list[int]] = {future.task_id: [] for future in futures}
    gate = threading.Event()
    for future in futures:
        future.add_done_callback(lambda _: gate.wait(WAIT_S))
        for number in range(20):
            future.add_done_callback(lambda future, number=number: order[future.task_id].append(number))
    deliver(session, *futures)
    for future in futures:  # it has ended, and earlier callbacks wait
        future.add_done_callback(lambda future: order[future.task_id].append(20))
    gate.set()
    session.stop(cancel_futures=False)
    ended(session.wait)
    assert set(map(tuple, order.values())) == {tuple(range(21))}


def test_a_callback_may_add_one(session: Submitter) -> None:
    (future,) = adopted(session, 1)
    called: list[str] = []
    future.add_done_callback(
        lambda each: (each.add_done_callback(lambda _: called.append("second")), called.append("first"))
    )
    deliver(session, future)
    session._callbacks.wait()
    assert called == ["first", "second"]
    future.add_done_callback(lambda _: called.append("now"))
    assert called[-1] == "now"


class MuteError(Exception):
    def __str__(self) -> str:
        raise SystemExit


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def mute(_: object) -> None:
    raise MuteError


@pytest.mark.parametrize("callback", [lambda _: sys.exit("now"), interrupt, mute, lambda _: 1 / 0])
def test_a_callback_that_fails_is_logged_and_the_next_is_called(
    session: Submitter, callback: Callable[[object], object], caplog: pytest.LogCaptureFixture
) -> None:
    (future,) = adopted(session, 1)
    called: list[object] = []
    future.add_done_callback(callback)
    future.add_done_callback(called.append)
    with caplog.at_level(logging.ERROR, "mep_sdk"):
        deliver(session, future)
        session._callbacks.wait()
    assert called == [future]
    assert "a callback of task task 0 has failed" in caplog.text


def test_ctrl_c_in_a_callback_that_is_called_at_once_is_the_persons(session: Submitter) -> None:
    (future,) = adopted(session, 1)
    deliver(session, future)
    with pytest.raises(KeyboardInterrupt):
        future.add_done_callback(interrupt)


def test_callbacks_of_cancelled_and_refused_futures_are_called(session: Submitter) -> None:
    cancelled, refused = adopted(session, 2)
    called: list[object] = []
    for future in (cancelled, refused):
        future.add_done_callback(called.append)
    session._taken(cancelled.task_id)
    cancelled.mark_cancelled()
    session._fail_futures([refused], submitter.MepError(text="no"))
    session._callbacks.wait()
    assert called == [cancelled, refused]


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mep_sdk.callback_threads._KEEP_IDLE_S", 0.01)

    class Ended:
        def call_callbacks(self) -> None:
            pass

    threads = CallbackThreads()
    threads.put(Ended())
    threads.wait()
    for thread in list(threads._threads):
        thread.join(WAIT_S)
    assert not threads._threads
    threads.put(Ended())
    threads.wait()
