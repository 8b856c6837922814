"""The view of a person's script: a real relay, and a stand-in endpoint that runs tasks for real."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import hashlib
import itertools
import logging
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed
from typing import Any, NamedTuple

import pytest

from mep_sdk import Client, ComputeSerializer, Executor
from mep_sdk.errors import (
    ArgumentsUnserializable,
    DataUnreadable,
    DependencyFailed,
    FunctionUnserializable,
    RelayAnswerMissing,
    RemoteTraceback,
    TaskPending,
)
from mep_sdk.serialize import serialize_function
from mep_wire.errors import (
    EndpointNotFound,
    FunctionNotFound,
    NotConfigured,
    PayloadTooLarge,
    RelayUnreachable,
    ResultUnserializable,
    TaskGroupNotFound,
    TaskNotFound,
    TokenUnknown,
    UserConfigInvalid,
)
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.relay import RelayProcess
from tests.support.waiting import until

NOBODY = "00000000-0000-4000-8000-000000000000"
WAIT_S = 30
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


class Place(NamedTuple):
    relay: RelayProcess
    token: str
    endpoint: FakeEndpoint
    idle: FakeEndpoint
    """An endpoint without a running manager: tasks for it wait."""

    def client(self, **options: Any) -> Client:
        return Client(self.relay.url, self.token, **options)

    def executor(self, **options: Any) -> Executor:
        options.setdefault("endpoint_id", self.endpoint.endpoint_id)
        options.setdefault("client", self.client())
        return Executor(**options)


@pytest.fixture(scope="module")
def campus(tmp_path_factory) -> Iterator[Place]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        token = relay.add_user("ada@example.edu")
        idle = FakeEndpoint(relay, token, serve=False)
        with FakeEndpoint(relay, token, user_config_schema=SCHEMA) as endpoint:
            yield Place(relay, token, endpoint, idle)


@pytest.fixture
def executor(campus) -> Iterator[Executor]:
    with campus.executor() as made:
        yield made


def add(a, b):
    return a + b


def sleep_then(value, seconds):

    time.sleep(seconds)
    return value


class NoSuchMolecule(Exception):
    def __init__(self, name, *, code):
        super().__init__(f"{name} ({code})")
        self.name, self.code = name, code


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def freeze(code):
    raise FrozenError(code)


def look_up(name):
    raise NoSuchMolecule(name, code=7)


# --- submitting -----------------------------------------------------------------------------------------


def test_results_belong_to_their_futures(executor):
    futures = [executor.submit(add, number, b=1) for number in range(300)]
    assert [future.result(WAIT_S) for future in futures] == list(range(1, 301))
    assert len({future.task_id for future in futures}) == 300


def test_futures_work_with_the_standard_library(executor):
    futures = {executor.submit(add, number, 0): number for number in range(20)}
    assert {future.result(): futures[future] for future in as_completed(futures, WAIT_S)} == dict(enumerate(range(20)))
    done, left = concurrent.futures.wait(futures, WAIT_S)
    assert (len(done), len(left)) == (20, 0)


def test_callbacks_are_called(executor):
    called = threading.Event()
    executor.submit(add, 1, 1).add_done_callback(lambda future: future.result() == 2 and called.set())
    assert called.wait(WAIT_S)


def test_callbacks_may_wait_for_other_futures_and_shut_down(campus):
    executor = campus.executor()
    futures = [executor.submit(add, number, 1) for number in range(200)]
    got, down = [], threading.Event()
    for future, later in itertools.pairwise(futures):
        future.add_done_callback(lambda _, later=later: got.append(later.result(WAIT_S)))
    futures[100].add_done_callback(lambda _: (executor.shutdown(wait=True), down.set()))
    executor.shutdown()
    assert sorted(got) == list(range(2, 201))
    assert down.wait(WAIT_S)


def test_a_frozen_exception_is_its_own_tasks_failure(executor):
    others = [executor.submit(add, number, 1) for number in range(5)]
    with pytest.raises(FrozenError) as caught:
        executor.submit(freeze, 3).result(WAIT_S)
    assert caught.value.code == 3
    assert [future.result(WAIT_S) for future in others] == [1, 2, 3, 4, 5]


def test_source_code_and_hardware(campus, executor):
    function_id = executor.register_source_code("import math\n\ndef root(x):\n    return math.sqrt(x)\n", "root")
    assert executor.submit_to_registered_function(function_id, (9,)).result(WAIT_S) == 3.0
    assert "processors" in executor.get_worker_hardware_details()
    client = campus.client()
    task_id = client.get_worker_hardware_details(campus.endpoint.endpoint_id)
    assert client.get_task(task_id)["task_id"] == task_id
    client.version_check("99.0")
    assert campus.endpoint.endpoint_id in {each["uuid"] for each in client.get_endpoints(role="owner")}
    assert client.get_allowed_functions(campus.endpoint.endpoint_id) == {"restricted": False, "functions": []}


def test_a_task_that_waits_says_why(campus, monkeypatch, caplog):
    monkeypatch.setattr("mep_sdk.status_poller.LOOK_AFTER_S", 0.2)
    executor = campus.executor(endpoint_id=campus.idle.endpoint_id)
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        future = executor.submit(add, 1, 2)
        assert until("the reason", lambda: future.reason)
    assert campus.idle.endpoint_id in caplog.text
    assert future.reason in caplog.text
    assert "waiting-for-ep" in repr(future)
    assert executor.stats()["waiting"] == 1
    executor.shutdown(wait=True, cancel_futures=True)
    assert executor.stats()["cancelled"] == 1


def test_a_running_task_says_so(campus, monkeypatch):
    monkeypatch.setattr("mep_sdk.status_poller.LOOK_AGAIN_S", 0.05)
    with campus.executor() as executor:
        future = executor.submit(sleep_then, 3, 2)
        seen = set()
        until("the end", lambda: seen.add(future.running()) or future.done())
        assert future.result() == 3
        assert not future.running()


def total(values):
    return sum(values.values()) if isinstance(values, dict) else sum(values)


def test_futures_may_be_arguments(executor):
    one, two = executor.submit(sleep_then, 1, 0.3), executor.submit(add, 1, 1)
    assert executor.submit(add, one, b=two).result(WAIT_S) == 3
    assert executor.submit(total, [one, two, 10]).result(WAIT_S) == 13
    assert executor.submit(total, {"a": one, "b": two}).result(WAIT_S) == 3
    chain = executor.submit(add, 0, 0)
    for _ in range(20):
        chain = executor.submit(add, chain, 1)
    assert chain.result(WAIT_S) == 20
    mine: concurrent.futures.Future = concurrent.futures.Future()
    waits = executor.submit(add, mine, 1)
    assert not executor.flush(0.2)
    mine.set_result(41)
    assert waits.result(WAIT_S) == 42


def test_shutdown_waits_for_tasks_that_wait_for_others(campus):
    with campus.executor() as executor:
        last = executor.submit(sleep_then, 1, 1)
        for _ in range(5):
            last = executor.submit(add, last, 1)
    assert last.result(0) == 6


def test_a_failed_argument_is_named(executor):
    failed = executor.submit(look_up, "x")
    waits = executor.submit(add, failed, 1)
    with pytest.raises(DependencyFailed, match="NoSuchMolecule") as caught:
        waits.result(WAIT_S)
    assert failed.task_id in str(caught.value)
    assert isinstance(caught.value.__cause__, NoSuchMolecule)
    cancelled: concurrent.futures.Future = concurrent.futures.Future()
    waits = executor.submit(add, cancelled, 1)
    cancelled.cancel()
    with pytest.raises(DependencyFailed, match="cancelled"):
        waits.result(WAIT_S)
    unpicklable: concurrent.futures.Future = concurrent.futures.Future()
    waits = executor.submit(add, unpicklable, 1)
    unpicklable.set_result(threading.Lock())
    with pytest.raises(ArgumentsUnserializable, match="lock"):
        waits.result(WAIT_S)
    never: concurrent.futures.Future = concurrent.futures.Future()
    waits = executor.submit(add, never, 1)
    assert waits.cancel() and waits.cancelled()


def test_ten_thousand_tasks(executor):
    futures = [executor.submit(add, number, number) for number in range(10_000)]
    assert sum(future.result(60) for future in futures) == 9999 * 10_000


def test_many_threads_may_submit(executor):
    totals = []

    def work(start):
        totals.append(sum(executor.submit(add, start, number).result(WAIT_S) for number in range(20)))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(totals) == [190 + 20 * start for start in range(8)]


def test_map(executor):
    assert list(executor.map(add, range(50), range(50))) == [2 * number for number in range(50)]
    assert list(executor.map(add, range(50), range(100, 200), chunksize=7)) == [100 + 2 * n for n in range(50)]
    assert list(executor.map(add, [], [])) == []


def test_map_times_out_and_cancels_the_rest(campus):
    with campus.executor(endpoint_id=campus.idle.endpoint_id) as executor:
        results = executor.map(add, range(3), range(3), timeout=0.2)
        with pytest.raises(TimeoutError):
            next(results)
    # The shutdown has returned, and the remaining tasks are cancelled.


def test_a_function_is_registered_once(executor):
    for _ in range(2):
        executor.submit(add, 1, 2).result(WAIT_S)
    function_id = executor.register_function(add)
    assert executor.register_function(add) == function_id
    with pytest.raises(ValueError, match=function_id):
        executor.register_function(add, NOBODY)
    with Executor(executor.endpoint_id, client=executor.client) as another:
        another.register_function(add, function_id)
        assert another.submit(add, 2, 3).result(WAIT_S) == 5
    assert executor.submit(lambda: 1).result(WAIT_S) == executor.submit(lambda: 1).result(WAIT_S)


def test_the_three_calls_of_a_registered_function(campus, executor):
    client = campus.client()
    function_id = client.register_function(add, public=True)
    found = client.get_function(function_id)
    assert found["sha256"] == hashlib.sha256(serialize_function(add)).hexdigest()
    assert executor.submit_to_registered_function(function_id, args=[1, 2]).result(WAIT_S) == 3
    assert executor.submit_to_registered_function(function_id, (1,), {"b": 5}).result(WAIT_S) == 6
    task_id = client.run(4, b=5, endpoint_id=campus.endpoint.endpoint_id, function_id=function_id)
    assert _result_of(client, task_id) == 9


def _result_of(client, task_id):
    until("the task's end", lambda: not client.get_task(task_id)["pending"])
    return client.get_result(task_id)


def test_a_batch(campus):
    client = campus.client()
    function_id = client.register_function(add)
    batch = client.create_batch(user_endpoint_config={"n": 1})
    ids = [batch.add(function_id, args=(number,), kwargs={"b": 1}) for number in range(5)]
    answer = client.batch_run(campus.endpoint.endpoint_id, batch)
    assert answer["tasks"] == {function_id: ids}
    assert client.batch_run(campus.endpoint.endpoint_id, batch)["tasks"] == {function_id: ids}  # and nothing runs twice
    assert [_result_of(client, task_id) for task_id in ids] == [1, 2, 3, 4, 5]
    found = client.get_batch_result([*ids, NOBODY])
    assert {key: task["result"] for key, task in found.items()} == dict(zip(ids, range(1, 6), strict=True))
    assert client.get_task_group(answer["task_group_id"]) == ids


def test_endpoints_can_be_looked_at(campus):
    client = campus.client()
    assert client.get_endpoint_status(campus.endpoint.endpoint_id)["status"] == "online"
    assert client.get_endpoint_status(campus.idle.endpoint_id)["status"] == "offline"
    assert client.get_endpoint_metadata(campus.endpoint.endpoint_id)["name"] == "stand-in"
    assert {each["uuid"] for each in client.get_endpoints()} >= {campus.endpoint.endpoint_id, campus.idle.endpoint_id}


# --- failing --------------------------------------------------------------------------------------------


def test_an_exception_arrives_as_its_own_type(executor):
    future = executor.submit(look_up, "H3O")
    error = future.exception(WAIT_S)
    assert type(error) is NoSuchMolecule
    assert (str(error), error.name, error.code) == ("H3O (7)", "H3O", 7)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in look_up" in "".join(error.__notes__)
    with pytest.raises(NoSuchMolecule):
        future.result()


def test_a_failed_task_through_the_client(campus, executor):
    future = executor.submit(look_up, "H3O")
    future.exception(WAIT_S)
    client = campus.client()
    task = client.get_task(future.task_id)
    assert (task["pending"], task["status"], task["code"]) == (False, "failed", "TASK_FAILED")
    with pytest.raises(NoSuchMolecule):
        client.get_result(future.task_id)


def test_a_result_that_cannot_travel(executor):
    with pytest.raises(ResultUnserializable, match="lock"):
        executor.submit(threading.Lock).result(WAIT_S)


def test_too_large_arguments_are_refused_at_once(executor):
    executor.serializer = ComputeSerializer(strategy_data="JSONData")  # which does not go by reference
    with pytest.raises(PayloadTooLarge, match="add"):
        executor.submit(add, "x" * (11 << 20), 1)
    with pytest.raises(PayloadTooLarge, match="user_endpoint_config"):
        executor.user_endpoint_config = {"x": "y" * 100_000}


def test_an_argument_that_the_endpoint_cannot_read_says_so(executor, tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "only_on_this_side.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(package))
    import only_on_this_side

    with pytest.raises(DataUnreadable, match=r"on the endpoint: ModuleNotFoundError.*only_on_this_side"):
        executor.submit(add, only_on_this_side.Thing(), 1).result(WAIT_S)


async def asynchronous():
    pass


def test_what_cannot_run_is_refused_at_once(executor):
    with pytest.raises(FunctionUnserializable):
        executor.submit(asynchronous)
    with pytest.raises(TypeError, match="dict"):
        executor.user_endpoint_config = ["a"]
    with pytest.raises(TypeError, match="JSON"):
        executor.user_endpoint_config = {"a": object()}


def test_no_endpoint(campus):
    with campus.executor() as executor, pytest.raises(NotConfigured, match="endpoint_id"):
        executor.endpoint_id = None
        executor.submit(add, 1, 2)


def test_a_refused_submission_fails_its_own_futures_only(campus, executor):
    good = executor.submit(add, 1, 2)
    executor.endpoint_id = NOBODY
    lost = executor.submit(add, 1, 2)
    executor.endpoint_id = campus.endpoint.endpoint_id
    unknown = executor.submit_to_registered_function(NOBODY, (1, 2))
    last = executor.submit(add, 3, 4)
    assert (good.result(WAIT_S), last.result(WAIT_S)) == (3, 7)
    with pytest.raises(EndpointNotFound, match=NOBODY):
        lost.result(WAIT_S)
    with pytest.raises(FunctionNotFound, match=NOBODY):
        unknown.result(WAIT_S)


def test_one_unknown_function_in_a_request_fails_alone(executor):
    executor.submit(add, 0, 0).result(WAIT_S)
    futures = []
    for number in range(50):
        futures.append(executor.submit(add, number, 0))
        futures.append(executor.submit_to_registered_function(NOBODY))
    assert [future.result(WAIT_S) for future in futures[::2]] == list(range(50))
    assert {type(future.exception(WAIT_S)) for future in futures[1::2]} == {FunctionNotFound}


def test_each_submit_takes_a_copy_of_the_configuration(executor):
    config: dict[str, Any] = {"n": 1}
    executor.user_endpoint_config = config
    good = executor.submit(add, 1, 2)
    config["n"] = "one"
    bad = executor.submit(add, 1, 2)
    config["n"] = 2
    also_good = executor.submit(add, 1, 2)
    assert (good.result(WAIT_S), also_good.result(WAIT_S)) == (3, 3)
    with pytest.raises(UserConfigInvalid, match="n"):
        bad.result(WAIT_S)


def test_an_unknown_token(campus):
    client = Client(campus.relay.url, "mep_wrong")
    with pytest.raises(TokenUnknown):
        client.get_endpoints()
    with campus.executor(client=client) as executor, pytest.raises(TokenUnknown):
        executor.submit(add, 1, 2).result(WAIT_S)


def test_unknown_ids(campus):
    client = campus.client()
    for ask in (client.get_task, client.get_result):
        with pytest.raises(TaskNotFound, match=NOBODY):
            ask(NOBODY)
    with pytest.raises(TaskGroupNotFound):
        client.get_task_group(NOBODY)
    with pytest.raises(EndpointNotFound):
        client.get_endpoint_status(NOBODY)
    with pytest.raises(ValueError, match="empty"):
        client.batch_run(campus.endpoint.endpoint_id, client.create_batch())
    with pytest.raises(ValueError, match=r"each of task_id_list is an id, .*, not 'not an id'"):
        client.get_batch_result(["not an id"])


# --- cancelling -----------------------------------------------------------------------------------------


def test_a_waiting_task_is_cancelled(campus):
    with campus.executor(endpoint_id=campus.idle.endpoint_id) as executor:
        future = executor.submit(add, 1, 2)
        assert executor.flush(WAIT_S)
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result(0)
        assert concurrent.futures.wait([future], 0).done == {future}
    assert campus.client().get_task(future.task_id)["status"] == "cancelled"


def test_an_ended_task_is_not_cancelled(executor):
    future = executor.submit(add, 1, 2)
    assert future.result(WAIT_S) == 3
    assert not future.cancel()
    assert not future.cancelled()


def test_shutdown_cancels(campus):
    executor = campus.executor(endpoint_id=campus.idle.endpoint_id)
    futures = [executor.submit(add, number, 0) for number in range(500)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    statuses = campus.client().get_batch_result([future.task_id for future in futures])
    assert {task["status"] for task in statuses.values()} <= {"cancelled"}


def test_cancelled_through_the_client(campus):
    client = campus.client()
    task_id = client.run(1, 2, endpoint_id=campus.idle.endpoint_id, function_id=client.register_function(add))
    with pytest.raises(TaskPending):
        client.get_result(task_id)
    assert client.cancel(task_id)
    assert not client.cancel(task_id)
    with pytest.raises(Exception, match="cancelled"):
        client.get_result(task_id)


# --- ending ---------------------------------------------------------------------------------------------


def test_shutdown_waits_and_closes(campus):
    executor = campus.executor()
    future = executor.submit(sleep_then, 5, 0.3)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(add, 1, 2)
    executor.shutdown()


def test_an_interrupted_script_says_that_it_waits(campus, caplog):
    with pytest.raises(KeyboardInterrupt), campus.executor() as made:
        future = made.submit(sleep_then, "slept", 0.5)
        raise KeyboardInterrupt
    assert future.result(0) == "slept"
    assert "tasks still to end: 1; interrupt again" in caplog.text


def test_shutdown_without_waiting(campus):
    executor = campus.executor()
    future = executor.submit(sleep_then, 5, 0.3)
    executor.shutdown(wait=False)
    assert future.result(WAIT_S) == 5


def test_threads_end_with_their_executor(campus):
    def ours():
        return [thread for thread in threading.enumerate() if thread.name.startswith("mep-")]

    executor = campus.executor()
    future = executor.submit(add, 1, 2)
    del executor
    gc.collect()
    assert future.result(WAIT_S) == 3
    until("the end of the executor's threads", lambda: not ours(), details=ours)


def test_a_forked_child_is_told(campus, executor):
    future = executor.submit(sleep_then, 1, 0.2)
    child = os.fork()
    if child == 0:
        try:
            executor.submit(add, 1, 2)
        except Exception as error:
            executor.shutdown()  # must neither hang nor disturb the parent
            with campus.executor() as mine:
                os._exit(0 if "Make a new one" in str(error) and mine.submit(add, 1, 2).result(WAIT_S) == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert future.result(WAIT_S) == 1


def test_a_script_that_just_ends_has_sent_its_tasks(campus):
    script = f"""
        from mep_sdk import Client, Executor
        executor = Executor("{campus.idle.endpoint_id}", client=Client("{campus.relay.url}", "{campus.token}"))
        futures = [executor.submit(pow, 2, number) for number in range(100)]
        print(executor.task_group_id)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=WAIT_S
    )
    assert "tasks still to end: 100" in run.stderr
    group = run.stdout.strip()
    assert len(campus.client().get_task_group(group)) == 100
    with campus.executor(task_group_id=group) as executor:
        for future in executor.reload_tasks():
            future.cancel()


