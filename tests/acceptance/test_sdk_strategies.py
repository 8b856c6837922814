"""Strategies that a script chooses, over a real relay to a stand-in endpoint that runs tasks for real."""

from __future__ import annotations

import time
import warnings

import pytest

from mep_sdk import Client, ComputeSerializer, Executor
from mep_sdk.version_mismatch import PythonDiffers
from tests.support.fake_endpoint import FakeEndpoint

from .test_sdk import WAIT_S, Place
from .test_sdk import campus as campus  # the fixture

JSON = ComputeSerializer("PureSourceTextInspect", "JSONData")


def kinds(values):
    return [type(each).__name__ for each in values]


def divide(dividend, divisor):
    return dividend / divisor


def test_an_executor_sends_and_gets_json(campus: Place) -> None:
    with campus.executor(serializer=JSON, result_serializers=["globus_compute_sdk.serialize.JSONData"]) as executor:
        assert executor.submit(kinds, [(1, 2), {"a": 1}]).result(WAIT_S) == ["list", "dict"]
        with pytest.raises(ZeroDivisionError, match="division"):
            executor.submit(divide, 1, 0).result(WAIT_S)
        executor.serializer, executor.result_serializers = ComputeSerializer(), None
        assert executor.submit(kinds, [(1, 2), {"a": 1}]).result(WAIT_S) == ["tuple", "dict"]


def test_a_client_and_its_batches_and_executors_too(campus: Place) -> None:
    options = {"code_serialization_strategy": "CombinedCode", "data_serialization_strategy": "JSONData"}
    client = Client(campus.relay.url, campus.token, **options)
    function = client.register_function(kinds)
    with Executor(campus.endpoint.endpoint_id, client=client) as executor:
        assert executor.submit_to_registered_function(function, [[(1,)]]).result(WAIT_S) == ["list"]


def test_a_script_is_warned_once_of_workers_with_another_python(campus: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEP_TEST_WORKER_PYTHON", "3.99.1")
    with FakeEndpoint(campus.relay, campus.token) as other, campus.executor(endpoint_id=other.endpoint_id) as executor:
        executor.submit(kinds, [1]).result(WAIT_S)  # with the credit that follows, the relay knows
        deadline = time.monotonic() + WAIT_S
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            while not caught and time.monotonic() < deadline:
                executor.submit(kinds, [1]).result(WAIT_S)
            executor.submit(kinds, [1]).result(WAIT_S)
    assert [warning.category for warning in caught] == [PythonDiffers]
    assert f"Endpoint {other.endpoint_id} runs tasks with Python 3.99" in str(caught[0].message)
