"""Futures as arguments: the relay holds a task until those that it waits for have ended, and adds their results."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mep_sdk import Executor
from mep_sdk.errors import DependencyFailed
from mep_wire.api import SubmitBody
from mep_wire.errors import BodyInvalid, DependencyRefused, TaskNotFound
from mep_wire.ids import uuid7
from tests.support.campus import Campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
WAIT_S = 120
ENGINES = ["ProcessPoolEngine", "GlobusComputeEngine"]


def add(*numbers: int) -> int:
    return sum(numbers)


def total(numbers: list[int], **named: int) -> int:
    return sum(numbers) + sum(named.values())


def when(go: str, value: int) -> int:
    import pathlib
    import time

    while not pathlib.Path(go).exists():
        time.sleep(0.05)
    return value


def joined(*parts: bytes) -> str:
    import hashlib

    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_results_by_reference_are_handed_over_too(executor: Executor) -> None:
    """They are over the limit of a message, and so are the other arguments."""
    own = os.urandom(12_000_000)
    large = executor.submit(noise, 12_000_000)
    before = executor.submit(joined, large, own)
    data = large.result(WAIT_S)
    after = executor.submit(joined, large, own)
    assert before.result(WAIT_S) == after.result(WAIT_S) == joined(data, own)


def fail(value: int) -> int:
    raise KeyError(f"no molecule {value}")


def size_of(data: bytes) -> int:
    return len(data)


def noise(size: int) -> bytes:
    import os

    return os.urandom(size)


@pytest.fixture(params=ENGINES)
def executor(request: pytest.FixtureRequest, multi_user: Campus) -> Iterator[Executor]:
    with multi_user.executor("alice", engine=request.param) as made:
        assert made.submit(add, 1, 2).result(WAIT_S) == 3  # and the relay has said that it holds tasks
        yield made


@pytest.fixture
def pool(multi_user: Campus) -> Iterator[Executor]:
    with multi_user.executor("alice") as made:
        assert made.submit(add, 1, 2).result(WAIT_S) == 3
        yield made


@pytest.fixture
def go() -> Iterator[pathlib.Path]:
    """A file that tasks wait for; all accounts see its directory."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory) / "go"


def sent(executor: Executor, *futures: Any) -> None:
    """Wait until the relay has these tasks."""
    assert executor.flush(WAIT_S)
    for each in futures:
        assert executor.client.get_task(each.task_id)["pending"]


def test_the_relay_hands_the_result_over(executor: Executor, go: pathlib.Path) -> None:
    first = executor.submit(when, str(go), 40)
    second = executor.submit(add, first, 1)
    third = executor.submit(total, [second, first], more=second)
    sent(executor, second, third)
    told = executor.client.get_task(second.task_id)
    assert told["reason"] == f"The task waits for task {first.task_id}, as it needs its result."
    go.touch()
    assert (second.result(WAIT_S), third.result(WAIT_S)) == (41, 122)


def test_nobody_is_needed_meanwhile(pool: Executor, multi_user: Campus, go: pathlib.Path) -> None:
    """The script that has submitted them ends, and another one finds the last result."""
    first = Executor(endpoint_id=multi_user.endpoint.id, client=multi_user.client("alice"))
    first.submit(add, 0).result(WAIT_S)
    one = first.submit(when, str(go), 1)
    two = first.submit(add, one, 1)
    sent(first, two)
    first.shutdown(wait=False)
    go.touch()
    until("its end", lambda: not pool.client.get_task(two.task_id)["pending"], WAIT_S)
    assert pool.client.get_result(two.task_id) == 2


def test_a_result_of_megabytes_goes_to_the_site_alone(pool: Executor) -> None:
    made = pool.submit(noise, 5_000_000)
    sizes = [pool.submit(size_of, made) for _ in range(5)]
    assert [each.result(WAIT_S) for each in sizes] == [5_000_000] * 5