def test_tasks_are_reloaded(campus):
    with campus.executor() as executor:
        ids = [executor.submit(add, number, 1).task_id for number in range(20)]
        ids.append(executor.submit(look_up, "X").task_id)
    with campus.executor(task_group_id=executor.task_group_id) as another:
        futures = another.reload_tasks()
        assert [future.task_id for future in futures] == ids
        assert [future.result(WAIT_S) for future in futures[:-1]] == list(range(1, 21))
        assert type(futures[-1].exception(WAIT_S)) is NoSuchMolecule
        assert another.submit(add, 1, 1).result(WAIT_S) == 2
        assert len(another.reload_tasks()) == 22
    with campus.executor() as empty, pytest.raises(TaskGroupNotFound):
        empty.reload_tasks(NOBODY)


# --- when the relay goes away ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Iterator[Place]:
    with RelayProcess(tmp_path) as relay:
        token = relay.add_user("ada@example.edu")
        with FakeEndpoint(relay, token) as endpoint:
            yield Place(relay, token, endpoint, endpoint)


def test_a_killed_relay_loses_nothing(own):
    with own.executor() as executor:
        assert executor.submit(add, 1, 1).result(WAIT_S) == 2
        futures = [executor.submit(sleep_then, number, 0.002) for number in range(400)]
        futures[50].result(WAIT_S)
        own.relay.kill()
        futures += [executor.submit(add, number, 0) for number in range(400, 500)]
        own.relay.start()
        assert [future.result(60) for future in futures] == list(range(500))


