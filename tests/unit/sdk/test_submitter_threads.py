"""Many threads in one session: whatever two of them touch, they touch under one rule.

Threads switch every microsecond, and a loop over something that another thread changes fails.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest

from mep_sdk import executor, submitter
from mep_sdk.batch import Batch
from mep_sdk.errors import RelayAnswerMissing
from mep_sdk.futures import TaskFuture
from mep_sdk.serialize import serialize_result
from mep_sdk.settings import ClientSettings
from mep_sdk.submitter import Function, Submitter, Target
from mep_sdk.task_options import TaskOptions
from mep_wire import api
from mep_wire.errors import MepError, RelayUnreachable, TaskNotFound, TokenUnknown
from mep_wire.ids import uuid7
from mep_wire.states import TaskState

GROUPS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(4)]
TASKS = 3000
ROUNDS = 12
WAIT_S = 60
DONE = serialize_result(1)


class Listener(threading.Thread):
    """Stands in for the threads that ask the relay: the test brings the results itself."""

    def __init__(self, *_: Any) -> None:
        super().__init__(daemon=True)
        self.down_s = 0.0

    def run(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def group_known(self) -> None:
        pass

    def replay(self) -> None:
        pass

    def soon(self) -> None:
        pass

    def down_for_s(self) -> float:
        return self.down_s


class Relay:
    """Stands in for the client: takes everything, and cancels nothing."""

    settings = SimpleNamespace(relay_url="http://relay")

    def cancel_many(self, task_ids: Any, *, retry_for_s: float, silent_s: float) -> set[str]:
        time.sleep(0)
        return set(list(task_ids)[::2])


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Submitter]]:
    monkeypatch.setattr(submitter, "ResultListener", Listener)
    monkeypatch.setattr(submitter, "StatusPoller", Listener)
    monkeypatch.setattr(submitter, "_LOOK_AGAIN_S", 0.0005)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield lambda: Submitter(Relay(), lost_relay_timeout_s=10.0)  # type: ignore[arg-type]
    sys.setswitchinterval(before)


@pytest.fixture
def made(make: Callable[[], Submitter]) -> Submitter:
    return make()


def adopted(made: Submitter) -> dict[str, list[TaskFuture]]:
    return {group: made.adopt(group, [f"{group}/{number}" for number in range(TASKS)]) for group in GROUPS}


def together(*calls: Callable[[], object]) -> list[BaseException]:
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        gate.wait()
        try:
            call()
        except BaseException as error:
            failed.append(error)

    gate = threading.Barrier(len(calls))
    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(WAIT_S)
    assert not any(each.is_alive() for each in threads)
    return failed


def delivering(made: Submitter, futures: list[TaskFuture]) -> Callable[[], None]:
    def deliver() -> None:
        for future in futures:
            made._deliver([api.StreamedResult(future.task_id, TaskState.SUCCESS, "", "", DONE)])

    return deliver


def test_shutdown_waits_while_results_come(make: Callable[[], Submitter]) -> None:
    for _ in range(ROUNDS):
        made = make()
        groups = adopted(made)
        made.stop(cancel_futures=False)
        assert not together(made.wait, *(delivering(made, futures) for futures in groups.values()))
        assert all(future.result(0) == 1 for futures in groups.values() for future in futures)


def test_a_group_is_refused_while_results_of_others_come(made: Submitter) -> None:
    groups = adopted(made)
    refused, *others = groups
    no = MepError(text="no")
    calls = [delivering(made, groups[group]) for group in others]
    assert not together(lambda: made._group_refused(refused, no), *calls)
    assert all(future.exception(0).text == "no" for future in groups[refused])  # type: ignore[union-attr]
    assert all(future.result(0) == 1 for group in others for future in groups[group])


def test_pending_tasks_are_listed_and_looked_up_while_results_come(made: Submitter) -> None:
    groups = adopted(made)
    gone, *others = groups

    def look() -> None:
        while made.unfinished():
            made._on_relay()

    def missing() -> None:
        made._rechecked([], [future.task_id for future in groups[gone]])

    assert not together(look, missing, *(delivering(made, groups[group]) for group in others))
    assert all(isinstance(future.exception(0), TaskNotFound) for future in groups[gone])


def test_tasks_are_cancelled_while_results_come(made: Submitter) -> None:
    groups = adopted(made)
    everything = [future for futures in groups.values() for future in futures]

    def cancel() -> None:
        for start in range(0, len(everything), 50):
            made.cancel_futures(everything[start : start + 50])

    assert not together(cancel, cancel, *(delivering(made, futures) for futures in groups.values()))
    for future in everything:
        try:
            assert future.result(0) == 1
        except CancelledError:
            assert future.cancelled()
    assert not made._cancelling


def test_a_relay_that_stays_away_is_given_up_on_while_results_of_others_come(make: Callable[[], Submitter]) -> None:
    for _ in range(ROUNDS):
        made = make()
        groups = adopted(made)
        lost, *others = groups
        made._listeners[lost].down_s = 1e6  # type: ignore[attr-defined]
        made.stop(cancel_futures=False)
        failed = together(made.wait, *(delivering(made, groups[group]) for group in others))
        assert [type(each) for each in failed] == [RelayAnswerMissing]
        assert all(isinstance(future.exception(0), RelayAnswerMissing) for future in groups[lost])


def test_callbacks_of_lost_futures_hold_no_other_thread_up(made: Submitter) -> None:
    futures = adopted(made)[GROUPS[0]]
    made._listeners[GROUPS[0]].down_s = 1e6  # type: ignore[attr-defined]
    asked = threading.Event()

    def elsewhere(_: object) -> None:
        threading.Thread(target=lambda: (made.unfinished(), made._on_relay(), asked.set()), daemon=True).start()
        asked.wait(WAIT_S / 4)

    futures[0].add_done_callback(elsewhere)
    made.stop(cancel_futures=False)
    (error,) = together(made.wait)
    assert isinstance(error, RelayAnswerMissing)
    assert asked.wait(WAIT_S)


def test_cancellation_is_remembered_while_the_relay_is_away(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = made.adopt(GROUPS[0], ["first", "second", "third"])
    away = [True]
    asked: list[set[str]] = []

    def cancel_many(task_ids: Any, **_: Any) -> set[str]:
        if away[0]:
            raise RelayUnreachable(url="http://relay", reason="away", waited_s=1)
        asked.append(set(task_ids))
        return set(task_ids)

    monkeypatch.setattr(made.client, "cancel_many", cancel_many, raising=False)
    assert not first.cancel()
    assert not second.cancel()
    assert not first.done()
    assert set(made._on_relay()) == {"first", "second", "third"}  # and it is still away
    made._deliver([api.StreamedResult("second", TaskState.SUCCESS, "", "", DONE)])
    away[0] = False
    assert made._on_relay() == ["third"]
    assert asked == [{"first"}]
    assert first.cancelled() and second.result(0) == 1 and not third.done()
    assert not made._cancelling
    made._on_relay()
    assert asked == [{"first"}]


def test_a_refused_cancellation_is_not_repeated(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    (future,) = made.adopt(GROUPS[0], ["first"])

    def cancel_many(task_ids: Any, **_: Any) -> set[str]:
        raise TokenUnknown

    monkeypatch.setattr(made.client, "cancel_many", cancel_many, raising=False)
    assert not future.cancel()
    assert not made._owed and not made._cancelling


def test_a_batch_is_filled_and_sent_while_others_fill_it(made: Submitter) -> None:
    filled = Batch()

    def fill() -> None:
        for _ in range(500):
            filled.add(str(uuid7()))

    def send() -> None:
        for _ in range(200):
            assert len(filled) <= 2000
            body = filled.prepare()
            assert {key: len(ids) for key, ids in (body.task_ids or {}).items()} == {
                key: len(payloads) for key, payloads in body.tasks.items()
            }

    assert not together(fill, fill, send, send)
    assert len(filled) == 1000


def test_executors_are_made_while_the_script_ends(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEP_RELAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MEP_TOKEN", "token")
    kept: list[object] = []

    def make() -> None:
        kept.extend(executor.Executor() for _ in range(300))

    def leave() -> None:
        for _ in range(300):
            executor._at_exit()

    assert not together(make, leave, make, leave)


@pytest.mark.parametrize("which", ["mep-sender", "mep-recheck", "mep-results"])
def test_without_threads_there_is_no_task_to_wait_for(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    client: Any = types.SimpleNamespace(settings=ClientSettings("http://127.0.0.1:9", "token"))
    made = Submitter(client, lost_relay_timeout_s=60.0)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith(which):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    target = Target("endpoint", "group", b"", b"", TaskOptions())
    with pytest.raises(RuntimeError, match="new thread"):
        made.submit(target, Function(id="f"), b"")
    assert made.unfinished() == 0
    made.stop(cancel_futures=False)
    made.wait()
