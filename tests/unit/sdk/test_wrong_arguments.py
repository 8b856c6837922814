"""Each wrong call says what was given and what is accepted, with an example, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mep_sdk import Client, Executor
from mep_sdk.errors import FunctionUnserializable

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
RELAY = {"relay_url": "http://127.0.0.1:9", "token": "t"}
CALLS: list[tuple[Callable[[Executor], Any], type[Exception], str]] = [
    (lambda ex: ex.submit(5), FunctionUnserializable, r"submit\(f, 1\), not submit\(f\(1\)\)"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, "abc"), TypeError, r"such as args=\['abc'\], not 'abc'"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, 5), TypeError, r"args is a list or tuple .*, not 5"),
    (lambda ex: ex.submit_to_registered_function(ENDPOINT, [1], [2]), TypeError, r"kwargs=\{'size': 3\}, not \[2\]"),
    (lambda ex: ex.client.create_batch().add(ENDPOINT, "abc"), TypeError, r"args=\['abc'\]"),
    (lambda ex: ex.map(abs, [1], chunksize="2"), TypeError, r"chunksize=100, not '2'"),
    (lambda ex: ex.map(abs, [1], chunksize=0), ValueError, r"chunksize=100, not 0"),
    (lambda ex: ex.cancel([5]), TypeError, r"executor.submit\(f\), not 5"),
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


def test_right_ones_are_taken(executor: Executor) -> None:
    assert Executor(ENDPOINT, Client(**RELAY), batch_size=1, lost_relay_timeout_s=0).batch_size == 1  # type: ignore[arg-type]
    assert executor.cancel([]) == 0