def test_tasks_wait_for_an_endpoint_that_is_away(own):
    own.endpoint.stop()
    with own.executor() as executor:
        future = executor.submit(add, 1, 2)
        with pytest.raises(TimeoutError):
            future.result(0.3)
        own.endpoint.start()
        assert future.result(WAIT_S) == 3


def test_an_unreachable_relay_is_said_and_then_raised(own, caplog):
    own.relay.kill()
    with caplog.at_level(logging.WARNING, "mep_sdk"), own.executor(client=own.client(retry_for_s=0.5)) as executor:
        future = executor.submit(add, 1, 2)
        with pytest.raises(RelayUnreachable, match="refused"):
            future.result(WAIT_S)
    said = [record.message for record in caplog.records if "unreachable" in record.message]
    assert said == [f"relay {own.relay.url} unreachable (Connection refused), retrying (1)"]
    own.relay.start()


def test_shutdown_gives_up_on_a_relay_that_stays_away(own):
    own.endpoint.stop()
    executor = own.executor(client=own.client(retry_for_s=0.5), lost_relay_timeout_s=0.5)
    future = executor.submit(add, 1, 2)
    assert executor.flush(WAIT_S)
    own.relay.kill()
    with pytest.raises(RelayAnswerMissing, match=str(executor.task_group_id)):
        executor.shutdown()
    assert isinstance(future.exception(0), RelayAnswerMissing)
    own.relay.start()
    own.endpoint.start()
    with own.executor(task_group_id=executor.task_group_id) as another:
        assert [each.result(WAIT_S) for each in another.reload_tasks()] == [3]