def test_failures_are_named_with_their_cause(pool: Executor, go: pathlib.Path) -> None:
    waits = pool.submit(when, str(go), 7)
    failed = pool.submit(fail, waits)
    after = pool.submit(add, failed, 1)
    last = pool.submit(add, after, 1)
    sent(pool, failed, after, last)
    go.touch()
    with pytest.raises(DependencyFailed, match="no molecule 7") as caught:
        after.result(WAIT_S)
    assert failed.task_id in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DependencyFailed, match=after.task_id):
        last.result(WAIT_S)


def test_cancellation_reaches_those_that_wait(pool: Executor, go: pathlib.Path) -> None:
    first = pool.submit(when, str(go), 1)
    second = pool.submit(add, first, 1)
    own = pool.submit(add, first, 2)
    sent(pool, second, own)
    assert own.cancel() and own.cancelled()
    until("it runs", lambda: first.running(), WAIT_S)
    assert first.cancel()
    with pytest.raises(DependencyFailed, match="it was cancelled"):
        second.result(WAIT_S)


def test_the_deadline_of_one_that_waits_counts(pool: Executor, go: pathlib.Path) -> None:
    first = pool.submit(when, str(go), 1)
    pool.deadline_s = 3.0
    second = pool.submit(add, first, 1)
    pool.deadline_s = None
    third = pool.submit(add, second, 1)
    with pytest.raises(DependencyFailed, match="it expired"):
        third.result(WAIT_S)
    go.touch()
    assert first.result(WAIT_S) == 1


def test_a_long_chain_and_a_wide_one(pool: Executor) -> None:
    last = pool.submit(add, 0)
    for _ in range(50):
        last = pool.submit(add, last, 1)
    assert last.result(WAIT_S) == 50
    assert pool.submit(total, [pool.submit(add, number) for number in range(100)]).result(WAIT_S) == 4950
    many = [pool.submit(add, number) for number in range(150)]  # more than the relay takes: the SDK waits itself
    assert pool.submit(total, many).result(WAIT_S) == sum(range(150))


def test_a_restart_of_the_relay_loses_nothing(own_place: Campus, go: pathlib.Path) -> None:
    own_place.endpoint.start()
    with own_place.executor(own_place.anybody) as executor:
        executor.submit(add, 0).result(WAIT_S)
        first = executor.submit(when, str(go), 1)
        second = executor.submit(add, first, 1)
        third = executor.submit(add, second, 1)
        sent(executor, second, third)
        until("it runs", lambda: first.running(), WAIT_S)
        own_place.site.relay.stop()
        go.touch()
        time.sleep(1)  # the first task ends while the relay is away
        own_place.site.relay.start()
        assert third.result(WAIT_S) == 3


def submit_raw(executor: Executor, depends_on: dict[str, list[str]]) -> None:
    """Submit tasks that wait for others, by the HTTP API."""
    function, ids = executor.register_function(add), list(depends_on)
    payloads: list[Any] = [b"x"] * len(ids)
    body = SubmitBody(tasks={function: payloads}, task_ids={function: ids}, depends_on=depends_on)
    assert executor.endpoint_id is not None
    executor.client.submit(executor.endpoint_id, body)


def test_only_ones_own_tasks_can_be_waited_for(pool: Executor, multi_user: Campus) -> None:
    mine = pool.submit(add, 1)
    mine.result(WAIT_S)
    with multi_user.executor("bob") as other:
        for unknown in (mine.task_id, str(uuid7())):
            with pytest.raises(DependencyRefused, match="you have no task of this id"):
                submit_raw(other, new := {str(uuid7()): [unknown]})
            with pytest.raises(TaskNotFound):
                other.client.get_task(next(iter(new)))


def test_circles_are_refused(pool: Executor) -> None:
    one, two, three = (str(uuid7()) for _ in range(3))
    for circle in ({one: [one]}, {one: [two], two: [three], three: [one]}):
        with pytest.raises(BodyInvalid, match="would wait for itself"):
            submit_raw(pool, circle)
    with pytest.raises(BodyInvalid, match="is not in task_ids"):
        function = pool.register_function(add)
        body = SubmitBody(tasks={function: [b"x"]}, task_ids={function: [one]}, depends_on={two: [one]})
        assert pool.endpoint_id is not None
        pool.client.submit(pool.endpoint_id, body)
