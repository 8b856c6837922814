"""Each wrong call says what was given and what is accepted, with an example, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from mep_sdk import Client, Executor, ShellFunction
from mep_sdk.errors import FunctionUnserializable

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")


RELAY = {"relay_url": "http://127.0.0.1:9", "token": "t"}
CALLS: list[tuple[Callable[[Executor], Any], type[Exception], str]] = [
    (lambda ex: ex.submit(5), FunctionUnserializable, r"submit\(f, 1\), not submit\(f\(1\)\)"),
    (lambda ex: ex.submit(5), FunctionUnserializable, "5 cannot be called"),  # type: ignore[arg-type]
    (lambda ex: ex.submit(Unshowable()), FunctionUnserializable, "it cannot be called"),  # type: ignore[arg-type]
    (lambda ex: ex.map(None, [1]), FunctionUnserializable, r"None cannot be called: .*submit\(f, 1\)"),  # type: ignore[arg-type]
    (lambda ex: ex.map(abs, 5), TypeError, r"executor.map\(f, \[1, 2, 3\]\), not 5"),  # type: ignore[call-overload]
    (lambda ex: ex.map(abs, [1], chunksize=1.5), TypeError, "chunksize=100, not 1.5"),  # type: ignore[call-overload]
    (lambda ex: setattr(ex, "user_endpoint_config", [1]), TypeError, r'_config={"partition": .*, not \[1\]'),
    (lambda ex: setattr(ex, "resource_specification", 5), TypeError, r'={"num_nodes": 2, "ranks_per_node": 4}, not 5'),
    (lambda ex: setattr(ex, "resource_specification", {5.5: 1}), TypeError, r"key 5.5, .* such as \{'size': 3\}"),
    (lambda ex: setattr(ex, "endpoint_id", 5), ValueError, "5 is not an id: ids look like 4b116d3c"),
    (lambda ex: ex.client.batch_run(ENDPOINT, ex.client.create_batch()), ValueError, r"batch.add\(function_id, args="),
    (lambda ex: ShellFunction("ls", walltime="5"), TypeError, "such as walltime=60, not '5'"),  # type: ignore[arg-type]
    (lambda ex: ShellFunction("ls", walltime=-5), ValueError, "such as walltime=60, not -5"),
    (lambda ex: ShellFunction("ls", snippet_lines=-1), ValueError, "such as snippet_lines=100, not -1"),
    (lambda ex: ShellFunction("ls", stdout=3), TypeError, "such as stdout='stdout.txt', not 3"),  # type: ignore[arg-type]
    (lambda ex: ShellFunction("ls", stdin=""), ValueError, "endpoint or bytes, such as stdin='stdin.txt', not"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, "abc"), TypeError, r"such as args=\['abc'\], not 'abc'"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, 5), TypeError, r"args is a list or tuple .*, not 5"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, [1], [2]), TypeError, r"kwargs=\{'size': 3\}, not \[2\]"),
    (lambda ex: ex.client.create_batch().add(ENDPOINT, "abc"), TypeError, r"args=\['abc'\]"),
    (lambda ex: ex.map(abs, [1], chunksize="2"), TypeError, r"chunksize=100, not '2'"),
    (lambda ex: ex.map(abs, [1], chunksize=0), ValueError, r"chunksize=100, not 0"),
    (lambda ex: ex.cancel([5]), TypeError, r"executor.submit\(f\), not 5"),
    (lambda ex: ex.cancel(5), TypeError, r"futures=\[future\], not 5"),
    (lambda ex: ex.submit_to_registered_function("add"), ValueError, "register_function returned it, .*, not 'add'"),
    (lambda ex: ex.submit_to_registered_function(len), TypeError, "register_function returned it, .*, not <built"),
    (lambda ex: ex.register_function(abs, "abs"), ValueError, "function_id is an id, .*, not 'abs'"),
    (lambda ex: ex.client.create_batch().add("add"), ValueError, "function_id is an id, .*, not 'add'"),
    (lambda ex: ex.client.create_batch("mine"), ValueError, "task_group_id is an id, .*, not 'mine'"),
    (lambda ex: ex.client.create_batch(user_endpoint_config=[1]), TypeError, r"of class dict, .*, not \[1\]"),
    (lambda ex: ex.client.batch_run(ex.client.create_batch(), ENDPOINT), TypeError, r"create_batch\(\), not '4b"),
    (lambda ex: ex.client.cancel("x"), ValueError, "task_id is an id, as TaskFuture.task_id has it"),
    (lambda ex: ex.client.cancel_many("x"), TypeError, r"task_ids=\[future.task_id\], not 'x'"),
    (lambda ex: ex.client.get_batch_result(5), TypeError, r"task_id_list=\[future.task_id\], not 5"),
    (lambda ex: ex.client.get_batch_result([None]), TypeError, "each of task_id_list is an id, .*, not None"),
    (lambda ex: ex.client.get_endpoints(role="mine"), ValueError, "role is .*, not 'mine'"),
    (lambda ex: ex.client.register_source_code(5, "f"), TypeError, "source is of class str, .*, not 5"),
    (lambda ex: ex.map(abs, [1], timeout="1"), TypeError, "timeout=60, not '1'"),
    (lambda ex: ex.flush("1"), TypeError, "timeout_s=60, not '1'"),
    (lambda ex: setattr(ex, "serializer", 5), TypeError, "serializer is of class ComputeSerializer, .*, not 5"),
]
OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": "x"}, TypeError, "batch_size=128, not 'x'"),
    ({"batch_size": 0}, ValueError, "batch_size is 1 or more"),
    ({"client": "token"}, TypeError, "client is of class Client, .*, not 'token'"),
    ({"serializer": "JSONData"}, TypeError, "ComputeSerializer"),
    ({"result_serializers": "JSONData"}, TypeError, r'such as result_serializers=\["JSONData"\]'),
    ({"lost_relay_timeout_s": "x"}, TypeError, "number of seconds"),
    ({"lost_relay_timeout_s": -1}, ValueError, "0 or more"),
    ({"progress": "yes"}, TypeError, "tqdm.tqdm, not 'yes'"),
    ({"deadline": "tomorrow"}, TypeError, r"since the epoch, such as deadline=datetime.now\(.*, not 'tomorrow'"),
    ({"deadline": float("nan")}, ValueError, "deadline is a finite number of seconds, such as deadline=.*, not nan"),
    ({"deadline": datetime(2100, 1, 1)}, ValueError, r"with a time zone, such as deadline=datetime.now\("),
    ({"deadline_s": "5"}, TypeError, "deadline_s is a number of seconds, such as deadline_s=7200, not '5'"),
    ({"deadline_s": 0}, ValueError, "more than 0, such as deadline_s=7200, not 0"),
    ({"walltime_s": float("inf")}, ValueError, "is a finite number of seconds, such as walltime_s=60, not inf"),
    ({"walltime_s": "5"}, TypeError, "such as walltime_s=60, not '5'"),
    ({"walltime_s": -1}, ValueError, r"0 or more \(0: no limit\), such as walltime_s=60, not -1"),
    ({"max_attempts": 0}, ValueError, "such as max_attempts=3, not 0"),
    ({"max_attempts": "2"}, TypeError, "a whole number, such as max_attempts=3, not '2'"),
    ({"priority": 10**6}, ValueError, "higher first, such as priority=10, not 1000000"),
    ({"client": Client(**RELAY), "token": "t"}, ValueError, "relay_url=... and token=..., not both"),
]
CLIENTS: list[tuple[dict[str, Any], str]] = [
    ({"token": 5}, r'token is text, such as token="mep_\.\.\.", not of class int'),
    ({"token": b"secret"}, "not of class bytes"),
    ({"relay_url": 5}, 'relay_url="https://relay.example.edu", not 5'),
    ({"retry_for_s": "x"}, "retry_for_s is a number of seconds, .*, not 'x'"),
]


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor(ENDPOINT, **RELAY)  # type: ignore[arg-type]
    yield made
    made.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize(("call", "kind", "words"), CALLS)
def test_a_wrong_call(executor: Executor, call: Callable[[Executor], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(executor)
    assert executor.task_count_submitted == 0


@pytest.mark.parametrize(("options", "kind", "words"), OPTIONS)
def test_a_wrong_option(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Executor(ENDPOINT, **({} if "client" in options else RELAY), **options)


@pytest.mark.parametrize(("options", "words"), CLIENTS)
def test_a_wrong_client(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        Client(**{**RELAY, **options})
    assert "secret" not in str(caught.value)


def test_right_ones_are_taken(executor: Executor) -> None:
    assert Executor(ENDPOINT, Client(**RELAY), batch_size=1, lost_relay_timeout_s=0).batch_size == 1  # type: ignore[arg-type]
    assert executor.cancel([]) == 0