def test_a_script_leaves_no_resource_open(campus, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import gc, threading
        from mep_sdk import Client, Executor

        def add(a, b):
            return a + b

        for _ in range(2):
            with Executor("{campus.endpoint.endpoint_id}") as executor:
                assert sum(executor.map(add, range(20), range(20))) == 380
                executor.submit(add, 1, 2).add_done_callback(lambda future: future.result())
        client = Client()
        client.get_version()
        client.close()
        del executor, client
        gc.collect()
        """)
    )
    env = {**os.environ, "MEP_RELAY_URL": campus.relay.url, "MEP_TOKEN": campus.token, "PYTHONTRACEMALLOC": "10"}
    command = [sys.executable, "-W", "always::ResourceWarning", str(script)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "ResourceWarning" not in ran.stderr, ran.stderr


# --- output ---------------------------------------------------------------------------------------------


def speak(name):
    print("hello", name)
    print("\x1b[2Jbeware", file=sys.stderr)
    return name


def speak_and_fail(name):
    print("so far", name)
    raise KeyError(name)


def test_a_futures_output_is_its_own(executor):
    one, other, silent = (
        executor.submit(speak, "ada"),
        executor.submit(speak_and_fail, "bob"),
        executor.submit(add, 1, 2),
    )
    assert (one.stdout, one.stderr) == ("", "") or one.done()
    assert one.result(WAIT_S) == "ada"
    assert type(other.exception(WAIT_S)) is KeyError
    assert silent.result(WAIT_S) == 3
    assert (one.stdout, one.stderr) == ("hello ada\n", "\x1b[2Jbeware\n")
    assert (other.stdout, silent.stdout) == ("so far bob\n", "")


def test_output_comes_with_results_that_are_fetched_later(campus):
    client = campus.client()
    batch = client.create_batch()
    task_id = batch.add(client.register_function(speak), args=("ada",))
    client.batch_run(campus.endpoint.endpoint_id, batch)
    until("the result", lambda: not client.get_task(task_id)["pending"])
    assert client.get_result(task_id) == "ada"
    with campus.executor(task_group_id=batch.task_group_id) as later:
        (again,) = later.reload_tasks()
        assert (again.result(WAIT_S), again.stdout) == ("ada", "hello ada\n")


def test_stream_output_prints_it_with_control_characters_escaped(campus, capsys):
    with campus.executor(stream_output=True) as executor:
        for name in ("ada", "bob"):
            executor.submit(speak, name).result(WAIT_S)
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == ["hello ada", "hello bob"]
    assert shown.err == "\\x1b[2Jbeware\n" * 2


# --- what keeps a task waiting --------------------------------------------------------------------------


def _disk_takes(relay: RelayProcess, most: int) -> None:
    """Let files of the relay grow to `most` bytes; -1 for any size."""
    resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_relay_with_a_full_disk_is_the_reason(own, monkeypatch, caplog):
    monkeypatch.setattr("mep_sdk.status_poller.LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr("mep_sdk.http._SAY_AFTER_S", 0.0)
    own.endpoint.stop()
    caplog.set_level(logging.WARNING, "mep_sdk")
    executor = own.executor()
    before = executor.submit(add, 1, 2)
    assert executor.flush(WAIT_S)
    until("the first reason", lambda: before.reason and before.reason_code == "ENDPOINT_OFFLINE")
    _disk_takes(own.relay, 4096)
    since = executor.submit(add, 2, 3)
    told = [before, since]
    until("the reasons", lambda: {each.reason and each.reason_code for each in told} == {"RELAY_UNAVAILABLE"})
    assert "store" in before.reason and "store cannot write" in since.reason
    assert executor.stats()["unsent"] == 1
    assert "store cannot write" in caplog.text
    _disk_takes(own.relay, -1)
    own.endpoint.start()
    assert [each.result(60) for each in told] == [3, 5]
    executor.shutdown()
